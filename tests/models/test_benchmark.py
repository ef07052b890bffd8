"""The encoder benchmark runs and prints a line for each measurement."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

from hap2s_jax.models.vit_families import VITS


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
    assert len(printed("--names=dinov2_vits14 --batch=1 --size=28 --parts")[2:]) == 6
    profile = printed("--names=emoji --batch=2 --size=32 --profile")
    assert profile[0].startswith("emoji: ")
    assert any("conv_general_dilated" in line for line in profile[4:])


def test_transformers_have_a_side_in_torch(monkeypatch, request):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(request.config.rootpath / "experiments"))
    theirs = importlib.import_module("bench.encoders").theirs
    for name in ("dinov2_vits14_reg", "vit_s16"):
        monkeypatch.setitem(VITS, name, dataclasses.replace(VITS[name], dim=12, depth=1))
        theirs(name, 1, (112, 112), "float32")["train step"]()
