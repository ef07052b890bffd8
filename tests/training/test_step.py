"""The training step on many devices against one, and against a step written without any axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from hap2s_jax import losses, models
from hap2s_jax.distributed.devices import AXIS, DataParallel
from hap2s_jax.models.encoder import EmbeddingHead, Encoder, EncoderOutput, normalize_images
from hap2s_jax.models.norm import BatchNorm
from hap2s_jax.models.vit import TokenPooling, ViT
from hap2s_jax.models.vit_families import IMAGENET_VIT, ViTArchitecture
from hap2s_jax.training.objective import objective
from hap2s_jax.training.state import assemble_state, move_average, start_average
from hap2s_jax.training.step import embed_step, embedding_spread, train_step

# Classes of 1 to 6 images, in an order that gives devices unequal numbers of valid anchors; -1 is ignored.
LABELS = np.array([0, 0, 1, 2, 3, 3, 3, -1, 4, 5, 6, 7, 8, 8, 8, 8], np.int32)


class SmallEncoder(nn.Module):
    """Two convolutions with the encoders' own batch normalisation: compiles in a moment."""

    axis_name: str | None
    dtype: jnp.dtype
    freeze_stats: bool = False

    @nn.compact
    def __call__(self, images, train=False):
        x = normalize_images(images, self.dtype)
        for number, stride in enumerate((4, 2)):
            x = nn.Conv(8, (3, 3), strides=stride, use_bias=False, dtype=self.dtype, name=f"conv{number}")(x)
            x = nn.relu(self._norm(f"bn{number}")(x, train))
        features = x.mean((1, 2))
        return EncoderOutput(
            embedding=nn.Dense(16, use_bias=False, dtype=self.dtype)(features), features=features
        )

    def _norm(self, name):
        return BatchNorm(
            axis_name=self.axis_name, freeze_stats=self.freeze_stats, dtype=self.dtype, name=name
        )


def _encoder(dtype, axis_name=AXIS):
    return SmallEncoder(axis_name, dtype)


def _frozen(dtype, axis_name=AXIS):
    return SmallEncoder(axis_name, dtype, freeze_stats=True)


def _resnet(dtype, axis_name=AXIS):
    return models.create(
        "resnet10", width=4, stem="small64", last_stride=1, embedding_dim=16, axis_name=axis_name, dtype=dtype
    )


def _transformer(dtype, axis_name=AXIS, remat=False):
    del axis_name
    trunk = ViT(ViTArchitecture(IMAGENET_VIT, 16, 3, 2, 16, 3), remat=remat, drop_path=0.5, dtype=dtype)
    return Encoder(trunk, TokenPooling(trunk.architecture), EmbeddingHead(embedding_dim=8))


def _batch():
    images = np.random.default_rng(0).integers(0, 255, (len(LABELS), 48, 48, 3), np.uint8)
    return {"image": images, "label": LABELS}


@functools.cache
def _drawn(make):
    variables = models.initialize(make(jnp.float32), jax.random.key(0), _batch()["image"])
    return jax.device_get(assemble_state(variables, optax.sgd(0.1)))


def _initial(dtype, optimizer, make=_encoder):
    # Drawn in float32 and cast, so that both precisions start alike.
    state = _drawn(make)
    params, batch_stats = jax.tree.map(lambda x: jnp.asarray(x, dtype), (state.params, state.batch_stats))
    return state.replace(params=params, batch_stats=batch_stats, opt_state=optimizer.init(params))


def _after(devices, dtype, steps=1, loss="hap2s_e", optimizer=None, make=_encoder, pieces=1, seed=0):
    optimizer = optimizer or optax.sgd(0.1)
    parallel = DataParallel.create(devices)
    update = parallel.compile_step(
        functools.partial(
            train_step,
            encoder=make(dtype),
            objective=functools.partial(objective, loss=losses.create(loss)),
            optimizer=optimizer,
            axis_name=AXIS,
            pieces=pieces,
            seed=seed,
        )
    )
    state = parallel.replicate(_initial(dtype, optimizer, make))
    for _ in range(steps):
        state, metrics = update(state, parallel.split(_batch()))
    return jax.device_get(state), jax.device_get(metrics)


def _distance(a, b):
    flat_a, flat_b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.linalg.norm(flat_a - flat_b) / np.linalg.norm(flat_b)


