import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from hap2s_jax import losses
from hap2s_jax.training.objective import objective

LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 0], np.int32)


@struct.dataclass
class Output:
    embedding: jax.Array
    neck: jax.Array | None = None


def _output(neck):
    rng = np.random.default_rng(0)
    embedding = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)
    return Output(embedding, 2 * embedding + 1 if neck else None)


def _over_devices(function, tree, devices):
    split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), tree)
    return jax.vmap(function, axis_name="d", out_axes=None)(split)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("neck", [False, True])
def test_the_sum_of_both_losses_the_second_on_the_neck(devices, neck):
    metric, second = losses.create("hap2s_e"), losses.create("softmax")
    params = {"auxiliary": second.init_params(jax.random.key(0), 3, 6)}
    output = _output(neck)
    both = functools.partial(objective, loss=metric, auxiliary=second, auxiliary_weight=0.25)

    def of(batch):
        value, stats = both(batch[0], batch[1], params, "d")
        return value, stats["metric_loss"], stats["auxiliary_loss"]

    value, first_part, second_part = _over_devices(of, (output, jnp.asarray(LABELS)), devices)
    alone = losses.hap2s_e_loss(output.embedding, LABELS)
    seen = np.asarray(output.neck if neck else output.embedding, np.float64)
    logits = seen @ np.asarray(params["auxiliary"]["kernel"]) + np.asarray(params["auxiliary"]["bias"])
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    identification = np.mean(-0.9 * logs[np.arange(8), LABELS] - 0.1 * logs.mean(1))
    np.testing.assert_allclose(first_part, alone, rtol=1e-5)
    np.testing.assert_allclose(second_part, identification, rtol=1e-5)
    np.testing.assert_allclose(value, alone + 0.25 * identification, rtol=1e-5)


def test_learnt_parts_get_their_gradient():
    second = losses.create("proxy_nca")
    params = {"auxiliary": second.init_params(jax.random.key(0), 3, 6)}

    def loss(params):
        of = functools.partial(objective, loss=losses.create("batch_hard"), auxiliary=second)
        return _over_devices(
            lambda b: of(b[0], b[1], params, "d")[0], (_output(False), jnp.asarray(LABELS)), 1
        )

    (gradient,) = jax.tree.leaves(jax.grad(loss)(params))
    assert np.all(np.linalg.norm(gradient, axis=1) > 0)


@pytest.mark.parametrize("name", ["random_triplet", "margin"])
def test_every_step_draws_anew_and_a_step_always_the_same(name):
    loss = losses.create(name)
    params = {} if not loss.has_params else {"metric": loss.init_params(jax.random.key(0), 3, 6)}

    def of(step):
        value = _over_devices(
            lambda b: objective(b[0], b[1], params, "d", step, loss=loss)[0],
            (_output(False), jnp.asarray(LABELS)),
            2,
        )
        return float(value)

    values = [of(step) for step in range(6)]
    assert len(set(values)) > 1
    assert values == [of(jnp.int32(step)) for step in range(6)]


def test_one_loss_alone_needs_no_params():
    def of(batch):
        return objective(batch[0], batch[1], {}, "d", loss=losses.create("hap2s_p"))[0]

    value = _over_devices(of, (_output(False), jnp.asarray(LABELS)), 2)
    np.testing.assert_allclose(value, losses.hap2s_p_loss(_output(False).embedding, LABELS), rtol=1e-5)
