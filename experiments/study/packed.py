"""Finished cells of a data set in two files: ``cells.jsonl`` and ``by_class.npz``.

The first line of ``cells.jsonl`` has the common config as it was when the file was written, and the machines; every
other line is a cell, with what differs from that config. ``by_class.npz`` has the figures by class: for each metric,
sums over a class's queries in ten-thousandths (as cells have them) and counts, ``[cells, classes]``, and the family of
each class. Cells that have finished since lie beside them, a file each.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hap2s_jax import formats
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.run.config import flatten

LINES, FIGURES = "cells.jsonl", "by_class.npz"
SCALE = 10_000  # sums are kept to four decimals
Record = dict[str, Any]


def load(folder: pathlib.Path) -> dict[str, Record]:
    """The cells of a data set's folder by name, packed or not, as today's version would have kept them.

    Raises:
      UserError: a file is damaged, or of a later version.
    """
    found = {path.stem: read(path) for path in sorted(folder.glob("[!.]*.json"))}
    return {**unpacked(folder), **found} if (folder / LINES).is_file() else found


def unpacked(folder: pathlib.Path) -> dict[str, Record]:
    """The packed cells of a folder by name, without those that lie beside them."""
    path = folder / LINES
    try:
        header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
        figures = _figures(folder / FIGURES)
        cells = {}
        for line in lines:
            record = {formats.KEY: header[formats.KEY], **line}
            record["config"] = {**header["common"], **line["config"]}
            if "environment" in line:
                record["environment"] = header["environments"][line["environment"]]
            if line["name"] in figures:
                record["by_class"] = figures[line["name"]]
            name = record.pop("name")
            cells[name] = _upgraded(record, path)
        return cells
    except formats.NewerFormatError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise UserError(
            f"{path} holds no finished cells ({e!r}); restore it with: git checkout {path}"
        ) from e


def read(path: pathlib.Path) -> Record:
    """A finished cell that has a file of its own, as today's version would have kept it.

    Raises:
      UserError: the file is damaged, or of a later version.
    """
    try:
        record = _upgraded(json.loads(path.read_text()), path)
        values = record.get("by_class", {})
        return record | ({"by_class": _as_arrays(values)} if values else {})
    except formats.NewerFormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is no finished cell ({e!r}); remove it, and it is trained again") from e


def pack(folder: pathlib.Path, common: Mapping[str, Any], families: list[str] | None) -> int:
    """Packs all cells of a folder, and removes the files of those that were not; returns how many it now has.

    Args:
      folder: of a data set.
      common: leaves of the common config that decide what comes out of a cell.
      families: of the test classes, in the order of the labels, where the packed file does not have them yet.
    """
    loose = sorted(folder.glob("[!.]*.json"))
    cells = dict(sorted(load(folder).items()))
    machines = sorted({_line(c["environment"]) for c in cells.values() if "environment" in c})
    lines = [
        _line(formats.stamped({"common": dict(common), "environments": [json.loads(m) for m in machines]}))
    ]
    for name, cell in cells.items():
        kept = {key: v for key, v in cell.items() if key not in (formats.KEY, "by_class")}
        kept["config"] = {k: v for k, v in cell["config"].items() if k not in common or common[k] != v}
        if "environment" in cell:
            kept["environment"] = machines.index(_line(cell["environment"]))
        lines.append(_line({"name": name, **kept}))
    figures = _arrays({name: cell["by_class"] for name, cell in cells.items() if "by_class" in cell})
    known = families_of(folder)
    if (names := known if known is not None else families) is not None:
        figures["families"] = np.array(names)
    with replacing(folder / FIGURES) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **figures)
    with replacing(folder / LINES) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    for path in loose:
        path.unlink()
    return len(cells)


def unpack(folder: pathlib.Path) -> int:
    """Gives every packed cell a file of its own again and removes the packed ones; returns how many there were."""
    cells = unpacked(folder)
    for name, cell in cells.items():
        path = folder / f"{name}.json"
        if not path.is_file():
            with replacing(path) as temporary:
                temporary.write_text(as_text(cell))
    (folder / LINES).unlink()
    (folder / FIGURES).unlink()
    return len(cells)


def check(folder: pathlib.Path) -> list[str]:
    """What is wrong with the packed cells of a folder, a line each.

    Raises:
      UserError: they cannot be read at all.
    """
    cells = unpacked(folder)
    wrong = []
    if [*cells] != sorted(cells):
        wrong.append(f"{folder / LINES} is not sorted; pack it again")
    for name, cell in cells.items():
        needed = {"cell", "config"} | ({"metrics"} if "diverged" not in cell else set())
        if lacking := needed - set(cell):
            wrong.append(f"{name}: has no {', '.join(sorted(lacking))}")
        for metric, values in cell.get("by_class", {}).items():
            mean = values["sums"].sum() / values["counts"].sum()
            # A class's sum is kept to four decimals.
            if not abs(mean - cell["metrics"][metric]) < 1e-4:
                wrong.append(f"{name}: {metric} is {cell['metrics'][metric]:.5f}, by its classes {mean:.5f}")
    return wrong


def families_of(folder: pathlib.Path) -> list[str] | None:
    """The families of a data set's test classes, in the order of the labels; None where they are not packed."""
    path = folder / FIGURES
    if not path.is_file():
        return None
    with np.load(path) as figures:
        return figures["families"].tolist() if "families" in figures else None


def as_text(record: Mapping[str, Any]) -> str:
    """A cell as its own file has it."""
    return json.dumps(formats.stamped({**record}), default=_plain) + "\n"


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by their dotted names as sections of sections, the inverse of `hap2s_jax.run.config.flatten`."""
    config: dict[str, Any] = {}
    for name, value in leaves.items():
        *sections, key = name.split(".")
        functools.reduce(lambda section, part: section.setdefault(part, {}), sections, config)[key] = value
    return config


def _upgraded(record: Record, path: pathlib.Path) -> Record:
    # Before what it should hold is looked for, which a later format may have elsewhere.
    record = formats.upgraded(record | {"config": nested(record.get("config", {}))}, path, config="config")
    return {**record, "config": flatten(record["config"])}


def _as_arrays(values: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    return {
        metric: {"sums": np.array(v["sums"], float), "counts": np.array(v["counts"], int)}
        for metric, v in values.items()
    }


def _arrays(by_class: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """By metric what `by_class.npz` has."""
    figures: dict[str, np.ndarray] = {"names": np.array([*by_class])}
    for metric in sorted({metric for values in by_class.values() for metric in values}):
        rows = [values[metric] for values in by_class.values()]
        if len({len(row["sums"]) for row in rows}) > 1:
            raise UserError(
                f"by_class of {metric}: the cells of a data set should have the same test classes"
            )
        figures[f"{metric}.sums"] = np.rint(SCALE * np.stack([row["sums"] for row in rows])).astype(np.int32)
        figures[f"{metric}.counts"] = np.stack([row["counts"] for row in rows]).astype(np.int32)
    return figures


def _figures(path: pathlib.Path) -> dict[str, Any]:
    """The inverse of `_arrays`, by the names of the cells."""
    with np.load(path) as figures:
        arrays = {name: figures[name] for name in figures.files}
    metrics = [name.removesuffix(".sums") for name in arrays if name.endswith(".sums")]
    return {
        name: {
            metric: {"sums": arrays[f"{metric}.sums"][row] / SCALE, "counts": arrays[f"{metric}.counts"][row]}
            for metric in metrics
        }
        for row, name in enumerate(arrays["names"].tolist())
    }


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else list(value)
