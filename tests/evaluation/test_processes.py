"""Queries spread over processes: every one of them returns the whole."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from hap2s_jax.evaluation import retrieval

WORKER = """
import sys
import numpy as np
from hap2s_jax.distributed import devices
from hap2s_jax.evaluation import retrieval, symmetric
address, number, source, target = sys.argv[1:]
devices.initialize_processes(address, 2, int(number))
arrays = np.load(source)
found = retrieval.rank_matches(arrays["x"], arrays["labels"], cameras=arrays["cameras"], block_size=16)
symmetric._TILE, symmetric._DIMENSIONS = 32, 0  # several strips, of which each process takes its share
among_all = retrieval.rank_matches(arrays["x"], arrays["labels"], cameras=arrays["cameras"])
ranks = {"first": found.first_rank, "last": found.last_rank, "all_first": among_all.first_rank}
ranks["first_of_all"] = retrieval.rank_matches(arrays["x"], arrays["labels"], first_only=True).first_rank
ranks |= {"all_last": among_all.last_rank, "all_average": among_all.average_precision}
np.savez(target, average=found.average_precision, **ranks)
"""


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    rng = np.random.default_rng(0)
    labels, cameras = rng.integers(0, 9, 90), rng.integers(0, 3, 90)
    labels[:2] = 50, 51  # without any match
    x = rng.normal(size=(90, 4)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x, labels=labels, cameras=cameras)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(i), tmp_path / "in.npz", tmp_path / f"{i}.npz"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    alone = retrieval.rank_matches(x, labels, cameras=cameras, block_size=16)
    first_of_all = retrieval.rank_matches(x, labels).first_rank
    for i in range(2):
        found = np.load(tmp_path / f"{i}.npz")
        np.testing.assert_array_equal(found["first_of_all"], first_of_all)
        np.testing.assert_array_equal(found["first"], alone.first_rank)
        np.testing.assert_array_equal(found["all_first"], alone.first_rank)
        np.testing.assert_array_equal(found["all_last"], alone.last_rank)
        np.testing.assert_allclose(found["all_average"], alone.average_precision, atol=1e-6)
        np.testing.assert_array_equal(found["last"], alone.last_rank)
        np.testing.assert_array_equal(found["average"], alone.average_precision)
