"""The pooling of the stem against a loop: values, ties, borders, NaN, its gradient, and the devices' version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax.models import pooling


def by_hand(x, cotangent):
    """One window at a time; of equal places the first in reading order takes the gradient."""
    n, height, width, channels = x.shape
    y = np.zeros((n, (height + 1) // 2, (width + 1) // 2, channels))
    gradient = np.zeros(x.shape)
    for image, row, column, channel in np.ndindex(*y.shape):
        top, left = max(2 * row - 1, 0), max(2 * column - 1, 0)
        window = x[image, top : 2 * row + 2, left : 2 * column + 2, channel]
        place = np.unravel_index(window.argmax(), window.shape)
        y[image, row, column, channel] = window[place]
        gradient[image, top + place[0], left + place[1], channel] += cotangent[image, row, column, channel]
    return y, gradient


@pytest.mark.parametrize("pool", [pooling.max_pool, pooling._max_of_windows])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 6), (8, 5)])
def test_values_and_gradient_match_a_loop_with_ties(pool, shape):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 2, (2, *shape, 3)).astype(np.float32)
    y, pull = jax.vjp(pool, x)
    cotangent = rng.normal(size=y.shape).astype(np.float32)
    expected, gradient = by_hand(x, cotangent)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(pull(cotangent)[0], gradient, rtol=1e-6, atol=1e-6)


def test_forward_mode_vmap_and_narrow_types_agree():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8, 6, 4))
    pooled, tangent = jax.jvp(jax.vmap(pooling.max_pool), (x,), (2 * x,))
    np.testing.assert_array_equal(tangent, 2 * pooled)
    assert jax.vjp(pooling.max_pool, x[0].astype(jnp.bfloat16))[0].dtype == jnp.bfloat16


def test_nan_is_not_lost():
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 1, 1] = np.nan
    np.testing.assert_array_equal(np.isnan(pooling.max_pool(x)), np.ones((1, 2, 2, 1), bool))
