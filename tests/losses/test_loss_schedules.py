"""Hyperparameters annealed over the steps."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_batches import clustered
from loss_oracles import hap2s

from hap2s_jax import losses
from hap2s_jax.errors import UserError
from hap2s_jax.training.objective import objective

STEPS = [0, 20, 40, 60, 80, 99]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [2, 2, 2, 2, 2, 2]),
        ("linear", [2, 2, 1.625, 1.25, 0.875, 0.5]),
        ("cosine", [2, 2, 2 - 1.5 * 0.14644661, 2 - 0.75, 2 - 1.5 * 0.85355339, 0.5]),
        ("exponential", [2, 2, 2**0.5, 1, 0.5**0.5, 0.5]),
    ],
)
def test_values(name, expected):
    loss = losses.create("hap2s_e", sigma=2.0)
    schedule = losses.create_schedule(
        loss, steps=100, hyperparameter="sigma", name=name, final=0.5, begin=0.2, end=1.0
    )
    got = [float(schedule(jnp.asarray(s))["sigma"]) for s in [*STEPS[:-1], 100]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert losses.create_schedule(loss, steps=100) is None


def test_training_sees_the_value_of_the_step_and_compiles_once():
    x, labels = clustered(70, [3, 4, 2])
    loss = losses.create("hap2s_e")
    schedule = losses.create_schedule(loss, steps=10, hyperparameter="sigma", name="exponential", final=5.0)
    bound = functools.partial(objective, loss=loss, schedule=schedule)
    traces = []

    @jax.jit
    def of(x, step):
        traces.append(1)
        per_device = jax.vmap(
            lambda x, y: bound(types.SimpleNamespace(embedding=x), y, {}, "d", step), axis_name="d"
        )
        return per_device(x[None], labels[None])

    for step in (0, 5, 10):
        value, stats = of(x, jnp.asarray(step))
        sigma = 0.5 * 10 ** (step / 10)
        np.testing.assert_allclose(value[0], hap2s(x, labels, parameter=sigma)[0], rtol=1e-5)
        np.testing.assert_allclose(stats["loss_sigma"][0], sigma, rtol=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("name", losses.names())
def test_every_number_of_every_loss_may_change(name):
    loss = losses.create(name)
    params = {"params": loss.init_params(jax.random.key(0), 2, 4)} if loss.has_params else {}
    numbers = [key for key, value in loss.hyperparameters.items() if isinstance(value, float)]
    for key in numbers:
        schedule = losses.create_schedule(loss, steps=10, hyperparameter=key, final=0.7)
        shape = jax.eval_shape(
            lambda step, s=schedule: loss(
                np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), **params, **s(step)
            ),
            jnp.zeros((), jnp.int32),
        )
        assert shape.shape == ()


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (r"loss_schedule.name 'linea'; did you mean 'linear'", {"name": "linea"}),
        ("is 'sigmma' .did you mean 'sigma'", {"hyperparameter": "sigmma"}),
        ("is 'soft_margin'.*can change: sigma, margin", {"hyperparameter": "soft_margin"}),
        ("begin is 0.5 and end is 0.5", {"begin": 0.5, "end": 0.5}),
        ("final: sigma is -1.0; it should be positive", {"final": -1.0}),
        (
            "margin from 0.3 to -1.0 cannot change exp",
            {"hyperparameter": "margin", "name": "exponential", "final": -1},
        ),
    ],
)
def test_mistakes_are_one_clear_line(words, arguments):
    arguments = {"hyperparameter": "sigma", "steps": 10} | arguments
    with pytest.raises(UserError, match=words):
        losses.create_schedule(losses.create("hap2s_e"), **arguments)
