"""The plan of packing: the images of each part, and which file each goes to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from hap2s_jax.data import presence
from hap2s_jax.data.packed import PARTS, ROW, ROWS, texts
from hap2s_jax.data.readers.files import Parts
from hap2s_jax.data.source import Source
from hap2s_jax.errors import UserError


@dataclasses.dataclass
class Part:
    """A part of the data set while it is packed.

    Attributes:
      source: its images.
      origins: where each comes from.
      rows: what the index will say of each; filled while files are written.
      stored_as: for images that stand in an earlier part, that part and their numbers there.
    """

    source: Source
    origins: list[str]
    rows: np.ndarray
    stored_as: dict[int, tuple[str, int]]

    @property
    def boxes(self) -> np.ndarray | None:
        """The boxes of its images."""
        return getattr(self.source, "boxes", None)


def make(parts: Parts) -> dict[str, Part]:
    """The parts with an empty index each."""
    plan: dict[str, Part] = {}
    known: dict[tuple[Any, ...], tuple[str, int]] = {}
    for part in PARTS:
        source = getattr(parts, part)
        if source is None:
            continue
        paths = getattr(source, "paths", None)  # relative: the folder differs between machines
        origins = list(paths) if paths is not None else [source.describe(i) for i in range(len(source))]
        boxes = getattr(source, "boxes", None)
        keys = [(o, () if boxes is None else tuple(boxes[i].tolist())) for i, o in enumerate(origins)]
        stored = {i: known[key] for i, key in enumerate(keys) if key in known}
        if len(set(keys)) == len(keys):  # else paths do not identify images
            known |= {key: (part, i) for i, key in enumerate(keys) if i not in stored}
        plan[part] = Part(source, origins, np.zeros(len(source), ROW), stored)
    return plan


def check(plan: Mapping[str, Part]) -> None:
    """Raises a UserError if files to pack are missing or empty."""
    found = [
        f"{p.source.describe(i)} ({why})"
        for p in plan.values()
        for i in range(len(p.rows))
        if i not in p.stored_as and (why := presence.fault(p.source, i))
    ]
    if found:
        raise UserError(
            f"{len(found):,} images cannot be packed, such as {found[0]}; mend them, or leave them out of the data"
        )


def digest(plan: Mapping[str, Part], parts: Parts, name: str, options: Mapping[str, Any], how: str) -> str:
    """A fingerprint of all but the images' bytes."""
    told = [
        name,
        sorted(options.items()),
        how,
        parts.protocols,
        [(part, p.source.class_names) for part, p in plan.items()],
    ]
    found = hashlib.sha256(json.dumps(told).encode())
    for part in plan.values():
        found.update(texts(part.origins))
        for array in (part.source.labels, part.source.cameras, part.boxes):
            found.update(b"none" if array is None else np.ascontiguousarray(array, "<i4").tobytes())
    for row in ROWS:
        array = getattr(parts, row)
        found.update(b"none" if array is None else np.ascontiguousarray(array, "<i8").tobytes())
    return found.hexdigest()[:16]


def splits(plan: Mapping[str, Part], parts: Parts) -> dict[str, list[tuple[str, int]]]:
    """The images of each split of TFDS, those of a class side by side; an image that two parts have is in the first."""
    names: dict[str, np.ndarray] = {}
    for part in plan:
        names |= {part: np.full(len(plan[part].rows), part, "U10")}
    for row in reversed(ROWS):
        if (chosen := getattr(parts, row)) is not None:
            names["test"][chosen] = row
    found: dict[str, list[tuple[str, int]]] = {}
    for part, p in plan.items():
        order = np.lexsort((np.arange(len(p.rows)), p.source.labels))
        for i in order.tolist():
            if i not in p.stored_as:
                found.setdefault(str(names[part][i]), []).append((part, i))
    return found
