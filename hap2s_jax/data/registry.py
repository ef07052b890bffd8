"""Data sets by name: finding, reading and counting them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hap2s_jax.data.entries import ENTRIES, Entry
from hap2s_jax.data.places import local
from hap2s_jax.data.readers.files import Parts
from hap2s_jax.data.source import Dataset, Source
from hap2s_jax.errors import UserError, unknown_name


def names() -> list[str]:
    """The names of all data sets, without aliases."""
    return list(ENTRIES)


def known_names() -> set[str]:
    """The names of all data sets, with aliases, in small letters."""
    return {alias for entry in ENTRIES.values() for alias in (entry.name, *entry.aliases)}


def entry(name: str) -> Entry:
    """The data set of this name or alias (upper and lower case alike).

    Raises:
      UserError: there is none; names the nearest.
    """
    for candidate in ENTRIES.values():
        if name.lower() in (candidate.name, *candidate.aliases):
            return candidate
    raise unknown_name("data set", name, ENTRIES)


def search_directories(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """The folders that may hold data sets: `data_dir`, or $TFDS_DATA_DIR or ~/tensorflow_datasets, and ./data."""
    if data_dir is not None:
        return [local(data_dir)]
    return [local(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")), Path("data")]


def read_parts(found: Entry, root: Path | None, options: Mapping[str, Any], seed: int = 0) -> Parts:
    """Read a data set from its folder.

    Raises:
      UserError: an option is not one of its own, or what lies there is malformed.
    """
    if found.read is None:
        raise ValueError(f"{found.name} is not read from a folder")
    unknown = sorted(set(options) - set(found.options))
    if unknown:
        raise unknown_name(f"option of the data set {found.name}", unknown[0], found.options)
    if "seed" in inspect.signature(found.read).parameters:
        options = {**options, "seed": seed}
    try:
        return found.read(root, **options)
    except OSError as error:
        raise UserError(
            f"{found.name}: cannot read {error.filename or root}: {error.strerror or error}"
        ) from None


def count_warnings(found: Entry, parts: Parts) -> list[str]:
    """Differences to the published numbers, one line each; empty when all is well or nothing is known."""
    if not parts.is_usual:
        return []
    counts = part_counts(parts)
    lines = []
    for part, expected in found.counts.items():
        right = (expected,) if isinstance(expected, int) else expected
        if part in counts and counts[part] not in right:
            wanted = " or ".join(f"{n:,}" for n in right)
            lines.append(
                f"{found.title}: {part} has {counts[part]:,} entries, the published number is {wanted}"
            )
    return lines


def part_counts(parts: Parts | Dataset) -> dict[str, int]:
    """Number of images of every part, and of training classes ("classes")."""
    counts = {"train": len(parts.train), "test": len(parts.test), "classes": num_classes(parts.train)}
    if parts.query is not None and parts.gallery is not None:
        counts |= {"query": len(parts.query), "gallery": len(parts.gallery)}
    return counts


def num_classes(source: Source) -> int:
    """Classes that have an image."""
    return len(np.unique(source.labels[source.labels >= 0]))


def parse_options(texts: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """KEY=VALUE texts as values of the types of the defaults.

    Raises:
      UserError: a text is malformed or its value of the wrong type; an unknown key is left to the data set.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        kind = type(defaults.get(key, ""))
        try:
            if not equals:
                raise ValueError
            options[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise UserError(
                f"--option: expected {key or 'KEY'}={kind.__name__.upper()}, found {text!r}"
            ) from None
    return options
