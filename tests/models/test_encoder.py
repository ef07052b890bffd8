"""Shapes, dtypes, input range, head variants, and the same gradients on one device as on two."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hap2s_jax import models
from hap2s_jax.training.optimizer import create_optimizer, matches

SMALL = {"width": 8, "embedding_dim": 16, "last_stride": 1}


def pixels(n=4, size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def run(function, *args):
    """Jitted, but compiled without optimisation: these graphs take long to optimise and a moment to run."""
    compiled = (
        jax.jit(function).lower(*args).compile(compiler_options={"xla_backend_optimization_level": "0"})
    )
    return compiled(*args)


def build(name="resnet10", seed=0, **options):
    model = models.create(name, **{**SMALL, "stem": "small64", **options})
    return model, models.initialize(model, jax.random.key(seed), pixels(1))


@pytest.mark.parametrize(
    ("stem", "last_stride", "side"),
    [("imagenet", 2, 2), ("imagenet", 1, 4), ("small64", 2, 2), ("small64", 1, 4), ("small32", 1, 16)],
)
def test_the_last_map_has_the_documented_side(stem, last_stride, side):
    model = models.create("resnet10", width=8, stem=stem, last_stride=last_stride)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)

    def trunk_maps(images):
        _, state = model.init_with_output(
            jax.random.key(0), images, capture_intermediates=lambda module, _: module.name == "trunk"
        )
        return state["intermediates"]["trunk"]["__call__"][0]

    maps = jax.eval_shape(trunk_maps, images)
    assert len(maps) == 5
    assert maps[-1].shape == (2, side, side, 64)


def test_output_shapes_and_dtypes_in_bfloat16():
    model, variables = build("resnet26", dtype="bfloat16", bnneck=True, num_classes=7)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    output, state = run(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]), pixels())
    assert {leaf.dtype for leaf in jax.tree.leaves((output, state))} == {jnp.dtype("float32")}
    assert output.embedding.shape == output.neck.shape == (4, 16)
    assert output.features.shape == (4, 256)
    assert output.logits.shape == (4, 7)


def test_bytes_and_floats_in_the_same_range_give_the_same_embedding():
    model, variables = build()
    encode = jax.jit(lambda images: model.apply(variables, images).embedding)
    np.testing.assert_array_equal(encode(pixels()), encode(pixels().astype(np.float32)))


def test_imagenet_mean_becomes_zero_and_one_std_becomes_one():
    mean = np.array([123.675, 116.28, 103.53], np.float32)
    std = np.array([58.395, 57.12, 57.375], np.float32)
    images = np.stack([np.broadcast_to(mean, (2, 2, 3)), np.broadcast_to(mean + std, (2, 2, 3))])
    normalised = models.normalize_images(images)
    np.testing.assert_allclose(normalised[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(normalised[1], 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((4, 32, 32), np.uint8), ValueError, "shape (4, 32, 32)"),
        (np.zeros((4, 3, 32, 32), np.uint8), ValueError, "shape (4, 3, 32, 32)"),
        (np.zeros((4, 32, 32, 3), np.int32), TypeError, "dtype int32"),
    ],
)
def test_images_of_another_kind_are_refused(images, error, message):
    with pytest.raises(error) as caught:
        models.create("resnet10").init(jax.random.key(0), images)
    assert message in str(caught.value)


def test_normalised_embeddings_have_length_one_and_a_zero_row_a_finite_gradient():
    model, variables = build(normalize=True)
    np.testing.assert_allclose(
        np.linalg.norm(run(model.apply, variables, pixels()).embedding, axis=-1), 1.0, rtol=1e-5
    )
    x = jnp.array([[0.0, 0.0], [3.0, 4.0], [1e-30, 0.0]])
    np.testing.assert_allclose(models.l2_normalize(x)[:2], [[0.0, 0.0], [0.6, 0.8]], rtol=1e-6)
    assert np.isfinite(jax.jacobian(models.l2_normalize)(x)).all()


def test_no_parameter_has_an_analytically_zero_gradient():
    """Adam turns rounding noise in a gradient into full steps (the bias of an unnormalised embedding)."""
    for options in ({}, {"normalize": True}, {"hidden_dim": 12}, {"bnneck": True, "num_classes": 5}):
        model, variables = build(**options)

        def loss(params, model=model, variables=variables):
            output, _ = model.apply(
                {**variables, "params": params}, pixels(8), train=True, mutable=["batch_stats"]
            )
            x = output.embedding
            spread = jnp.sum(jnp.sin(jnp.sum(jnp.square(x[:, None] - x[None]), -1)))
            return spread if output.logits is None else spread + jnp.sum(jnp.sin(100 * output.logits[:, 0]))

        gradients = run(jax.grad(loss), variables["params"])
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
            assert float(jnp.abs(gradient).max()) > 1e-5, jax.tree_util.keystr(path)


def test_bnneck_compares_the_normalised_neck_at_test():
    model, variables = build(bnneck=True, num_classes=3)
    output = run(model.apply, variables, pixels())
    np.testing.assert_allclose(np.linalg.norm(output.retrieval, axis=-1), 1.0, rtol=1e-5)
    # Fresh running statistics are 0 and 1: the neck is the embedding itself.
    np.testing.assert_allclose(output.neck, output.embedding, rtol=1e-4)
    np.testing.assert_allclose(
        output.logits, output.neck @ variables["params"]["head"]["classifier"]["kernel"], rtol=1e-3, atol=1e-6
    )
    assert "bias" not in variables["params"]["head"]["neck_bn"]


def test_without_embedding_layer_the_features_are_the_embedding():
    model, variables = build(embedding_dim=0)
    output = run(model.apply, variables, pixels())
    np.testing.assert_array_equal(output.embedding, output.features)
    assert output.retrieval is output.embedding


def loss_and_gradients(model, variables, images, axis_name=None):
    def loss(params):
        output, state = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(jnp.sin(output.embedding)), state

    (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return (
        (value, state, gradients)
        if axis_name is None
        else jax.lax.pmean((value, state, gradients), axis_name)
    )


def test_two_devices_give_the_gradients_and_statistics_of_one():
    images = pixels(4, size=24)
    # In float64, where a wrong formula cannot hide behind what a small batch's normalisation makes of rounding.
    with jax.enable_x64(True):
        options = {"width": 4, "hidden_dim": 8, "dtype": "float64"}
        model, variables = build(**options)
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
        synced, _ = build(**options, axis_name="devices")
        single = run(lambda x: loss_and_gradients(model, variables, x), images)
        several = jax.pmap(
            lambda x: loss_and_gradients(synced, variables, x, "devices"),
            axis_name="devices",
            devices=jax.devices()[:2],
        )(images.reshape(2, 2, *images.shape[1:]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-8, atol=1e-10), single, several)


def test_rematerialisation_changes_no_value():
    images = pixels(4)
    plain, variables = build()
    remat, remat_variables = build(remat_stages=[1, 3])
    assert jax.tree.structure(variables) == jax.tree.structure(remat_variables)
    first = run(lambda x: loss_and_gradients(plain, variables, x), images)
    second = run(lambda x: loss_and_gradients(remat, variables, x), images)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(first[2]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), first, second)


def test_zero_init_residual_starts_each_block_as_its_shortcut():
    _, variables = build(zero_init_residual=True)
    block = variables["params"]["trunk"]["stage1_block1"]
    np.testing.assert_array_equal(block["bn2"]["scale"], 0.0)
    np.testing.assert_array_equal(block["bn1"]["scale"], 1.0)


def test_frozen_batch_norm_stays_over_ten_steps_of_an_optimizer_that_decays_everything():
    model, variables = build(freeze_bn_stats=True, freeze_bn_affine=True)
    optimizer = create_optimizer(
        "adamw", lambda _: 0.1, weight_decay=0.5, decay_biases=True, frozen=model.frozen_parameters
    )

    def ten_steps(variables):
        def step(_, carry):
            variables, opt_state = carry
            _, state, gradients = loss_and_gradients(model, variables, pixels(2))
            updates, opt_state = optimizer.update(gradients, opt_state, variables["params"])
            return {"params": optax.apply_updates(variables["params"], updates), **state}, opt_state

        return jax.lax.fori_loop(0, 10, step, (variables, optimizer.init(variables["params"])))[0]

    trained = run(ten_steps, variables)
    for path, before in jax.tree_util.tree_leaves_with_path(variables):
        after = trained
        for key in path:
            after = after[key.key]
        frozen = path[0].key == "batch_stats" or "bn" in path[-2].key
        assert np.array_equal(before, after) == frozen, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_what_is_frozen_is_the_trunks_scales_and_biases(name):
    model = models.create(name, hidden_dim=16, bnneck=True, freeze_bn_affine=True)
    params = jax.eval_shape(model.init, jax.random.key(0), pixels(1, 32))["params"]
    frozen = matches(params, model.frozen_parameters)
    for path, is_frozen in jax.tree_util.tree_leaves_with_path(frozen):
        assert is_frozen == (path[0].key == "trunk" and path[-1].key in ("scale", "bias")), path
    assert models.create(name, freeze_bn_stats=True).frozen_parameters == ()


@pytest.mark.parametrize("kind", ["gap", "gem", "gap+gmp"])
def test_pooling_against_numpy(kind):
    from hap2s_jax.models.pooling import Pooling

    x = np.abs(np.random.default_rng(0).normal(size=(2, 3, 4, 5))).astype(np.float32)
    pooled, _ = Pooling(kind).init_with_output(jax.random.key(0), x)
    flat = x.astype(np.float64).reshape(2, 12, 5)
    expected = {
        "gap": flat.mean(1),
        "gem": np.cbrt((flat**3).mean(1)),
        "gap+gmp": flat.mean(1) + flat.max(1),
    }[kind]
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)


def test_the_gradient_of_a_maximum_goes_to_its_first_place():
    from hap2s_jax.models.pooling import Pooling

    x = np.random.default_rng(0).integers(0, 5, (2, 3, 4, 5)).astype(np.float32)  # with ties
    gradient = jax.grad(lambda x: Pooling("gap+gmp").apply({}, x).sum())(x)
    expected = np.full((2, 12, 5), 1 / 12)
    np.put_along_axis(expected, x.reshape(2, 12, 5).argmax(1)[:, None], 13 / 12, axis=1)
    np.testing.assert_allclose(gradient, expected.reshape(x.shape), rtol=1e-6)


def test_gem_of_a_dead_map_has_a_finite_gradient():
    from hap2s_jax.models.pooling import Pooling

    module = Pooling("gem")
    x = jnp.zeros((1, 2, 2, 3))
    variables = module.init(jax.random.key(0), x)
    gradients = jax.grad(lambda v, x: module.apply(v, x).sum(), argnums=(0, 1))(variables, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("check_vma", [False, True])
def test_own_rules_hold_inside_shard_map(check_vma):
    """Two devices give one's gradients, and strict promotion and NaN checks find nothing."""
    images = pixels(4, size=16)
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        options = {"width": 2, "embedding_dim": 4, "stem": "imagenet", "pooling": "gem", "dtype": "float64"}
        model, variables = build("resnet10", **options)
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
        synced, _ = build("resnet10", **options, axis_name="d")
        with jax.debug_nans(True):
            single = run(lambda x: loss_and_gradients(model, variables, x), images)

        def on_a_device(images):
            value, state, gradients = loss_and_gradients(synced, variables, images, "d")
            # Under check_vma gradients of what is replicated arrive summed.
            return value, state, jax.tree.map(lambda g: g / 2, gradients) if check_vma else gradients

        mesh = jax.make_mesh(
            (2,), ("d",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,)
        )
        spec = jax.sharding.PartitionSpec
        several = run(
            jax.shard_map(on_a_device, mesh=mesh, in_specs=spec("d"), out_specs=spec(), check_vma=check_vma),
            images,
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), single, several)


def test_it_says_whether_a_mean_over_views_has_length_one():
    """`run.evaluator.embedding_function` asks for these two, of anybody's encoder."""
    assert models.create("resnet10", normalize=True).normalize
    assert models.create("resnet10", bnneck=True).bnneck
    assert not models.create("resnet10").normalize
