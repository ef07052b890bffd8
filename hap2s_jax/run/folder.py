"""A run's working directory: checks whether this run may begin or continue there."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hap2s_jax.data import noise
from hap2s_jax.data.places import place
from hap2s_jax.distributed import processes
from hap2s_jax.errors import UserError
from hap2s_jax.run import config as configs
from hap2s_jax.run import facts
from hap2s_jax.run.trainer import Trainer
from hap2s_jax.training.checkpoint import FOLDER
from hap2s_jax.training.optimizer import create_schedule


@contextlib.contextmanager
def entered(workdir: str | os.PathLike[str], config: configs.Config) -> Iterator[pathlib.Path]:
    """Makes the working directory, or checks that it holds this config's run, and keeps other runs out meanwhile.

    Yields:
      Its absolute path.

    Raises:
      UserError: it is in no place that is known, cannot be written, holds another config's run, or another run is at
        work there.
    """
    path = place(workdir).absolute()
    open_folder(path, config)
    processes.check_shared(path)
    with processes.alone(path):
        yield path


def open_folder(path: pathlib.Path, config: configs.Config) -> None:
    """Makes the folder, or checks that the run in it is this config's."""
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
    # A config without a checkpoint belongs to a run that saved nothing: replacing it loses nothing.
    if any((path / FOLDER).glob("[0-9]*")):
        configs.check_resumable(config, path)


def check_data(data_facts: Mapping[str, str], workdir: pathlib.Path) -> None:
    """Raises a UserError if the data have changed since the run in `workdir` began."""
    if changed := facts.changed_data(data_facts, workdir):
        raise UserError(
            f"{changed}; put the data back as they were, choose another --workdir, or remove {facts.DATA_FACTS} "
            "from this one if it shall go on with them"
        )


def changed_rate(trainer: Trainer, workdir: pathlib.Path, start: int) -> str | None:
    """The change of the next update's learning rate by a new number of steps; None without one."""
    old: Any = configs.load(workdir)
    settings = {"learning_rate": old.optimizer.learning_rate, **old.schedule}
    schedules = (create_schedule(steps=old.steps, **settings), trainer.learner.schedule)
    before, now = (float(np.asarray(schedule(start))) for schedule in schedules)
    if old.steps == trainer.config.steps or math.isclose(before, now, rel_tol=1e-3):
        return None
    return (
        f"note: the learning rate goes on at {now:.3g}, where it stood at {before:.3g}, since a schedule stretches "
        f"over all steps (that of the loss too), and these were {old.steps} before"
    )


def claim(workdir: pathlib.Path, trainer: Trainer, data_facts: Mapping[str, str]) -> None:
    """Writes the validated config, the fingerprints of its data, and the noise added to them."""
    if jax.process_index() == 0:
        with _writing(workdir):
            configs.save(trainer.config, workdir)
            facts.save_data_facts(data_facts, workdir)
            if trainer.noise is not None:
                trainer.noise.save(workdir / noise.FILE_NAME)


@contextlib.contextmanager
def _writing(workdir: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(f"workdir {workdir} cannot be written: {e.strerror}; choose another --workdir") from e