@pytest.mark.parametrize(
    ("devices", "make"),
    [(2, _encoder), (8, _encoder), pytest.param(8, _resnet, marks=pytest.mark.slow)],
)
def test_a_step_does_not_depend_on_the_number_of_devices(devices, make):
    one, one_metrics = _after(1, jnp.float32, make=make)
    many, many_metrics = _after(devices, jnp.float32, make=make)
    start = _initial(jnp.float32, optax.sgd(0.1), make)
    # Relative to the update, not to the weights: a wrong gradient must not hide behind large weights.
    moved = jax.tree.map(np.subtract, one.params, start.params)
    moved_many = jax.tree.map(np.subtract, many.params, start.params)
    assert _distance(moved_many, moved) < 1e-4
    assert _distance(many.params, one.params) < 1e-5
    assert _distance(many.batch_stats, one.batch_stats) < 1e-5
    for name, value in one_metrics.items():
        np.testing.assert_allclose(many_metrics[name], value, rtol=1e-5, err_msg=name)


def test_which_branches_are_left_out_depends_on_seed_and_step_alone():
    one, _ = _after(1, jnp.float32, make=_transformer)
    start = _initial(jnp.float32, optax.sgd(0.1), _transformer)
    moved = jax.tree.map(np.subtract, one.params, start.params)
    for devices, pieces, remat in ((2, 1, False), (1, 4, True), (2, 2, False)):
        make = functools.partial(_transformer, remat=True) if remat else _transformer
        again, _ = _after(devices, jnp.float32, make=make, pieces=pieces)
        assert _distance(jax.tree.map(np.subtract, again.params, start.params), moved) < 1e-4
    other, _ = _after(1, jnp.float32, make=_transformer, seed=1)
    assert _distance(jax.tree.map(np.subtract, other.params, start.params), moved) > 1e-2


def test_in_float64_equality_is_to_ten_digits():
    with jax.enable_x64(True):
        one, one_metrics = _after(1, jnp.float64, loss="hap2s_p")
        many, many_metrics = _after(8, jnp.float64, loss="hap2s_p")
        start = _initial(jnp.float64, optax.sgd(0.1))
        moved = jax.tree.map(np.subtract, one.params, start.params)
        moved_many = jax.tree.map(np.subtract, many.params, start.params)
    assert jax.tree.leaves(one.params)[0].dtype == np.float64
    assert _distance(moved_many, moved) < 1e-10
    assert _distance(many.batch_stats, one.batch_stats) < 1e-10
    np.testing.assert_allclose(many_metrics["loss"], one_metrics["loss"], rtol=1e-6)


def test_the_step_is_gradient_descent_on_the_loss_of_the_whole_batch():
    """Against a step that has no axis anywhere: plain encoder, plain loss, plain gradient."""
    encoder, batch, start = (
        _encoder(jnp.float32, axis_name=None),
        _batch(),
        _initial(jnp.float32, optax.sgd(0.1)),
    )

    def plain(params):
        variables = {"params": params, "batch_stats": start.batch_stats}
        output, updates = encoder.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        return losses.hap2s_loss(output.embedding, batch["label"]), updates["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(plain, has_aux=True)(start.params["encoder"])
    state, metrics = _after(8, jnp.float32)
    moved = jax.tree.map(np.subtract, state.params["encoder"], start.params["encoder"])
    assert _distance(moved, jax.tree.map(lambda g: -0.1 * g, grads)) < 1e-4
    assert _distance(state.batch_stats, batch_stats) < 1e-5
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-4)


def test_steps_are_counted_and_the_loss_falls():
    state, last = _after(1, jnp.float32, steps=12, optimizer=optax.adam(3e-3))
    _, first = _after(1, jnp.float32)
    assert int(state.step) == 12
    assert last["loss"] < 0.7 * first["loss"]


