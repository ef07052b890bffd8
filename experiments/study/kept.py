"""The cells that a study keeps, found by what each has trained.

A cell's name is for people and for processes that share a study: a finished cell is found under any. One that was
trained before a key was known to the configs stays found, since only differences to the defaults count.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from hap2s_jax import formats, losses
from hap2s_jax.recipes import common
from hap2s_jax.run.config import Config, flatten
from study import families, packed
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
        self.folder, self._usual = folder, usual()
        # By data set: what each of its cells has trained, and the cell.
        self._finished: dict[str, dict[str, packed.Record]] = {}

    def find(
        self, dataset: str, part: str, leaves: Mapping[str, Any], path: pathlib.Path
    ) -> packed.Record | None:
        """A finished cell that trained the same, or None.

        Args:
          dataset: config that is trained on.
          part: "test" or "search".
          leaves: `of_the_outcome` of its config.
          path: the file in which another process may have left it meanwhile.
        """
        mark = self._mark(part, leaves)
        found = self._of(dataset)
        if mark not in found and path.is_file():
            found[mark] = packed.read(path)
        return found.get(mark)

    def path(self, begin: str, dataset: str, part: str, leaves: Mapping[str, Any]) -> pathlib.Path:
        """The file of a cell that is to be made; its name begins with `begin`."""
        # Of all leaves: the same differences are another cell once the defaults have changed.
        whole = json.dumps({"part": part, "config": leaves}, sort_keys=True)
        digest = hashlib.sha256(whole.encode()).hexdigest()[:10]
        return self.of_dataset(dataset) / f"{begin}-{digest}.json"

    def of_dataset(self, dataset: str) -> pathlib.Path:
        """The folder of a data set's cells."""
        return self.folder / dataset.replace(":", "-").replace(",", "-")

    def families(self, dataset: str) -> list[str] | None:
        """The families of the data set's test classes, in the order of the labels; None where none are known."""
        known = packed.families_of(self.of_dataset(dataset))
        return families.families(dataset) if known is None else known

    def pack(self) -> int:
        """Packs the cells of all data sets, and returns how many there are."""
        common = json.loads(
            json.dumps({k: v for k, v in self._usual.items() if not below(k, _NOT_OF_THE_OUTCOME)})
        )
        folders = sorted(self.folder.glob("[!.]*"))
        return sum(packed.pack(folder, common, families.families(folder.name)) for folder in folders)

    def _of(self, dataset: str) -> dict[str, packed.Record]:
        if dataset not in self._finished:
            # Of several that trained the same, the first by name.
            cells = sorted(packed.load(self.of_dataset(dataset)).items(), reverse=True)
            self._finished[dataset] = {self._mark(c["cell"]["part"], c["config"]): c for _, c in cells}
        return self._finished[dataset]

    def _mark(self, part: str, leaves: Mapping[str, Any]) -> str:
        """The identity of a cell under any name: studies share cells, and a changed recipe never finds the old ones."""
        return json.dumps({"part": part, "config": identity(leaves, self._usual)}, sort_keys=True)


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
