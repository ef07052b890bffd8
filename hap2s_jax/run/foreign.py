"""Reads the config of a working directory that anybody may have made: only the keys listed here count.

Everything that opens a run (embed, search, demo, export, evaluate, `hap2s_jax.load`, pretrained.source) reads its
config here. All other keys keep their defaults, above all the folder of compiled programs.
"""

from __future__ import annotations

import math
import os
from typing import Any

from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError
from hap2s_jax.run import config as configs
from hap2s_jax.run import schema

# The keys that count. They describe the encoder, its input, and how and on which images embeddings are compared and
# judged. None names a place to write to. None decides what is executed: an encoder that is code needs consent, see
# `models.own.check_consent`.
KEYS = (
    "encoder",
    "data.image_size",
    "data.exif",
    "data.background",
    "data.max_pixels",
    "evaluate.enlarge",
    "evaluate.keep_aspect",
    "evaluate.feature",
    "evaluate.distance",
    "evaluate.flip",
    "evaluate.five_crops",
    "evaluate.zooms",
    "evaluate.crop",
    "evaluate.weights",
    "evaluate.batch_size",
    # For evaluate --workdir and search --calibrate. The two folders hold images, which are only read.
    "seed",
    "data.name",
    "data.options",
    "data.sources",
    "evaluate.on",
    "data.data_dir",
    "data.validation_fraction",
    "data.on_unreadable",
    "data.quarter_turns",
    "data.noise.kind",
    "data.noise.fraction",
    "data.noise.seed",
    "data.noise.foreign",
    "data.noise.foreign_dir",
)
PLACES = ("data.data_dir", "data.noise.foreign_dir")
# Of a batch, whatever theirs says: 167 images of 224 x 224, 2 of 2048 x 2048.
_MAX_PIXELS = 2**23


def load(
    workdir: str | os.PathLike[str], *, data_dir: str | None = None, with_data: bool = True
) -> configs.Config:
    """Reads the keys that count from the config of a run, whoever made it.

    A key that is not there stays away; `config.written_by` makes a line of it where it is needed.

    Args:
      workdir: of the run.
      data_dir: where its data lie on this machine, if elsewhere than `data.data_dir` says.
      with_data: whether the data will be read; else places that are not on this machine are left out.

    Raises:
      UserError: there is no config, it cannot be read, or a key is of a wrong type or out of range.
    """
    theirs, path = configs.load(workdir).to_dict(), place(workdir) / configs.FILE_NAME
    ours: dict[str, Any] = schema.default_config().to_dict()
    for key in KEYS:
        _overlay(ours, theirs, key)
    if data_dir and isinstance(ours["data"], dict):
        ours["data"]["data_dir"] = data_dir
    try:
        schema.check(ours)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if "batch_size" in ours["evaluate"] and "image_size" in ours["data"]:
        most = max(1, _MAX_PIXELS // math.prod(ours["data"]["image_size"]))
        ours["evaluate"]["batch_size"] = min(ours["evaluate"]["batch_size"], most)
    import ml_collections  # not above: the commands' help needs the base install only

    config: Any = ml_collections.ConfigDict(ours)
    for key in PLACES:
        value = configs.flatten(config).get(key)
        if "://" in (value or "") and value != data_dir:
            if not with_data:
                config.update_from_flattened_dict({key: None})
                continue
            raise UserError(
                f"{workdir}: {key} is {value}, which is not on this machine; if you trust the run, name the place "
                "with --data_dir"
            )
    for entry in [*config.data.get("sources", {}).values(), *config.evaluate.get("on", {}).values()]:
        if "://" in str(entry.get("data_dir")):
            if not with_data:
                entry.data_dir = None
                continue
            raise UserError(
                f"{workdir}: a data set's data_dir is {entry['data_dir']}, which is not on this machine; copy it to one"
            )
    return config.lock()


def without_places(config: configs.Config) -> configs.Config:
    """A copy of a config of `load` for others: without folders of this machine."""
    import ml_collections

    made: Any = ml_collections.ConfigDict(config.to_dict())
    made.update_from_flattened_dict(dict.fromkeys(PLACES))
    made.data.sources, made.evaluate.on = {}, {}
    return made


def _overlay(ours: dict[str, Any], theirs: dict[str, Any], key: str) -> None:
    """Overwrites our values by theirs, where they have any."""
    *sections, leaf = key.split(".")
    for name in sections:
        if not isinstance(theirs.get(name, {}), dict):
            leaf = name  # it should be a section; the schema reports it
            break
        ours, theirs = ours[name], theirs.get(name, {})
        if not isinstance(ours, dict):
            return
    if leaf in theirs:
        ours[leaf] = theirs[leaf]
    else:
        ours.pop(leaf, None)
