"""The main job, larger: configs/emoji.py:gpu to its end, one seed after the other."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerator_parts.record import Record
from configs import emoji
from hap2s_jax.run.run import run as train

GOAL = 0.60  # cross-vendor mAP
# A smaller encoder still, on smaller images, than the tiny config has.
TOY = {"data.image_size": (32, 32), "encoder.stem": "small32", "encoder.width": 4, "num_devices": 1}
_ENDING = 5.0  # seconds that are kept for reading what an interrupted run has written


class _Interrupted(Exception):
    """The part's time is over."""


def run(record: Record, seeds: Sequence[int]) -> None:
    """A run for each seed, as `hap2s_jax.main` makes it."""
    for seed in seeds[:1] if record.toy else seeds:
        with record.trying(f"seed {seed}", seconds=5.0 if record.toy else 60.0):
            _seed(record, seed)


def _seed(record: Record, seed: int) -> None:
    config = emoji.get_config("tiny" if record.toy else "gpu")
    config.seed = seed
    # What the untrained encoder retrieves is known from the CPU, and nobody will look at the curves.
    config.evaluate.untrained = config.log.tensorboard = False
    config.update_from_flattened_dict(TOY if record.toy else {})
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _at_most(record.left - _ENDING):
                train(config, folder)
        finally:
            # How far it came is a row too.
            figures = _figures(Path(folder)) | {"seconds": round(time.perf_counter() - began, 1)}
            finished = "mAP" in figures
            goals = {"mAP": (">=", GOAL)} if finished and not record.toy else {}
            record.row(f"seed {seed}" + ("" if finished else ", interrupted"), goals, **figures)


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    except _Interrupted:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _figures(workdir: Path) -> dict[str, Any]:
    """The files that a run has written."""
    log, results = workdir / "metrics.jsonl", workdir / "results.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    rates = sorted(line["train/images_per_second"] for line in lines if "train/images_per_second" in line)
    curve = [line for line in lines if any(key.startswith("validation/") for key in line)]
    figures: dict[str, Any] = {"log": {"validation": curve, "last": lines[-1:]}}
    if rates:
        figures["images_per_second"] = rates[len(rates) // 2]
    if results.is_file():
        figures["results"] = json.loads(results.read_text())
        figures["mAP"] = figures["results"]["test"]["mAP"]
    return figures
