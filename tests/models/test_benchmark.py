"""The encoder benchmark runs and prints a line for each measurement."""

import subprocess
import sys

import pytest


def printed(arguments):
    command = f"experiments/benchmark_encoders.py --rounds=1 --threads=1 {arguments}"
    done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_benchmark_runs():
    _, _, forward, step = printed("--names=resnet10 --batch=2 --size=64")
    assert forward.startswith("| resnet10 | forward | ")
    assert step.startswith("| resnet10 | train step | ")


@pytest.mark.slow
def test_layers_and_instructions_are_listed():
    layers = printed("--names=emoji --batch=2 --size=32 --parts")[2:]
    assert [line for line in layers if "| 2 of 3 x 3 / 1 to 32, 2 x 8 x 8 x 32 |" in line]
    assert len(layers) == 17
    profile = printed("--names=emoji --batch=2 --size=32 --profile")
    assert profile[0].startswith("emoji: ")
    assert any("conv_general_dilated" in line for line in profile[4:])
