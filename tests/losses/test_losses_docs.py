"""The docs' own loss runs, and the docs name every loss."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_batches import clustered
from loss_oracles import distance

from hap2s_jax import losses
from hap2s_jax.losses import registry

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
OWN_WEIGHTING, OWN_STEP, OWN_LOSS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_first_example():
    scope: dict = {}
    first = PAGE[: PAGE.index("Embeddings are `[n, d]`")]
    exec("\n".join(line[4:] for line in first.splitlines() if line.startswith("    ")), scope)
    assert scope["loss"] > 0
    assert scope["gradient"].shape == (16, 32)


def test_own_weighting():
    scope: dict = {}
    exec(OWN_WEIGHTING, scope)
    x, terms = np.asarray(scope["x"], np.float64), []
    for a, positive, negatives in ((0, 1, (2, 3)), (1, 0, (2, 3)), (2, 3, (0, 1)), (3, 2, (0, 1))):
        gaps = np.array([distance(x[a], x[k]) for k in negatives])
        weights = np.exp(-(gaps**2) / 0.5)
        terms.append(max(0.0, distance(x[a], x[positive]) - weights @ gaps / weights.sum() + 0.3))
    np.testing.assert_allclose(scope["loss"], np.mean(terms), rtol=1e-4)


@pytest.mark.eight_devices
def test_own_step_has_the_gradient_of_the_whole_batch():
    scope: dict = {}
    exec(OWN_STEP, scope)
    expected = jax.value_and_grad(
        lambda params: losses.hap2s_e_loss(np.asarray(scope["images"]) @ params, np.asarray(scope["labels"]))
    )(jnp.eye(32, 16))
    assert jax.device_count() == 8
    np.testing.assert_allclose(scope["value"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(scope["gradient"], expected[1], atol=1e-6)


def test_own_loss_has_a_name_once_it_is_registered(monkeypatch):
    scope: dict = {}
    exec(OWN_LOSS, scope)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    losses.register("ratio", scope["ratio_loss"])
    x, labels = clustered(60, [3, 4, 1])
    named = losses.create("ratio", margin=0.4)
    assert named.hyperparameters == {"margin": 0.4}
    np.testing.assert_allclose(
        named(x, labels, params=None, with_stats=False), scope["ratio_loss"](x, labels, margin=0.4)
    )


def test_own_loss_in_ten_lines():
    assert len([line for line in OWN_LOSS.splitlines() if line.strip() and "import" not in line]) <= 10
    scope: dict = {}
    exec(OWN_LOSS, scope)
    x, labels = clustered(60, [3, 4, 1])
    terms = []
    for a in range(8):
        near = [distance(x[a], x[k]) for k in range(8) if k != a and labels[k] == labels[a]]
        far = [distance(x[a], x[k]) for k in range(8) if labels[k] != labels[a]]
        if near:
            terms.append(max(max(near) / min(far) - 0.5, 0))
    for block_size in ("never", 3):
        value, gradient = jax.value_and_grad(
            lambda x, b=block_size: scope["ratio_loss"](x, labels, block_size=b)
        )(x)
        np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
        assert np.isfinite(gradient).all()


def test_every_loss_is_on_the_page():
    assert all(f"`{name}" in PAGE for name in losses.names())
