import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax.distributed import devices
from hap2s_jax.distributed.devices import AXIS, DataParallel, use_cores
from hap2s_jax.errors import UserError


def _step(state, batch):
    total = jax.lax.psum(jnp.sum(batch["x"]), AXIS)
    return {"sum": state["sum"] + total}, {"total": total, "devices": jax.lax.psum(1, AXIS)}


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_step_sees_the_whole_batch_on_any_number_of_devices(devices):
    parallel = DataParallel.create(devices)
    step = parallel.compile_step(_step)
    state = parallel.replicate({"sum": jnp.zeros(())})
    for _ in range(3):
        state, metrics = step(state, parallel.split({"x": np.arange(16.0, dtype=np.float32)}))
    assert float(state["sum"]) == 3 * 120
    assert int(metrics["devices"]) == devices
    assert state["sum"].shape == ()


@pytest.mark.parametrize("devices", [1, 8])
def test_the_state_is_donated(devices):
    parallel = DataParallel.create(devices)
    step = parallel.compile_step(lambda s, b: (s + jax.lax.psum(jnp.sum(b), AXIS), {}))
    state = parallel.replicate(jnp.zeros((1000,)))
    new_state, _ = step(state, parallel.split(np.ones((8,), np.float32)))
    jax.block_until_ready(new_state)
    assert state.is_deleted()
    # Its outputs go in again as they come out.
    newest, _ = step(new_state, parallel.split(np.ones((8,), np.float32)))
    np.testing.assert_array_equal(newest, 16)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_map_keeps_rows_in_order(devices):
    parallel = DataParallel.create(devices)
    rows = np.arange(32, dtype=np.float32).reshape(16, 2)
    out = parallel.compile_map(lambda variables, x: variables * x)(jnp.float32(2), rows)
    np.testing.assert_array_equal(out, 2 * rows)
    assert len(out.sharding.device_set) == devices


def test_uneven_batches_and_missing_devices_are_refused():
    with pytest.raises(UserError, match=r"is 60; it should be 56 or 64, to divide over 8 devices"):
        DataParallel.create(8).check_batch(60)
    with pytest.raises(
        UserError,
        match=r"batch.pieces is 3; it should divide a device's share, 8 images \(64 over 8 devices\)",
    ):
        DataParallel.create(8).check_batch(64, pieces=3)
    with pytest.raises(UserError, match="num_devices is 9; it should be 1 to 8, the number of cpu devices"):
        DataParallel.create(9)
    with pytest.raises(UserError, match="num_devices is 0"):
        DataParallel.create(0)


def test_only_several_cpu_devices_must_be_waited_for():
    assert DataParallel.create(8).must_wait
    assert not DataParallel.create(1).must_wait


@pytest.mark.parametrize(
    ("batch", "cores", "num_devices", "expected"),
    [
        (64, 2, None, 2),
        (64, 16, None, 4),
        (60, 16, None, 3),
        (8, 2, None, 1),
        (64, 1, None, 1),
        (64, 2, 8, 8),
    ],
)
def test_a_cpu_is_split_into_devices_of_a_core_each(monkeypatch, batch, cores, num_devices, expected):
    made = {}
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(devices, "usable_cores", lambda: cores)
    monkeypatch.setattr(jax.config, "update", made.__setitem__)
    use_cores(batch, num_devices)
    assert made == {"jax_num_cpu_devices": expected}


def test_devices_that_are_set_or_known_already_are_left_alone(monkeypatch):
    before = jax.config.jax_num_cpu_devices
    use_cores(64)
    monkeypatch.delenv("XLA_FLAGS")
    use_cores(64)
    assert (len(jax.devices()), jax.config.jax_num_cpu_devices) == (8, before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_memory_that_is_freed_is_kept_on_a_cpu():
    code = """
import resource
from hap2s_jax.distributed.devices import DataParallel

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(24 * 2**20) for _ in range(4)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

DataParallel.create()
faults(), faults()
print(faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 24 * 2**20 / 4096
