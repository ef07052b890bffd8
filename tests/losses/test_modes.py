"""Losses in whatever JAX their users have set up: 64-bit types, meshes with explicit axes or manual in part; and input
that is empty or no array. Most need tracing alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from loss_batches import clustered

from hap2s_jax import hap2s_loss, losses, pairwise_distances
from hap2s_jax.losses import memory

X, LABELS = clustered(40, [4, 3, 1, 5, 3], dim=6)
CLASSES = 8


def prepared(name):
    loss = losses.create(name)
    params = loss.init_params(jax.random.key(1), CLASSES, X.shape[1])
    return loss, ({} if params is None else {"params": params})


@pytest.mark.parametrize("name", losses.names())
def test_float32_stays_float32_with_64_bit_types(name):
    with jax.enable_x64(True):
        loss, params = prepared(name)
        for blocks in ({}, {"block_size": 3}) if loss.has_blocks else ({},):
            got = jax.eval_shape(
                lambda x, b=blocks: loss(x, LABELS, **params, **b), jnp.asarray(X, jnp.float32)
            )
            assert got.dtype == jnp.float32
        assert (
            jax.eval_shape(lambda x: loss(x, LABELS, **params), jnp.asarray(X, jnp.float64)).dtype
            == jnp.float64
        )


@pytest.mark.parametrize("name", losses.names())
def test_an_empty_batch_is_refused_and_lists_are_taken(name):
    loss, params = prepared(name)
    with pytest.raises(ValueError, match="the batch is empty"):
        loss(X[:0], LABELS[:0], **params)
    assert jax.eval_shape(lambda: loss(X.tolist(), LABELS.tolist(), **params)).shape == ()


@pytest.mark.eight_devices
@pytest.mark.parametrize("name", losses.names())
def test_a_mesh_that_is_manual_in_part(name):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    data = PartitionSpec("data")
    loss, params = prepared(name)

    def value(x, labels):
        return loss(x, labels, axis_name="data", **params)

    split = jax.jit(
        jax.shard_map(
            value,
            mesh=mesh,
            in_specs=(data, data),
            out_specs=PartitionSpec(),
            axis_names={"data"},
            check_vma=True,
        )
    )
    if name in ("hap2s_e", "hap2s_ranked", "semi_hard"):
        np.testing.assert_allclose(split(X, LABELS), loss(X, LABELS), rtol=1e-5)
    else:
        assert jax.eval_shape(split, X, LABELS).shape == ()


@pytest.mark.eight_devices
@pytest.mark.parametrize("name", [name for name in losses.names() if losses.create(name).has_params])
def test_params_split_by_class_over_explicit_axes(name):
    mesh = jax.make_mesh((8,), ("classes",), axis_types=(AxisType.Explicit,))
    loss, given = prepared(name)

    def by_class(array):
        places = [n for n, size in enumerate(array.shape) if size == CLASSES]
        spec = PartitionSpec(*("classes" if places and n == places[-1] else None for n in range(array.ndim)))
        return jax.device_put(array, NamedSharding(mesh, spec))

    expected = loss(X, LABELS, **given)
    params = jax.tree.map(by_class, given["params"])
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(jax.jit(loss)(X, LABELS, params=params), expected, rtol=1e-5)


@pytest.mark.eight_devices
def test_what_is_around_a_loss_on_explicit_axes():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    x, labels = jax.device_put((X, jnp.asarray(LABELS)), split)
    same = LABELS[:, None] == LABELS[None, :]
    near, far = same & ~np.eye(len(LABELS), dtype=bool), ~same
    distances = pairwise_distances(X)
    expected = losses.hap2s_from_distances(distances, near, far)
    with jax.set_mesh(mesh):
        state = jax.jit(memory.push)(memory.create(20, X.shape[1]), x, labels)
        np.testing.assert_array_equal(state.labels[: len(LABELS)], LABELS)
        np.testing.assert_allclose(jax.jit(pairwise_distances)(x), distances, atol=1e-6)
        given = jax.device_put((distances, near, far), split)
        np.testing.assert_allclose(jax.jit(losses.hap2s_from_distances)(*given), expected, rtol=1e-6)


def test_a_memory_keeps_classes_apart():
    far = np.where(LABELS == 4, 2**32 - 1, LABELS.astype(np.int64))
    with jax.enable_x64(True):
        state = memory.push(memory.create(20, X.shape[1]), X, far)
        assert set(state.labels.tolist()) == {-1, *far.tolist()}
        by_memory = hap2s_loss(X, far, keys=state.embeddings, key_labels=state.labels)
        np.testing.assert_allclose(by_memory, hap2s_loss(X, far, keys=X, key_labels=far), rtol=1e-6)
        narrow = memory.create(20, X.shape[1])._replace(labels=jnp.full(20, -1, jnp.int32))
        with pytest.raises(TypeError, match="labels are int64; the memory holds int32"):
            memory.push(narrow, X, far)
    with pytest.raises(ValueError, match="number the classes from 0 on"):
        memory.push(memory.create(20, X.shape[1]), X, far)
