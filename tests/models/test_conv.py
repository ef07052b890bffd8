"""The convolution against SciPy-free sums in float64, on both of its paths."""

import jax
import numpy as np
import pytest

from hap2s_jax.models.conv import Conv


def convolve_by_hand(x, kernel, stride):
    """Six loops' worth of a zero-padded correlation, one output pixel at a time."""
    n, height, width, _ = x.shape
    side = kernel.shape[0]
    out = np.zeros((n, -(-height // stride), -(-width // stride), kernel.shape[-1]))
    for row, column in np.ndindex(out.shape[1:3]):
        for i, j in np.ndindex(side, side):
            y, z = row * stride + i - side // 2, column * stride + j - side // 2
            if 0 <= y < height and 0 <= z < width:
                out[:, row, column] += x[:, y, z].astype(np.float64) @ kernel[i, j].astype(np.float64)
    return out


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 5), (3, 4), (7, 6)])
@pytest.mark.parametrize(("kernel", "features"), [(1, 2), (1, 4), (3, 4), (7, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_matches_a_loop_and_so_does_its_gradient(shape, kernel, features, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    module = Conv(features, kernel, stride)
    weights = rng.normal(size=(kernel, kernel, 3, features)).astype(np.float32)

    def run(x, weights):
        return module.apply({"params": {"kernel": weights}}, x)

    y = jax.jit(run)(x, weights)
    np.testing.assert_allclose(y, convolve_by_hand(x, weights, stride), rtol=1e-4, atol=1e-4)

    # Linear in each argument: the gradient of <y, cotangent> along a direction is the map of that direction.
    cotangent = rng.normal(size=y.shape).astype(np.float32)
    to_x, to_weights = jax.jit(jax.grad(lambda x, w: (run(x, w) * cotangent).sum(), argnums=(0, 1)))(
        x, weights
    )
    along = rng.normal(size=x.shape).astype(np.float32)
    expected = (convolve_by_hand(along, weights, stride) * cotangent).sum()
    np.testing.assert_allclose((to_x * along).sum(), expected, rtol=1e-3, atol=1e-3)
    along = rng.normal(size=weights.shape).astype(np.float32)
    expected = (convolve_by_hand(x, along, stride) * cotangent).sum()
    np.testing.assert_allclose((to_weights * along).sum(), expected, rtol=1e-3, atol=1e-3)
