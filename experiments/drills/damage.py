"""Every file of a working directory truncated, flipped, emptied, removed.

What is loaded then is one checkpoint or the other, and training goes on from a whole one, or one line says why not.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from drill import Trial, WrongError

from drills import small_run

HOW = ("flipped", "cut", "emptied", "removed")


def damage(path: pathlib.Path, how: str, random: np.random.Generator) -> None:
    """Flips twenty bits of a file, cuts it, empties it or removes it."""
    data = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
        return
    if how == "flipped" and data:
        for place in random.integers(0, len(data), 20):
            data[place] ^= 1 << int(random.integers(0, 8))
    stop = {"flipped": len(data), "cut": int(random.integers(0, max(len(data), 1))), "emptied": 0}[how]
    path.write_bytes(data[:stop])


def _arrays(tree: Any) -> list[bytes]:
    import jax

    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Every file in every way; then some of them anew, otherwise damaged."""
    import hap2s_jax
    from hap2s_jax.run.learner import Learner
    from hap2s_jax.training.checkpoint import FOLDER, Checkpointer

    whole, template = small_run.workdir(), Learner.create(small_run.settings()).initial_state(8)
    known = {step: _arrays(hap2s_jax.load(whole, checkpoint=step).variables) for step in (3, 6)}
    reader = Checkpointer(whole / FOLDER, read_only=True)
    states = {step: _arrays(reader.restore(template, step)) for step in (3, 6)}
    reader.close()

    def load(path: pathlib.Path) -> None:
        encoder = hap2s_jax.load(path)
        if _arrays(encoder.variables) != known[encoder.step]:
            raise WrongError(f"other weights than those of step {encoder.step}")

    def resume(path: pathlib.Path) -> None:
        checkpointer = Checkpointer(path / FOLDER, best_metric="mAP")
        step = checkpointer.latest_step
        if step is not None and _arrays(checkpointer.restore(template, step)) != states[step]:
            raise WrongError(f"another state than that of step {step}")
        if step is None or checkpointer.best_step not in checkpointer.steps:
            raise WrongError(f"steps {checkpointer.steps}, of which {checkpointer.best_step} is the best")
        checkpointer.close()

    def damaged(file: pathlib.Path, how: str, number: int) -> pathlib.Path:
        copy = folder / "run"
        for place in (copy, copy.with_name("run.damaged")):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole, copy)
        damage(copy / file, how, np.random.default_rng((seed, number)))
        return copy

    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    number = 0
    while True:
        for file in files:
            for how in HOW:
                number += 1
                for verb, run in (("load", load), ("resume", resume)):
                    where = damaged(file, how, number)
                    yield Trial(f"{how}, {verb}", lambda r=run, w=where: r(w), seconds=60.0)
