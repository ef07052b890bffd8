"""Compiler options of training steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax.distributed import experimental
from hap2s_jax.distributed.devices import AXIS, DataParallel


def test_other_platforms_have_none():
    assert experimental.step_options("gpu") == experimental.step_options("tpu") == {}


def test_an_xla_without_the_option_has_none(monkeypatch):
    def refuse(*_, compiler_options):
        assert compiler_options
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")

    monkeypatch.setattr(experimental.jax, "jit", refuse)
    assert experimental.step_options.__wrapped__("cpu") == {}


@pytest.mark.parametrize("devices", [1, 2])
def test_steps_are_compiled_with_them(devices, monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("the option is for CPUs")
    monkeypatch.setattr(experimental, "step_options", lambda _: {"xla_no_such_option": "1"})
    parallel = DataParallel.create(devices)
    batch = parallel.split(np.ones((4, 3), np.float32))

    def step(state, batch):
        return state + jax.lax.psum(jnp.sum(batch), AXIS), jnp.zeros(())

    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        parallel.compile_step(step)(parallel.replicate(jnp.zeros(())), batch)
