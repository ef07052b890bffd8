"""The main job, larger: configs/emoji.py:gpu to its end, one seed after the other."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerator_parts.record import Record

CONFIG, TOY_CONFIG = "configs/emoji.py:gpu", "configs/emoji.py:tiny"
# A smaller encoder still, on smaller images, than the tiny config has.
TOY = {"data.image_size": (32, 32), "encoder.stem": "small32", "encoder.width": 4, "num_devices": 1}
GOAL = 0.60  # cross-vendor mAP
_ENDING = 5.0  # seconds that are kept for reading what an interrupted run has written


def run(record: Record, seeds: Sequence[int]) -> None:
    """A run for each seed, in a process of its own as a user would start it."""
    for seed in seeds[:1] if record.toy else seeds:
        with record.trying(f"seed {seed}", seconds=5.0 if record.toy else 60.0):
            _seed(record, seed)


def _seed(record: Record, seed: int) -> None:
    config = TOY_CONFIG if record.toy else CONFIG
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hap2s_jax.main", f"--config={config}", f"--config.seed={seed}"]
        # What the untrained encoder retrieves is known from the CPU, and nobody will look at the curves.
        command += ["--config.evaluate.untrained=false", "--config.log.tensorboard=false"]
        command += [f"--workdir={folder}/run"]
        if record.toy:
            command += [f"--config.{key}={value}" for key, value in TOY.items()]
        began, output = time.perf_counter(), Path(folder) / "output"
        with output.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            try:
                process.wait(timeout=record.left - _ENDING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        figures = {"seconds": round(time.perf_counter() - began, 1), "exit_status": process.returncode}
        if process.returncode:
            figures["output"] = output.read_text()[-2000:]
        _write(record, seed, Path(folder) / "run", figures)


def _write(record: Record, seed: int, workdir: Path, figures: dict[str, Any]) -> None:
    """The results of a run, or how far it came."""
    log = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    rates = sorted(line["train/images_per_second"] for line in lines if "train/images_per_second" in line)
    if rates:
        figures["images_per_second"] = rates[len(rates) // 2]
    curve = [line for line in lines if any(key.startswith("validation/") for key in line)]
    figures["log"] = {"validation": curve, "last": lines[-1:]}
    results = workdir / "results.json"
    if results.is_file():
        found = json.loads(results.read_text())
        figures["mAP"] = found["test"]["mAP"]
        figures["results"] = found
        record.row(f"seed {seed}", {} if record.toy else {"mAP": (">=", GOAL)}, **figures)
    else:
        record.row(f"seed {seed}, interrupted", **figures)
