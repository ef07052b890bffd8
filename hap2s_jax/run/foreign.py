"""Reads the config of a working directory that anybody may have made: only the keys listed here count.

Whoever opens a run (embed, search, demo, export, evaluate, `hap2s_jax.load`, pretrained.source) reads its config here.
All other keys have this machine's defaults, above all where compiled programs are kept.
"""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

from hap2s_jax.errors import UserError
from hap2s_jax.run import config as configs

# The keys that count, and of which type each is. They say what the encoder is, how images become its input, how
# embeddings are compared and judged, and on which images: none is a place to write to, nor decides what is executed
# (an encoder that is somebody's code needs consent, see `models.own.check_consent`).
KEYS = (
    ("encoder", dict),
    ("encoder.name", str),
    ("data.image_size", tuple),
    ("data.exif", bool),
    ("data.background", list),
    ("data.max_pixels", int),
    ("evaluate.enlarge", float),
    ("evaluate.keep_aspect", bool),
    ("evaluate.feature", str),
    ("evaluate.distance", str),
    ("evaluate.flip", bool),
    ("evaluate.five_crops", bool),
    ("evaluate.zooms", bool),
    ("evaluate.crop", float),
    ("evaluate.weights", str),
    ("evaluate.batch_size", int),
    # For evaluate --workdir and search --calibrate. The two folders are places of images, which are only read.
    ("seed", int),
    ("data.name", str),
    ("data.options", dict),
    ("data.data_dir", str),
    ("data.validation_fraction", float),
    ("data.on_unreadable", str),
    ("data.quarter_turns", bool),
    ("data.noise.kind", str),
    ("data.noise.fraction", float),
    ("data.noise.seed", int),
    ("data.noise.foreign", str),
    ("data.noise.foreign_dir", str),
)
PLACES = ("data.data_dir", "data.noise.foreign_dir")

# What programs ask a config for besides; see recipes/common.py.
_HERE = {
    "compilation_cache": None,
    "num_devices": None,
    "data": {"num_workers": None, "cache_bytes": 512 * 2**20, "noise": {}},
    "evaluate": {},
}


def load(workdir: str | os.PathLike[str], *, data_dir: str | None = None) -> configs.Config:
    """Reads the keys that count from the config of a run, whoever made it.

    A key that is not there stays away; `config.written_by` makes a line of it where it is needed.

    Args:
      workdir: of the run.
      data_dir: where its data lie on this machine, if elsewhere than `data.data_dir` says.

    Raises:
      UserError: there is no config, it cannot be read, or a key is of a wrong type.
    """
    found: Any = configs.load(workdir)
    config: Any = type(found)(_HERE)
    for key, kind in KEYS:
        *sections, leaf = key.split(".")
        theirs = found
        for section in sections:
            theirs = theirs[section] if section in theirs and _is(theirs[section], dict) else {}
        if leaf not in theirs:
            continue
        value = data_dir if key == "data.data_dir" and data_dir else theirs[leaf]
        if not _is(value, kind, optional=key in (*PLACES, "data.background")):
            path = pathlib.Path(workdir) / configs.FILE_NAME
            raise UserError(f"{path}: {key} is {value!r:.80}; it should be {_WORDS[kind]}")
        if key in PLACES and "://" in (value or "") and value != data_dir:
            raise UserError(
                f"{workdir}: {key} is {value}, which is not on this machine; if you trust the run, name the place "
                "with --data_dir"
            )
        ours = config
        for section in sections:
            ours = ours[section]
        ours[leaf] = value
    return config.lock()


_WORDS = {dict: "a section", str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
_WORDS[list] = "red, green and blue from 0 to 255, or null"
_WORDS[tuple] = "height and width in pixels, [256, 128] for example"


def _is(value: Any, kind: type, *, optional: bool = False) -> bool:
    """Whether a value out of JSON is of a kind."""
    if kind is dict:
        return hasattr(value, "keys")
    if kind is list:
        return (optional and value is None) or (
            isinstance(value, list | tuple)
            and len(value) == 3
            and all(_is(n, int) and 0 <= n <= 255 for n in value)
        )
    if kind is tuple:
        return (
            isinstance(value, list | tuple) and len(value) == 2 and all(_is(n, int) and n >= 1 for n in value)
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))) or (
        optional and value is None
    )
