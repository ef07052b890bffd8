"""Batch normalisation against NumPy, over devices, frozen, and far from the origin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from hap2s_jax.models.norm import BatchNorm


def apply(module, x, variables=None, train=True):
    variables = module.init(jax.random.key(0), x, train=train) if variables is None else variables
    return module.apply(variables, x, train=train, mutable=["batch_stats"])


def numpy_batch_norm(x):
    """In float64, with torch's definition of both variances."""
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    normalised = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    return normalised, 0.1 * x.mean(0), 0.9 + 0.1 * x.var(0, ddof=1)


def sample(shape=(4, 3, 5, 6), loc=2.0, seed=0):
    return np.random.default_rng(seed).normal(loc, 3.0, shape).astype(np.float32)


def test_training_mode_matches_numpy():
    x = sample()
    y, state = apply(BatchNorm(), x)
    expected, mean, var = numpy_batch_norm(x)
    np.testing.assert_allclose(np.reshape(y, expected.shape), expected, atol=2e-5)
    np.testing.assert_allclose(state["batch_stats"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"], var, rtol=1e-5)


def test_devices_share_the_statistics_of_the_global_batch():
    x = sample((8, 2, 6))
    module = BatchNorm(axis_name="devices")
    variables = module.init(jax.random.key(0), x[0], train=True)
    y, state = jax.pmap(
        lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"]), axis_name="devices"
    )(x)
    expected, mean, var = numpy_batch_norm(x)
    np.testing.assert_allclose(np.reshape(y, expected.shape), expected, atol=2e-5)
    np.testing.assert_allclose(state["batch_stats"]["mean"][5], mean, rtol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"][5], var, rtol=1e-5)


def test_variance_survives_a_far_mean_once_the_running_mean_is_near():
    x = sample((4096, 2), loc=1e4, seed=1)
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x, train=True)
    variables["batch_stats"]["mean"] = jnp.full(2, 1e4)
    y, _ = apply(module, x, variables)
    np.testing.assert_allclose(np.std(y, axis=0), 1.0, rtol=1e-4)


def test_evaluation_mode_uses_the_running_statistics_and_leaves_them():
    x = sample()
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x, train=False)
    variables["batch_stats"] = {"mean": jnp.full(6, 2.0), "var": jnp.full(6, 9.0)}
    y, state = apply(module, x, variables, train=False)
    np.testing.assert_allclose(y, (x - 2.0) / np.sqrt(9.00001), rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


def test_frozen_statistics_and_frozen_affine_are_separate():
    x = sample()

    def gradients_and_state(**options):
        module = BatchNorm(**options)
        variables = module.init(jax.random.key(0), x, train=True)

        def loss(params):
            y, state = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.sum(y**3), state

        gradients, state = jax.grad(loss, has_aux=True)(variables["params"])
        return max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)), state["batch_stats"]["mean"]

    gradient, mean = gradients_and_state(freeze_stats=True)
    assert gradient > 0
    np.testing.assert_array_equal(mean, 0.0)
    gradient, mean = gradients_and_state(freeze_affine=True)
    assert gradient == 0.0
    assert np.all(np.abs(mean) > 0)


def test_bfloat16_in_float32_statistics():
    x = jnp.asarray(sample(), jnp.bfloat16)
    y, state = apply(BatchNorm(dtype=jnp.bfloat16), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(state["batch_stats"]["mean"], numpy_batch_norm(x)[1], rtol=1e-3)


def textbook(x, scale, bias):
    """Ioffe & Szegedy's formulas as they stand, for autodiff."""
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    return jax.nn.relu((x - mean) / jnp.sqrt(var + 1e-5) * scale + bias)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (8, 1, 1, 6), (2, 3, 6), (8, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_gradients_are_those_of_the_textbook(shape, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        x, weights = rng.normal(2.0, 3.0, shape).astype(dtype), rng.normal(size=shape).astype(dtype)
        x[..., 0] = 0.5  # a channel that is constant
        scale, bias = rng.uniform(0.5, 2, 6).astype(dtype), rng.uniform(0.1, 1, 6).astype(dtype)

        def normalise(x, scale, bias):
            variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
            return jax.nn.relu(BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])[0])

        stats = {"mean": np.full(6, 1.5, dtype), "var": np.ones(6, dtype)}
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
            value, pull = jax.vjp(normalise, x, scale, bias)
            found = pull(weights)
        expected, pull = jax.vjp(textbook, x, scale, bias)
        for a, b in zip((value, *found), (expected, *pull(weights)), strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(jnp.abs(b).max()))
        if (
            dtype == "float64"
        ):  # finite differences, forward mode too; what is constant bends too much for them
            x[..., 0] = x[..., 1]
            check_grads(normalise, (x, scale, bias), 1, rtol=1e-5)
