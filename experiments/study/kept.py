"""The cells that a study keeps: a file for each, found by what the cell has trained.

A file's name is for people and for processes that share a study: a finished cell is found under any. One that was
trained before a key was known to the configs stays found, since only differences to the defaults count.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from hap2s_jax import formats, losses
from hap2s_jax.errors import UserError
from hap2s_jax.recipes import common
from hap2s_jax.run.config import Config, flatten
from study.settings import below

# What says where and how fast a cell runs, not what comes out. A path is one of these only beside a name that says
# which data lie there.
_NOT_OF_THE_OUTCOME = (
    "name",
    "num_devices",
    "compilation_cache",
    "log",
    "checkpoint",
    "evaluate.every_steps",
    "evaluate.batch_size",
    "evaluate.untrained",
    "evaluate.weights",
    "data.cache_bytes",
    "data.num_workers",
    "pretrained.offline",
    "pretrained.cache_dir",
)
# Keys that change nothing of emoji and characters, which have neither orientations nor transparency.
_WITHOUT_EFFECT = tuple(f"data.{key}" for key in formats.BEFORE_1["data"])


class Kept:
    """The cells below a folder, which has one for each data set.

    Args:
      folder: need not be there yet.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self._usual = folder, usual()
        # By data set: what each of its cells has trained, and the file.
        self._finished: dict[str, dict[str, pathlib.Path]] = {}

    def path(self, name: str, dataset: str, part: str, leaves: Mapping[str, Any]) -> pathlib.Path:
        """The file of a cell: that of a finished one that trained the same, or the one to be made.

        Args:
          name: what a new file's name begins with.
          dataset: config that is trained on.
          part: "test" or "search".
          leaves: `of_the_outcome` of its config.
        """
        folder = self._folder / dataset.replace(":", "-").replace(",", "-")
        if dataset not in self._finished:
            cells = ((path, read(path)) for path in sorted(folder.glob("[!.]*.json"), reverse=True))
            self._finished[dataset] = {self._mark(c["cell"]["part"], c["config"]): path for path, c in cells}
        # Of all leaves: the same differences are another cell once the defaults have changed.
        whole = json.dumps({"part": part, "config": leaves}, sort_keys=True)
        digest = hashlib.sha256(whole.encode()).hexdigest()[:10]
        return self._finished[dataset].get(self._mark(part, leaves), folder / f"{name}-{digest}.json")

    def _mark(self, part: str, leaves: Mapping[str, Any]) -> str:
        """The identity of a cell under any name: studies share cells, and a changed recipe never finds the old ones."""
        return json.dumps({"part": part, "config": identity(leaves, self._usual)}, sort_keys=True)


def read(path: pathlib.Path) -> dict[str, Any]:
    """A finished cell as today's version would have kept it.

    Raises:
      UserError: the file is damaged, or of a later version.
    """
    try:
        record = json.loads(path.read_text())
        # Before what it should hold is looked for, which a later format may have elsewhere.
        record = formats.upgraded(
            record | {"config": nested(record.get("config", {}))}, path, config="config"
        )
        return {**record, "config": flatten(record["config"])}
    except formats.NewerFormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is no finished cell ({e!r}); remove it, and it is trained again") from e


def of_the_outcome(config: Config) -> dict[str, Any]:
    """The config's leaves that decide what comes out of a cell, which keeps them."""
    dropped: list[str] = [*_NOT_OF_THE_OUTCOME]
    if config.data.name != "folder":
        dropped.append("data.data_dir")
    if config.data.noise.foreign != "folder":
        dropped.append("data.noise.foreign_dir")
    return {key: value for key, value in flatten(config).items() if not below(key, dropped)}


def usual() -> dict[str, Any]:
    """The leaves of the common config, without its losses."""
    return {k: v for k, v in flatten(common.get_config()).items() if not below(k, ("loss",))}


def identity(leaves: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a cell: its differences to the common config and to the defaults of its losses.

    Both sides of a comparison are held against the same defaults, those of today. A key that a cell lacks, since it was
    added later, so counts as being at its default; where a default changes, finished cells keep the value that they
    were trained with, and are other cells from then on.

    Args:
      leaves: `of_the_outcome` of a config, or those that a finished cell kept.
      usual: made by the function of that name.
    """
    default = dict(usual)
    for section in ("loss", "auxiliary"):
        name = leaves[f"{section}.name"]
        known = losses.hyperparameters(name) if name in losses.names() else {}
        default |= {f"{section}.{key}": value for key, value in known.items()}
    return {
        key: value
        for key, value in leaves.items()
        if key not in _WITHOUT_EFFECT and (key not in default or default[key] != value)
    }


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by their dotted names as sections of sections, the inverse of `hap2s_jax.run.config.flatten`."""
    config: dict[str, Any] = {}
    for name, value in leaves.items():
        *sections, key = name.split(".")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[key] = value
    return config
