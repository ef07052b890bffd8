"""The benchmark of the input pipeline runs and writes what it measured."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "experiments" / "benchmark_input.py"


@pytest.mark.slow
def test_the_tiny_benchmark_runs(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", f"--output={tmp_path / 'results.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["cub"]["throughput"]["decoding"]["images per processor second"] > 0
    assert set(results["market"]["throughput"]) == {"decoding", "kept"}
    assert "first_batch_seconds_at_step_1000000" in results["million"]
    assert results["packed"]["bucket"]["ratio to loose files"] > 0
    assert "| bucket, first |" in (tmp_path / "results.md").read_text()
    assert "| market, kept |" in (tmp_path / "results.md").read_text()
