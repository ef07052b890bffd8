import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hap2s_jax.errors import UserError
from hap2s_jax.training.optimizer import OPTIMIZERS, create_optimizer, create_schedule, decays, matches


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


def test_polynomial_of_power_one_is_a_line():
    schedule = create_schedule("polynomial", learning_rate=1.0, steps=100, final_factor=0.2)
    for step in (0, 25, 100):
        assert float(schedule(step)) == pytest.approx(1 - 0.8 * step / 100)


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
    learnt = {"metric": {"proxies": jnp.ones((2, 2))}, "auxiliary": {"centres": jnp.ones((2, 2))}}
    assert decays(learnt) == {"metric": {"proxies": True}, "auxiliary": {"centres": False}}
    zero = {k: jnp.zeros_like(x) for k, x in params.items()}
    for name in ("adamw", "sgd"):
        optimizer = create_optimizer(name, optax.constant_schedule(0.1), weight_decay=0.5)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
        np.testing.assert_array_equal(updates["scale"], 0)
        np.testing.assert_array_equal(updates["bias"], 0)


PARAMS = {
    "encoder": {
        "trunk": {"conv": {"kernel": jnp.ones((2, 2))}, "bn1": {"scale": jnp.ones(2), "bias": jnp.ones(2)}},
        "head": {"embedding": {"kernel": jnp.ones((2, 2))}},
    },
    "loss": {"auxiliary": {"kernel": jnp.ones((2, 3))}},
}
BN = "encoder/trunk/bn1"


@functools.cache
def _moved(name, steps=10, **settings):
    """What `steps` updates change, with some gradients, weight decay on everything and clipping."""
    optimizer = create_optimizer(
        name,
        optax.constant_schedule(0.1),
        **{"weight_decay": 0.1, "decay_biases": True, "clip_norm": 100.0, **settings},
    )

    @jax.jit
    def step(params, state, number):
        gradients = jax.tree.map(lambda x: jnp.cos(x + number + jnp.arange(x.size).reshape(x.shape)), params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for number in range(steps):
        params, state = step(params, state, number)
    return jax.tree.map(lambda a, b: np.asarray(a - b), params, PARAMS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_frozen_keeps_its_bits_whatever_the_optimizer_and_its_decay(name):
    moved = _moved(name, frozen=(BN,))
    for path, change in jax.tree_util.tree_leaves_with_path(moved):
        frozen = "bn1" in jax.tree_util.keystr(path)
        assert frozen == (not change.any()), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_a_factor_is_another_learning_rate(name):
    # One update, before the parameters part: what a tenth of the rate would have done, exactly.
    whole = _moved(name, steps=1)
    parted = _moved(name, steps=1, trunk_factor=0.25, loss_factor=4.0)
    trunk, head, loss = (
        (lambda t: t["encoder"]["trunk"]),
        (lambda t: t["encoder"]["head"]),
        (lambda t: t["loss"]),
    )
    for part, factor in ((trunk, 0.25), (head, 1.0), (loss, 4.0)):
        jax.tree.map(
            lambda a, b, f=factor: np.testing.assert_allclose(a, f * b, rtol=1e-5, atol=1e-6),
            part(parted),
            part(whole),
        )


def test_layers_learn_slower_the_sooner_they_see_an_image_and_wait_for_the_head():
    layers = {"encoder/trunk/conv": 0.25, BN: 0.5, "encoder/head": 1.0, "loss": 1.0}
    settings = {"trunk_factor": 0.5, "layers": tuple(layers)[:2], "layer_decay": 0.5}
    whole, parted = _moved("sgd", steps=1), _moved("sgd", steps=1, **settings)
    for path, factor in layers.items():
        factor *= 0.5 if "trunk" in path else 1
        part = functools.partial(functools.reduce, lambda tree, key: tree[key], path.split("/"))
        jax.tree.map(
            lambda a, b, f=factor: np.testing.assert_allclose(a, f * b, rtol=1e-5, atol=1e-6),
            part(parted),
            part(whole),
        )
    for steps in (3, 4):
        moved = _moved("adamw", steps=steps, head_steps=3)
        assert all(x.all() for x in jax.tree.leaves((moved["encoder"]["head"], moved["loss"])))
        assert all(x.any() == (steps > 3) for x in jax.tree.leaves(moved["encoder"]["trunk"]))


def test_a_trunk_of_factor_zero_stays():
    moved = _moved("adamw", trunk_factor=0.0, loss_factor=2.0)
    assert not any(x.any() for x in jax.tree.leaves(moved["encoder"]["trunk"]))
    assert all(x.all() for x in jax.tree.leaves((moved["encoder"]["head"], moved["loss"])))


def test_patterns_fit_whole_names_of_modules():
    def chosen(pattern):
        marked = jax.tree_util.tree_leaves_with_path(matches(PARAMS, [pattern]))
        return [path[-2].key for path, is_chosen in marked if is_chosen]

    assert chosen("encoder/trunk") == ["bn1", "bn1", "conv"]
    assert chosen("encoder/.*/bn[0-9]") == ["bn1", "bn1"]
    with pytest.raises(UserError, match="'encoder/tru' matches no parameter"):
        chosen("encoder/tru")
    with pytest.raises(UserError, match="not a regular expression"):
        chosen("encoder/(")


def test_clipping_bounds_the_gradient_that_sgd_sees():
    params = {"x": jnp.zeros((2,))}
    optimizer = create_optimizer("sgd", optax.constant_schedule(1.0), clip_norm=1.0, momentum=0.0)
    updates, _ = optimizer.update({"x": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["x"], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: create_optimizer("adanw", optax.constant_schedule(1.0)), "did you mean 'adamw'"),
        (
            lambda: create_optimizer("sgd", optax.constant_schedule(1.0), trunk_factor=-1),
            "trunk_factor is -1",
        ),
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
