"""Numbers of file formats, and how files of older formats are read.

``"format": n`` stands in config.json, results.json, thresholds.json, the preprocessing.json of exports, in galleries'
description of their encoder, and in the study's cells. A file without a number is of format 0. Checkpoints, whose
layout is orbax's, have a number of their own.

To add, rename or remove a config key, or a name in one of those files, raise `FORMAT` and add the step from the old
names to the new. `tests/witness/` keeps a run of every format, which the tests continue.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hap2s_jax.data.regular_files import read_json
from hap2s_jax.errors import UserError

FORMAT = 3
KEY = "format"

Record = dict[str, Any]


# What was in effect before format 1 had a key for it.
BEFORE_1: dict[str, Record] = {
    "evaluate": {"zooms": False},
    "encoder": {"frozen_blocks": 0, "remat": False},
    "data": {"exif": False, "background": None, "max_pixels": 2**28},
}


def _from_0(config: Record | None, record: Record) -> None:
    """To format 1: before it, formats had no numbers, and keys were added on the way."""
    del record
    _add(config, BEFORE_1)


def _from_1(config: Record | None, record: Record) -> None:
    """To format 2: keys were added, and the trunk's own figures in a run's results."""
    added = {
        "encoder": {"frozen": False},
        "data": {"cached_views": 1, "sources": {}, "parts": ["train"]},
        "batch": {"mixing": "classes", "sets": "mixed"},
        "log": {"profile_steps": None, "wandb": "", "mlflow": ""},
        "optimizer": {"layer_decay": 1.0, "head_steps": 0},
        "loss": {"memory_size": 0},
    }
    _add(config, added)
    if "untrained" in record:
        record["as_it_comes"], record["tests"] = {}, {}


def _from_2(config: Record | None, record: Record) -> None:
    """To format 3: keys were added."""
    del record
    added: dict[str, Record] = {
        "encoder": {"drop_path": 0.0},
        "data": {"cache_dir": None, "cache_gb": 20.0},
    }
    _add(config, added)


def _add(config: Record | None, added: dict[str, Record]) -> None:
    """Adds keys with their values to the sections that the config has, unless they are there."""
    for name, values in added.items():
        if isinstance(section := (config or {}).get(name), dict):
            section |= {**values, **section}


# The step from each format to the next: (config, record) -> None, changing them in place. `record` is all of a file,
# `config` the run's config in it, or None; of a study's cell sections and keys may be missing. What is added gets the
# value that was in effect before.
_STEPS: tuple[Callable[[Record | None, Record], None], ...] = (_from_0, _from_1, _from_2)


def stamped(record: Record) -> Record:
    """The record with today's format number in front."""
    return {KEY: FORMAT, **{key: value for key, value in record.items() if key != KEY}}


def read(path: str | os.PathLike[str], *, config: str | None = None) -> Record:
    """Reads a JSON file as if it had been written today; arguments and errors are `upgraded`'s.

    Raises:
      OSError, ValueError: it cannot be read, or is no JSON.
    """
    return upgraded(read_json(path), path, config=config)


def upgraded(record: Any, path: str | os.PathLike[str], *, config: str | None = None) -> Record:
    """A record of any version with today's names and format number; may change `record`.

    Args:
      record: what was in the file.
      path: of the file, for errors.
      config: the name under which the record holds a run's config; "" if it is one, None without.

    Raises:
      NewerFormatError: a later version wrote it.
      ValueError: it is no record at all.
    """
    if not isinstance(record, dict):
        raise ValueError(f"it should hold names and values, but holds {type(record).__name__}")
    number = record.get(KEY, 0)
    if type(number) is not int or number < 0:
        raise ValueError(f"{KEY} is {number!r}; it should be a whole number up to {FORMAT}")
    if number > FORMAT:
        raise NewerFormatError(
            f"{path} has format {number}, and this version of hap2s_jax reads formats up to {FORMAT}; use the version "
            "that wrote it, or a later one"
        )
    for step in _STEPS[number:]:
        step(record if config == "" else record.get(config) if config else None, record)
    return stamped(record)


class NewerFormatError(UserError):
    """A file of a later version than this one."""
