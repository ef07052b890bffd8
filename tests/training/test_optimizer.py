import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hap2s_jax.errors import UserError
from hap2s_jax.training.optimizer import OPTIMIZERS, create_optimizer, create_schedule, decays


def test_exponential_is_flat_then_falls_to_the_final_factor():
    # TriNet: 3e-4 up to step 15,000 of 25,000, then exponentially to 0.001 of it.
    schedule = create_schedule(
        "exponential", learning_rate=3e-4, steps=25_000, decay_from=0.6, final_factor=0.001
    )
    for step in (0, 7_000, 15_000):
        assert float(schedule(step)) == pytest.approx(3e-4)
    for step in (16_000, 20_000, 25_000):
        assert float(schedule(step)) == pytest.approx(3e-4 * 0.001 ** ((step - 15_000) / 10_000), rel=1e-5)


def test_cosine_with_warmup_against_the_formula():
    schedule = create_schedule("cosine", learning_rate=2.0, steps=110, warmup_steps=10, final_factor=0.1)
    rising = [float(schedule(s)) for s in range(11)]
    assert rising[0] > 0, "the first update must not be lost"
    assert np.all(np.diff(rising) > 0)
    assert rising[10] == pytest.approx(2.0)
    for step in (10, 35, 60, 110):
        share = (step - 10) / 100
        assert float(schedule(step)) == pytest.approx(
            0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi * share)), rel=1e-5
        )


def test_step_multiplies_at_each_boundary():
    schedule = create_schedule("step", learning_rate=1.0, steps=100, boundaries=(0.4, 0.7), step_factor=0.1)
    assert [round(float(schedule(s)), 6) for s in (0, 39, 41, 69, 71, 99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_constant_stays():
    schedule = create_schedule("constant", learning_rate=0.5, steps=10)
    assert float(schedule(0)) == float(schedule(1000)) == 0.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name):
    params = {"kernel": jnp.full((4, 3), 2.0), "bias": jnp.full((3,), 2.0)}
    optimizer = create_optimizer(name, optax.constant_schedule(0.01), weight_decay=1e-3, clip_norm=5.0)
    state = optimizer.init(params)

    def loss(p):
        return sum(float(jnp.sum(x**2)) for x in p.values())

    before = loss(params)
    for _ in range(5):
        updates, state = optimizer.update({k: 2 * x for k, x in params.items()}, state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params) < before


def test_decay_spares_biases_and_scales():
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones((2,)), "bias": jnp.ones((2,))}
    assert decays(params) == {"kernel": True, "scale": False, "bias": False}
    zero = {k: jnp.zeros_like(x) for k, x in params.items()}
    for name in ("adamw", "sgd"):
        optimizer = create_optimizer(name, optax.constant_schedule(0.1), weight_decay=0.5)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
        np.testing.assert_array_equal(updates["scale"], 0)
        np.testing.assert_array_equal(updates["bias"], 0)


def test_clipping_bounds_the_gradient_that_sgd_sees():
    params = {"x": jnp.zeros((2,))}
    optimizer = create_optimizer("sgd", optax.constant_schedule(1.0), clip_norm=1.0, momentum=0.0)
    updates, _ = optimizer.update({"x": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["x"], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: create_optimizer("adanw", optax.constant_schedule(1.0)), "did you mean 'adamw'"),
        (lambda: create_schedule("cosin", learning_rate=1.0, steps=10), "did you mean 'cosine'"),
        (
            lambda: create_schedule("cosine", learning_rate=1.0, steps=10, warmup_steps=11),
            "warmup_steps is 11",
        ),
    ],
)
def test_mistakes_are_one_line(call, says):
    with pytest.raises(UserError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
