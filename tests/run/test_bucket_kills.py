"""Two processes whose run lives in a bucket, one of which is killed again and again, at random moments.

A drill of minutes, which the test suite leaves out:

    HAP2S_TEST_KILLS=20 python -m pytest -n0 -s tests/run/test_bucket_kills.py
"""

from __future__ import annotations

import os
import random
import sys
import time

import buckets
import jax
import numpy as np
import orbax.checkpoint as ocp
import peers
import pytest
from PIL import Image

import hap2s_jax
from hap2s_jax.data.places import place
from hap2s_jax.reporting.metric_log import read_metrics

KILLS = int(os.environ.get("HAP2S_TEST_KILLS", 0))
STEPS = 12 + 10 * KILLS
LONG = 3000
LEASE = 4.0
SETTINGS = {
    "steps": STEPS,
    "encoder.name": "small_encoder:make",
    "schedule.name": "constant",
    "batch.classes": 4,
    "evaluate.untrained": False,
    "evaluate.every_steps": 100_000,
    "checkpoint.every_steps": 3,
    "log.every_steps": 1,
}
# The command, with a lease that ends soon.
_MAIN = f"""
from hap2s_jax.reporting import lease
lease.SECONDS = {LEASE}
from hap2s_jax.main import main
raise SystemExit(main())
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images") / "data"
    rng = np.random.default_rng(0)
    for label in range(12):
        (root / f"class{label:02}").mkdir(parents=True)
        for number in range(4):
            image = rng.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(image).save(root / f"class{label:02}" / f"{number}.png")
    return root


def _start(images, workdir, address, folder):
    settings = [f"--config.{k}={v}" for k, v in {**SETTINGS, "data.data_dir": images}.items()]
    joint = [
        f"--workdir={workdir}",
        f"--coordinator={address}",
        "--num_processes=2",
        "--peer_timeout=20",
        "--join_timeout=90",
    ]
    command = [sys.executable, "-c", _MAIN, "--config=configs/folder.py:tiny,scratch", *joint, *settings]
    return peers.start([[*command, f"--process_id={number}"] for number in range(2)], folder, devices=2)


def _finish(images, workdir, folder):
    """Runs it to its end, or to where the two lose each other, as where the machine stands still; the exit codes."""
    with peers.free_address() as address:
        workers = _start(images, workdir, address, folder)
        peers.wait(workers, LONG)
    codes = [worker.code for worker in workers]
    assert {*codes} <= {0, 75, 76, -6}, "\n".join(worker.err[-3000:] for worker in workers)
    return codes


def _lines(workdir):
    timed = ("images_per_second", "input_wait_fraction")
    return [{k: v for k, v in r.items() if not k.endswith(timed)} for r in read_metrics(workdir)]


def _begun(workdir):
    """The steps of all checkpoints, whole or not."""
    return {int(p.name) for p in (place(workdir) / "checkpoints").iterdir() if p.name.isdigit()}


def _state(workdir):
    """Every array of the last checkpoint: weights, statistics, the optimiser's."""
    found = f"{workdir}/checkpoints/{STEPS}/state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(found).item_metadata.tree
        as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return jax.tree.leaves(reader.restore(found, args=ocp.args.PyTreeRestore(restore_args=as_arrays)))


def _has_begun(workdir, before, more):
    return max(_begun(workdir), default=0) >= max(before) + 3 * more


@pytest.mark.slow
@pytest.mark.skipif(not KILLS, reason="a drill of minutes; HAP2S_TEST_KILLS=20 runs it")
def test_whoever_is_killed_whenever_the_run_ends_bit_for_bit_as_if_never(images, tmp_path, monkeypatch):
    rng = random.Random(0)
    with buckets.serving(tmp_path / "server") as address:
        buckets.use(monkeypatch, address)
        bucket = buckets.new_bucket(address)
        there = f"{bucket}/killed"
        tries = (f"{bucket}/untouched{number}" for number in range(9))
        untouched = next(workdir for workdir in tries if _finish(images, workdir, tmp_path) == [0, 0])
        for number in range(KILLS):
            with peers.free_address() as coordinator:
                workers = _start(images, there, coordinator, tmp_path)
                before, wanted = _begun(there), rng.randrange(3)
                if wanted or number == 0:  # else while they start
                    while not _has_begun(there, before | {0}, wanted) and all(
                        w.code is None for w in workers
                    ):
                        time.sleep(0.2)
                time.sleep(rng.uniform(0, 3))
                victim = rng.randrange(2)
                workers[victim].process.kill()
                began = time.monotonic()
                peers.wait(workers, LONG)
                waited = time.monotonic() - began
                print(
                    f"killed {victim}, the other ended with {workers[1 - victim].code} after {waited:.1f} s, begun: "
                    f"{sorted(_begun(there))}",
                    flush=True,
                )
        while _finish(images, there, tmp_path) != [0, 0]:
            pass
        assert _lines(there) == _lines(untouched)
        assert [r["step"] for r in _lines(there) if "train/loss" in r] == list(range(1, STEPS + 1))
        ours, theirs = (hap2s_jax.load(w, own_code=True) for w in (there, untouched))
        assert ours.fingerprint == theirs.fingerprint
        pairs = list(zip(_state(there), _state(untouched), strict=True))
        assert len(pairs) > 10
        assert all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)
        assert not (place(there) / ".lock").exists()
