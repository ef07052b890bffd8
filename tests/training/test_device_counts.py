"""The promise that a result does not depend on how many devices, or processes, computed it."""

from __future__ import annotations

import json
import sys

import jax
import many_steps
import numpy as np
import peers
import pytest

from hap2s_jax.data.pk import PKPlan
from hap2s_jax.data.source import Subset


@pytest.fixture(scope="module")
def on_one_device():
    return many_steps.run(1)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_fifty_steps_in_float64(on_one_device, devices):
    losses, state = many_steps.run(devices)
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), state, on_one_device[1])
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_fifty_steps_in_two_processes_of_four_devices(on_one_device, tmp_path):
    with peers.free_address() as address:
        commands = [[sys.executable, many_steps.__file__, address, "2", str(i)] for i in range(2)]
        workers = peers.start(commands, tmp_path)
        peers.wait(workers, timeout=900)
    for worker in workers:
        assert worker.code == 0, worker.err
        np.testing.assert_allclose(json.loads(worker.out.splitlines()[-1]), on_one_device[0], rtol=1e-8)


@pytest.mark.parametrize("hosts", [2, 4])
def test_batches_are_the_same_bit_for_bit_on_any_number_of_hosts(hosts):
    from hap2s_jax.data import emoji
    from hap2s_jax.data.augment import Augmentation
    from hap2s_jax.data.batches import Reading, train_batches

    train = Subset(emoji.load().train, np.arange(300))
    plan = PKPlan(train.labels, classes_per_batch=8, images_per_class=2, seed=0)

    def batches(host_index, host_count):
        made = train_batches(
            train,
            plan,
            Reading((32, 32), host_index, host_count),
            augmentation=Augmentation(crop="resized", rotate=10.0, flip=True),
            seed=0,
            start_step=5,
        )
        return [next(made) for _ in range(3)]

    whole = batches(0, 1)
    shares = [batches(i, hosts) for i in range(hosts)]
    for step, batch in enumerate(whole):
        for name, value in batch.items():
            joined = np.concatenate([share[step][name] for share in shares])
            np.testing.assert_array_equal(joined, value)