def test_moving_average_against_numpy():
    optimizer, decay = optax.sgd(0.1), 0.8
    step = functools.partial(
        train_step,
        encoder=_encoder(jnp.float32),
        objective=functools.partial(objective, loss=losses.create("hap2s_e")),
        optimizer=optimizer,
        axis_name=AXIS,
        ema_decay=decay,
    )
    parallel = DataParallel.create(1)
    update = parallel.compile_step(step)
    start = _initial(jnp.float32, optimizer)
    start = start.replace(ema_params=start_average(start.params, start.batch_stats))
    expected = jax.tree.map(lambda x: np.array(x, np.float64), start.ema_params)
    state = parallel.replicate(start)
    for rate in (9 / 11, 9 / 12, 9 / 13):  # those of the start
        state, _ = update(state, parallel.split(_batch()))
        newest = {**state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(lambda e, p, r=rate: (1 - r) * e + r * np.array(p), expected, newest)
    assert _distance(state.ema_params, expected) < 1e-6
    average = {"a": jnp.ones(2), "batch_stats": {"n": jnp.int32(3)}}
    moved = move_average(average, {"a": jnp.zeros(2)}, {"n": jnp.int32(4)}, decay=decay, step=1000)
    np.testing.assert_allclose(moved["a"], 0.8, rtol=1e-6)
    assert moved["batch_stats"]["n"] == 4


def test_spread_of_embeddings():
    def spread(x):
        x = jnp.asarray(x, jnp.float32).reshape(4, -1, 2)
        return float(jax.vmap(lambda rows: embedding_spread(rows, "d"), axis_name="d", out_axes=None)(x))

    rng = np.random.default_rng(0)
    around_origin = rng.normal(size=(400, 2))
    assert spread(around_origin) == pytest.approx(1.0, abs=0.01)
    assert spread(np.ones((8, 2))) == 0.0
    assert spread(np.zeros((8, 2))) == 0.0
    assert spread(100 + around_origin) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("devices", [1, 8])
def test_embedding_rows_do_not_see_each_other(devices):
    encoder, state = _encoder(jnp.float32), _initial(jnp.float32, optax.sgd(0.1))
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    embed = DataParallel.create(devices).compile_map(functools.partial(embed_step, encoder=encoder))
    images = _batch()["image"]
    together = embed(variables, images)
    other = np.concatenate([images[:8], 255 - images[8:]])
    np.testing.assert_allclose(together[:8], embed(variables, other)[:8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("devices", "pieces"), [(1, 4), (2, 4), (8, 2)])
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(devices, pieces):
    whole, whole_metrics = _after(1, jnp.float32, make=_frozen)
    parts, parts_metrics = _after(devices, jnp.float32, make=_frozen, pieces=pieces)
    start = _initial(jnp.float32, optax.sgd(0.1), _frozen)
    moved = jax.tree.map(np.subtract, whole.params, start.params)
    moved_parts = jax.tree.map(np.subtract, parts.params, start.params)
    assert _distance(moved_parts, moved) < 1e-5
    assert _distance(parts.batch_stats, start.batch_stats) == 0
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-5, err_msg=name)


def test_pieces_with_live_batch_normalisation_are_devices_that_do_not_share_theirs():
    """Against vmap over four "devices" whose statistics are not synchronised, while their loss is."""
    state, batch = _initial(jnp.float32, optax.sgd(0.1)), _batch()
    bound = functools.partial(objective, loss=losses.create("hap2s_e"))
    encoder = _encoder(jnp.float32, axis_name=None)

    def on_a_device(images, labels):
        def plain(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            output, updates = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
            return bound(output, labels, {}, AXIS)[0], updates["batch_stats"]

        return jax.value_and_grad(plain, has_aux=True)(state.params["encoder"])

    rows = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), (batch["image"], batch["label"]))
    (loss, batch_stats), grads = jax.vmap(on_a_device, axis_name=AXIS)(*rows)
    stepped, metrics = _after(1, jnp.float32, pieces=4)
    moved = jax.tree.map(np.subtract, stepped.params["encoder"], state.params["encoder"])
    assert _distance(moved, jax.tree.map(lambda g: -0.1 * g.mean(0), grads)) < 1e-4
    assert _distance(stepped.batch_stats, jax.tree.map(lambda x: x.mean(0), batch_stats)) < 1e-6
    np.testing.assert_allclose(metrics["loss"], loss[0], rtol=1e-5)


def test_pieces_need_less_memory():
    def temporary_bytes(pieces):
        step = functools.partial(
            train_step,
            encoder=_frozen(jnp.float32),
            objective=functools.partial(objective, loss=losses.create("hap2s_e")),
            optimizer=optax.sgd(0.1),
            axis_name=AXIS,
            pieces=pieces,
        )
        parallel = DataParallel.create(1)
        start = _initial(jnp.float32, optax.sgd(0.1), _frozen)
        compiled = parallel.compile_step(step).lower(start, parallel.split(_batch())).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8) < 0.3 * temporary_bytes(1)
