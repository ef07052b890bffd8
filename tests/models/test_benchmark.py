"""The encoder benchmark runs and prints a line for each measurement."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_benchmark_runs():
    command = "experiments/benchmark_encoders.py --names=resnet10 --batch=2 --size=64 --rounds=2 --threads=1"
    done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| resnet10 | forward | ")
    assert lines[3].startswith("| resnet10 | train step | ")
