"""The identification loss with and without bias, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax import losses


@pytest.mark.parametrize("use_bias", [True, False])
def test_smoothed_cross_entropy(use_bias):
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(6, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
    labels = np.array([0, 1, 2, 3, 4, 0])
    logits = x @ kernel + use_bias * bias
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = 0.8 * np.eye(5)[labels] + 0.2 / 5
    loss = losses.create("softmax", label_smoothing=0.2, use_bias=use_bias)
    value = loss(
        jnp.asarray(x, jnp.float32), labels, params={"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    )
    np.testing.assert_allclose(value, -(target * logs).sum(1).mean(), rtol=1e-5)
