"""Several data sets: joined to train on, and others to test on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hap2s_jax.data import duplicates
from hap2s_jax.data.source import Dataset, Derived, Source, Subset

PARTS = ("train", "query", "gallery")


class Joined(Derived):
    """The images of several sources one after another. Classes and cameras of two sources are never the same.

    Args:
      sources: by the name of their set, which stands before the names of their classes.

    Attributes:
      class_sets: int `[C]` which of the sources each class is of.
      boxes: int `[n, 4]`, all 0 for whole images; None where no source has any.
    """

    def __init__(self, sources: Mapping[str, Source]):
        self.name = " + ".join(source.name for source in sources.values())
        self.parts = list(sources.values())
        self.class_names = tuple(
            f"{name}/{c}" for name, source in sources.items() for c in source.class_names
        )
        sizes = [len(source.class_names) for source in self.parts]
        self.class_sets = np.repeat(np.arange(len(sizes)), sizes)
        before = np.cumsum([0, *sizes])
        labels = [
            np.where(s.labels >= 0, s.labels + n, s.labels) for s, n in zip(self.parts, before, strict=False)
        ]
        self.labels = np.concatenate(labels).astype(np.int32)
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self.cameras = self._join_cameras()
        boxes = [getattr(source, "boxes", None) for source in self.parts]
        self.boxes = None
        if any(b is not None for b in boxes):
            whole = [
                np.zeros((len(s), 4), np.int32) if b is None else b
                for s, b in zip(self.parts, boxes, strict=True)
            ]
            self.boxes = np.concatenate(whole)

    def _join_cameras(self) -> np.ndarray | None:
        if all(source.cameras is None for source in self.parts):
            return None
        # An unknown camera differs from all others.
        cameras, first = -1 - np.arange(len(self)), 0
        for source, start in zip(self.parts, self._starts, strict=False):
            if source.cameras is not None:
                known = source.cameras >= 0
                cameras[start : start + len(source)][known] = source.cameras[known] + first
                first += int(source.cameras.max(initial=-1)) + 1
        return cameras.astype(np.int32)

    def __len__(self) -> int:
        """The number of images of all sources."""
        return int(self._starts[-1])

    def origin(self, index: int) -> tuple[Source, int]:
        """The source of image number `index`, and its number there."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[number], int(index - self._starts[number])


def source_names(data: Mapping[str, Any]) -> list[str]:
    """The names of the data sets that the section `data` of a config trains on."""
    return [*(data.get("sources") or {})] or [name.strip() for name in data["name"].split(",")]


def combine(
    sources: Mapping[str, Dataset], targets: Mapping[str, Dataset], parts: Sequence[str] = ("train",)
) -> Dataset:
    """Joins several data sets to one.

    Args:
      sources: to train and to validate on, by the names of the sets.
      targets: to test on, by their names; the first is the data set's own test.
      parts: those of each source to train on, "train" and, as wished, "query" and "gallery".
    """
    trained = {name: _training_part(data, parts) for name, data in sources.items()}
    train = Joined(trained)
    held_out = {name: data.validation for name, data in sources.items() if data.validation is not None}
    remarks = [f"{name}: {line}" for name, data in sources.items() for line in data.remarks]
    if targets is not sources:
        remarks += [f"{name}: {line}" for name, data in targets.items() for line in data.remarks]
    tested = {} if targets is sources else {name: data.test for name, data in targets.items()}
    remarks += _shared(trained, tested)
    judged = [data.validation_protocols for data in sources.values()]
    common = tuple(p for p in judged[0] if all(p in others for others in judged)) or ("class",)
    first, *others = (dataclasses.replace(data, name=name) for name, data in targets.items())
    return dataclasses.replace(
        first,
        name="+".join(sources),
        train=train,
        validation=Joined(held_out) if held_out else None,
        remarks=tuple(remarks),
        judged=common,
        targets=(first, *others),
        class_sets=train.class_sets,
    )


def _training_part(data: Dataset, parts: Sequence[str]) -> Source:
    """The training images of a source, with all queries and the gallery images of the queries' classes."""
    rows = [rows for name, rows in (("query", data.query), ("gallery", data.gallery)) if name in parts]
    if not rows:
        return data.train
    everything = np.arange(len(data.test))
    chosen = np.unique(np.concatenate([everything if r is None else r for r in rows]))
    labels = data.test.labels
    asked = np.unique(labels if data.query is None else labels[data.query])
    # Distractors of a gallery are many people under one label.
    chosen = chosen[(labels[chosen] >= 0) & np.isin(labels[chosen], asked)]
    return Joined({"train": data.train, "test": Subset(data.test, chosen)})


def _shared(trained: Mapping[str, Source], tested: Mapping[str, Source]) -> Iterator[str]:
    """Lines on images that are in two sets to train on, or in one to train on and one to test on."""
    seen: dict[str, set[tuple[str, str]]] = {}
    images: dict[str, tuple[Source, int]] = {}
    for use, sources in (("train", trained), ("test", tested)):
        for name, source in sources.items():
            for index in range(len(source)):
                path = source.describe(index)
                seen.setdefault(path, set()).add((use, name))
                images[path] = source, index
    digests, _ = duplicates.digests_of(images, duplicates.QUICK_BYTES)
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for path, places in seen.items():
        groups.setdefault(digests.get(path, path), []).extend(
            (use, name, path) for use, name in sorted(places)
        )
    for uses, words in (
        (("train",), "training images are in more than one set, as different classes"),
        (("train", "test"), "images to train on are also in another set, to test on"),
    ):
        found = [_first_of_each(group, uses) for group in groups.values()]
        if shared := [pair for pair in found if pair]:
            where = " and ".join(f"{path} of {name}" for name, path in shared[0])
            yield f"{len(shared):,} {words}, such as {where}"


def _first_of_each(group: list[tuple[str, str, str]], uses: tuple[str, ...]) -> list[tuple[str, str]]:
    """The first image of a group and the first of another set, for these uses; none if all are of one set."""
    first = [(name, path) for use, name, path in group if use == uses[0]][:1]
    others = [(name, path) for use, name, path in group if use == uses[-1] and first and name != first[0][0]]
    return [*first, others[0]] if others else []
