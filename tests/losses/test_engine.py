"""The engine's own arguments: devices, memories, ignored labels, weights, blocks, reductions, and bad
input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from loss_batches import CORNER_LABELS, CORNERS, clustered
from loss_oracles import hap2s

from hap2s_jax import hap2s_loss, losses
from hap2s_jax.losses import mean_over_anchors


def test_numbers_by_hand():
    settings = {"margin": 2.0, "weighting": losses.hardest()}
    value, stats = hap2s_loss(CORNERS, CORNER_LABELS, with_stats=True, **settings)
    assert (value, stats["valid_anchors"]) == (1, 4)  # 3 - 4 + 2 at every corner of the rectangle
    # Of the first class's two anchors alone, once a key at distance 2 from the second (3, 0) joins the other class.
    weights, memory = np.array([1.0, 3.0, 0.0, 0.0]), np.array([[5.0, 0.0]], np.float32)
    value = hap2s_loss(
        CORNERS, CORNER_LABELS, sample_weights=weights, keys=memory, key_labels=np.array([1]), **settings
    )
    assert value == pytest.approx((1 * 1 + 3 * (3 - 2 + 2)) / 4)
    ignored = hap2s_loss(CORNERS, np.array([0, 0, -1, 1]), reduction="none", **settings)
    np.testing.assert_allclose(ignored, [3 - 5 + 2, 3 - 4 + 2, 0, 0], atol=1e-6)


def devices_problem(dtype):
    """64 samples for 8 devices, whose numbers of valid anchors differ, and a shared linear map to be
    trained."""
    x, labels = clustered(20, [9, 1, 6, 1, 1, 12, 3, 1, 20, 10], dim=6)
    order = np.argsort(labels, kind="stable")
    x, labels = x[order], labels[order].copy()
    labels[[10, 40, 41, 42, 43, 44, 45, 46, 47]] = -1
    weights = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    return jnp.asarray(weights, dtype), jnp.asarray(x, dtype), jnp.asarray(labels)


def step(weights, x, labels, axis_name, block_size):
    def loss(weights):
        embeddings = jnp.matmul(x, weights, precision="highest")
        return hap2s_loss(
            embeddings, labels, axis_name=axis_name, margin=1.0, block_size=block_size, with_stats=True
        )

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
    return value, (gradient if axis_name is None else jax.lax.pmean(gradient, axis_name)), stats


whole = jax.jit(step, static_argnums=(3, 4))


def mapped(how, block_size):
    def on_device(weights, x, labels):
        return step(weights, x, labels, "devices", block_size)

    def split(function):
        return lambda w, x, labels: function(w, x.reshape(8, 8, -1), labels.reshape(8, 8))

    if how == "pmap":
        return split(jax.pmap(on_device, axis_name="devices", in_axes=(None, 0, 0), out_axes=None))
    if how == "vmap":
        return split(jax.jit(jax.vmap(on_device, axis_name="devices", in_axes=(None, 0, 0), out_axes=None)))
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    specs = (PartitionSpec(), PartitionSpec("devices"), PartitionSpec("devices"))
    return jax.jit(
        jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(),
            check_vma=how == "shard_map checked",
        )
    )


# Each way with and without blocks in one of the precisions, since every case is two compilations.
@pytest.mark.parametrize(
    ("how", "dtype", "block_size"),
    [
        pytest.param("pmap", "float32", 3, marks=pytest.mark.eight_devices),
        pytest.param("pmap", "float64", "never", marks=pytest.mark.eight_devices),
        ("vmap", "float32", "never"),
        ("vmap", "float64", 3),
        pytest.param("shard_map checked", "float32", 3, marks=pytest.mark.eight_devices),
        pytest.param("shard_map checked", "float32", "never", marks=pytest.mark.eight_devices),
        pytest.param("shard_map checked", "float64", 3, marks=pytest.mark.eight_devices),
        pytest.param("shard_map unchecked", "float32", 3, marks=pytest.mark.eight_devices),
        pytest.param("shard_map unchecked", "float64", "never", marks=pytest.mark.eight_devices),
        pytest.param("shard_map unchecked", "float64", 3, marks=pytest.mark.eight_devices),
    ],
)
def test_eight_devices_equal_one(how, dtype, block_size):
    with jax.enable_x64(dtype == "float64"):
        problem = devices_problem(dtype)
        tolerance = {"float32": 1e-5, "float64": 1e-10}[dtype]
        value, gradient, stats = whole(*problem, None, "never")
        got_value, got_gradient, got_stats = mapped(how, block_size)(*problem)
        assert got_gradient.dtype == gradient.dtype == dtype
        np.testing.assert_allclose(got_value, value, rtol=tolerance)
        np.testing.assert_allclose(got_gradient, gradient, atol=tolerance * float(jnp.abs(gradient).max()))
        for name, expected in stats.items():
            np.testing.assert_allclose(got_stats[name], expected, rtol=1e-5, err_msg=name)


@pytest.mark.eight_devices
def test_sharded_global_arrays():
    weights, x, labels = devices_problem("float32")
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("devices",)), PartitionSpec("devices"))
    expected = whole(weights, x, labels, None, "never")
    for block_size in ("never", 10):
        got = whole(weights, jax.device_put(x, sharding), jax.device_put(labels, sharding), None, block_size)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(got[1], expected[1], atol=1e-5)


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    "name", ["hap2s_e", "hap2s_ranked", "batch_all", "margin", "circle", "msml", "softmax"]
)
def test_a_mesh_of_explicit_axes(name):
    _, x, labels = devices_problem("float32")
    loss = losses.create(name)
    params = loss.init_params(jax.random.key(0), int(labels.max()) + 1, x.shape[1])

    def value(x, labels, weights=None):
        weighted = {} if weights is None else {"sample_weights": weights}
        return loss(x, labels, with_stats=False, params=params, **weighted)

    of = jax.jit(jax.value_and_grad(value))
    expected = of(x, labels)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    xs, ys = jax.device_put(x, split), jax.device_put(jnp.asarray(labels), split)
    np.testing.assert_allclose(value(xs, ys), expected[0], rtol=1e-5)
    with jax.set_mesh(mesh):
        got = of(xs, ys)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-5)
    assert got[1].sharding.spec[0] == "data"
    if name == "hap2s_e":
        ones = jax.device_put(jnp.ones(len(labels)), split)
        np.testing.assert_allclose(value(xs, ys, ones), expected[0], rtol=1e-5)


def test_several_batches_under_vmap():
    batches = [clustered(seed, [3, 4, 1, 2]) for seed in range(3)]
    x, labels = (jnp.asarray(np.stack(part)) for part in zip(*batches, strict=True))
    for block_size in ("never", 4):
        values = jax.jit(jax.vmap(lambda x, y, b=block_size: hap2s_loss(x, y, block_size=b)))(x, labels)
        np.testing.assert_allclose(values, [hap2s(*batch)[0] for batch in batches], rtol=1e-5)


@pytest.mark.parametrize("block_size", ["never", 4])
def test_memory_adds_keys_but_no_anchors(block_size):
    x, labels = clustered(21, [3, 4, 1, 2])
    memory, memory_labels = clustered(22, [2, 2, 3, 1])
    memory_labels[0] = -1
    memory[0] = np.nan
    everything = np.concatenate([x, np.nan_to_num(memory)])
    all_labels = np.concatenate([labels, memory_labels])
    _, losses = hap2s(everything, all_labels)
    expected = np.mean([v for a, v in losses if a < len(x)])
    got = hap2s_loss(x, labels, keys=memory, key_labels=memory_labels, block_size=block_size)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("block_size", ["never", 4])
def test_sample_weights_and_reductions(block_size):
    x, labels = clustered(23, [3, 4, 1, 2])
    _, losses = hap2s(x, labels)
    weights = np.random.default_rng(0).uniform(size=len(x)).astype(np.float32)
    expected = sum(weights[a] * v for a, v in losses) / sum(weights[a] for a, _ in losses)
    arguments = {"block_size": block_size}
    np.testing.assert_allclose(
        hap2s_loss(x, labels, sample_weights=weights, **arguments), expected, rtol=1e-5
    )
    np.testing.assert_allclose(
        hap2s_loss(x, labels, reduction="sum", **arguments), sum(v for _, v in losses), rtol=1e-5
    )
    each = np.zeros(len(x))
    for a, v in losses:
        each[a] = v
    np.testing.assert_allclose(hap2s_loss(x, labels, reduction="none", **arguments), each, atol=1e-5)
    assert hap2s_loss(x, labels, sample_weights=np.zeros(len(x)), **arguments) == 0


@pytest.mark.parametrize("block_size", [1, 3, 10, 11, 1000])
def test_blocks_change_nothing(block_size):
    x, labels = clustered(24, [3, 4, 1, 2])
    plain = jax.value_and_grad(lambda x: hap2s_loss(x, labels, block_size="never"))(x)
    blocked = jax.value_and_grad(lambda x: hap2s_loss(x, labels, block_size=block_size))(x)
    np.testing.assert_allclose(blocked[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(blocked[1], plain[1], atol=1e-6)


def test_ignore_label_none_counts_every_label():
    x, labels = clustered(25, [3, 4, 2])
    np.testing.assert_allclose(hap2s_loss(x, labels - 1, ignore_label=None), hap2s(x, labels)[0], rtol=1e-5)


def test_own_anchor_loss():
    def spread(row):
        return jnp.sum(jnp.where(row.is_positive, row.distances, 0)) + 0.0 * row.index.astype(
            jnp.float32
        ), jnp.any(row.is_positive)

    x, labels = clustered(26, [3, 4, 1])
    gaps = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    expected = (gaps * (labels[:, None] == labels)).sum() / 7
    np.testing.assert_allclose(mean_over_anchors(spread, x, labels), expected, rtol=1e-5)


GOOD, LABELS = np.ones((4, 2), np.float32), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (ValueError, r"labels .*\[4\]", {"labels": LABELS[:3]}),
        (TypeError, "embeddings are int32; they should be floating", {"embeddings": GOOD.astype(np.int32)}),
        (TypeError, "labels are float32; they should be integers", {"labels": LABELS.astype(np.float32)}),
        (ValueError, r"embeddings have shape \(4,\)", {"embeddings": GOOD[:, 0]}),
        (ValueError, "distance is 'manhattan'.*euclidean", {"distance": "manhattan"}),
        (ValueError, "reduction is 'avg'", {"reduction": "avg"}),
        (ValueError, "block_size is 0", {"block_size": 0}),
        (ValueError, "keys and key_labels go together", {"keys": GOOD}),
        (ValueError, "keys have 1 dimensions", {"keys": GOOD[:, :1], "key_labels": LABELS}),
        (ValueError, r"sample_weights are \(3,\)", {"sample_weights": np.ones(3)}),
        (TypeError, "weighting is 'hard'", {"weighting": "hard"}),
        (TypeError, "margin is None; it should be a number", {"margin": None}),
        (TypeError, "margin is 'soft'.*soft_margin=True", {"margin": "soft"}),
        (ValueError, r"margin has shape \(4,\)", {"margin": np.ones(4)}),
        (
            TypeError,
            r"labels are <U1; .*integers: number .*np\.unique",
            {"labels": np.array(list("aabb"))},
        ),
        (ValueError, "embeddings reach 1e.200", {"embeddings": 1e200 * GOOD.astype(np.float64)}),
        (
            ValueError,
            "embeddings reach 1e.25, whose square no float",
            {"embeddings": 1e25 * GOOD.astype(np.float64)},
        ),
    ],
)
def test_bad_input_is_one_clear_line(error, words, arguments):
    arguments = {"embeddings": GOOD, "labels": LABELS} | arguments
    with pytest.raises(error, match=words) as caught:
        hap2s_loss(arguments.pop("embeddings"), arguments.pop("labels"), **arguments)
    assert "\n" not in str(caught.value)
