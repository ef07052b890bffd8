"""The kit for an accelerator runs on CPU: every part at toy size, what is interrupted, what a row says."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from device_tolerances import FACTORS

ROOT = pathlib.Path(__file__).parents[2]
TESTS = ROOT / "tests"
COMMAND = [sys.executable, "experiments/accelerator.py", "--toy"]


@pytest.fixture
def experiments(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.slow
def test_every_part_runs_at_toy_size(tmp_path):
    output = tmp_path / "out.jsonl"
    environment = {**os.environ, "XLA_FLAGS": ""}  # one device, as on the machine
    done = subprocess.run(
        [*COMMAND, f"--output={output}", "--commit=abc", "--minutes=14"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    found = rows(output)
    parts = {"right", "loss", "step", "evaluation", "job", "study"}
    ends = {row["part"]: row["status"] for row in found if row["row"] == "end"}
    assert ends == dict.fromkeys(parts, "finished"), done.stderr
    assert not [row for row in found if "exception" in row]
    starts = [row for row in found if row["row"] == "start"]
    assert {row["part"] for row in starts} == parts
    for row in starts:
        assert row["environment"]["commit"]
        assert "--commit=abc" in row["command"]
        assert row["environment"]["packages"]["jax"]
    right = [row for row in found if row["part"] == "right" and "met" in row]
    assert len(right) > 10
    assert all(all(row["met"].values()) for row in right), right
    methods = {row["method"] for row in found if row["part"] == "loss" and "method" in row}
    assert {"matmul", "hap2s", "matmul_tf32", "hap2s_tf32"} <= methods
    assert any("mAP" in row for row in found if row["part"] == "job")
    assert (tmp_path / "accelerator_cells.tar").is_file()
    assert "## study" in output.with_suffix(".md").read_text()
    assert "goals:" in done.stdout


@pytest.mark.slow
def test_what_was_measured_before_an_interruption_stays(tmp_path):
    output = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        [*COMMAND, "--only=evaluation,job", f"--output={output}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while len(rows(output)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=60) == 143
    found = rows(output)
    assert len(found) >= 3
    assert {row["part"] for row in found} == {"evaluation"}
    subprocess.run([*COMMAND, "--report", f"--output={output}"], cwd=ROOT, check=True, timeout=300)
    assert "## evaluation" in output.with_suffix(".md").read_text()


@pytest.mark.usefixtures("experiments")
def test_a_measurement_that_fails_is_a_row_and_the_part_goes_on(tmp_path):
    from accelerator_parts.record import OutOfTime, Record, report

    path = tmp_path / "out.jsonl"
    record = Record(path, "now", "loss", time.time() + 60, toy=False)
    record.row("start", command="accelerator.py", environment={"commit": "abc", "packages": {"jax": "1"}})
    with record.trying("too large"):
        raise MemoryError("no room")
    record.row("fast", {"ms": ("<=", 2.0), "gb": (">=", 1.0)}, ms=1.0, gb=0.5)
    with pytest.raises(OutOfTime, match="long one"), record.trying("long one", seconds=100):
        pass
    failed, fast = rows(path)[1:]
    assert failed["exception"] == "MemoryError: no room"
    assert fast["met"] == {"ms": True, "gb": False}
    said = report(path, "now")
    assert "loss, too large: failed, MemoryError: no room" in said
    assert "ms 1 (goal <= 2, met); gb 0.5 (goal >= 1, MISSED)" in said
    assert "commit abc; " in path.with_suffix(".md").read_text()


@pytest.mark.usefixtures("experiments")
def test_the_loss_by_hand_in_torch_is_ours():
    pytest.importorskip("torch")
    import jax
    from bench.losses import batch, method

    from hap2s_jax import hap2s_loss

    expected = jax.grad(hap2s_loss)(*batch(32, 8))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(method("torch", 32, 8, 1)().numpy(), expected, atol=1e-6)


@pytest.mark.usefixtures("experiments")
def test_a_run_that_takes_too_long_is_left_with_what_it_has_logged(tmp_path, monkeypatch):
    from accelerator_parts import job
    from accelerator_parts.record import Record

    def train(config, workdir):
        (pathlib.Path(workdir) / "metrics.jsonl").write_text('{"step": 2, "train/images_per_second": 7.0}\n')
        time.sleep(60)

    monkeypatch.setattr(job, "train", train)
    record = Record(tmp_path / "out.jsonl", "now", "job", time.time() + 6, toy=True)
    job.run(record, [3])
    (row,) = rows(record.path)
    assert row["row"] == "seed 3, interrupted"
    assert row["images_per_second"] == 7.0


@pytest.mark.usefixtures("experiments")
def test_coarse_products_are_those_of_their_own_rows_alone():
    from bench.losses import jax_function

    for name in ("hap2s", "hap2s_tf32", "matmul", "matmul_tf32", "hap2s"):
        function, given = jax_function(name, 64, 8)
        text = function.lower(*given).as_text()
        assert "dot_general" in text
        assert ("HIGHEST" in text) != name.endswith("_tf32"), name


def test_tolerances_are_of_tests_that_exist():
    for name in FACTORS:
        file, test = name.split("::")
        assert re.search(rf"^def {test}\(", (TESTS / file).read_text(), re.M), name
