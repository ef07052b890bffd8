"""Images that occur twice in a data set: listed again, under two labels, or in training and test."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hap2s_jax.data.source import Dataset, Source, origin_of
from hap2s_jax.errors import UserError

# Reading more would delay a run noticeably; `hap2s_jax.check_data --duplicates` reads everything.
QUICK_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Duplicates:
    """Duplicates; boxes of one image at different places are different images.

    Attributes:
      repeated: files that a part lists more than once, and how often.
      two_labels: groups of files of the same bytes (often one file) that stand under several labels, with these.
      shared: groups of files of the same bytes, some in training or validation and some in test.
      compared: whether bytes were compared, and not names alone.
    """

    repeated: list[tuple[str, int]]
    two_labels: list[tuple[list[str], list[str]]]
    shared: list[list[str]]
    compared: bool

    def lines(self, shown: int = 1) -> Iterator[str]:
        """The findings in words, with the first `shown` of each."""
        for found, what in (
            (
                [f"{path} ({count} times)" for path, count in self.repeated],
                "images are listed more than once",
            ),
            (
                [f"{', '.join(paths)} ({' and '.join(labels)})" for paths, labels in self.two_labels],
                "images stand under more than one label",
            ),
            (
                [", ".join(paths) for paths in self.shared],
                "images are in training (or validation) and in test",
            ),
        ):
            if found:
                more = f"; and {len(found) - shown:,} more" if len(found) > shown else ""
                yield f"{len(found):,} {what}: {'; '.join(found[:shown])}{more}"


def find(dataset: Dataset, at_most_bytes: int | None = None) -> Duplicates:
    """Looks for duplicates among the images of a data set.

    Args:
      dataset: the data set.
      at_most_bytes: names alone are compared where images of equal sizes, which have to be read, take more; None for
        no limit.
    """
    # (file, box) -> the places where it occurs: (part, label).
    places: dict[tuple[str, tuple[int, ...]], list[tuple[str, str]]] = defaultdict(list)
    images: dict[str, tuple[Source, int]] = {}
    for part, source in (
        ("train", dataset.train),
        ("validation", dataset.validation),
        ("test", dataset.test),
    ):
        if source is None:
            continue
        boxes = getattr(source, "boxes", None)
        # The database of a closed split is the training images, or may be.
        closed = part == "test" and "closed_set" in dataset.protocols
        for n in dataset.query.tolist() if closed and dataset.query is not None else range(len(source)):
            box = () if boxes is None else tuple(boxes[n].tolist())
            label = source.class_names[source.labels[n]] if source.labels[n] >= 0 else ""
            path = os.path.normpath(source.describe(n))
            places[path, box].append((part, label))
            images[path] = source, n
    known, compared = digests_of(images, at_most_bytes)
    repeated = []
    groups: dict[tuple[Any, tuple[int, ...]], list[tuple[str, str, str]]] = defaultdict(list)
    for (path, box), where in places.items():
        most = max(Counter(where).values())
        if most > 1:
            repeated.append((path, most))
        groups[known.get(path, path), box] += [(path, *place) for place in where]
    two_labels, shared = [], []
    for group in groups.values():
        paths = list(dict.fromkeys(path for path, _, _ in group))
        labels = sorted({label for _, _, label in group if label})
        if len(labels) > 1:
            two_labels.append((paths, labels))
        if len({part == "test" for _, part, _ in group}) == 2:
            shared.append(paths)
    return Duplicates(repeated, two_labels, shared, compared)


def digests_of(
    images: Mapping[str, tuple[Source, int]], at_most_bytes: int | None
) -> tuple[dict[str, Any], bool]:
    """Digests of all images that may equal another one, by name; and whether they were computed.

    Those of packed images are there already. Of others, images are read that another one equals in size.

    Args:
      images: (source, number there) by name; those of a source that can tell no sizes are left out.
      at_most_bytes: see `find`.
    """
    digests: dict[str, Any] = {}
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, image in images.items():
        source, n = origin_of(*image)
        if (packed := getattr(source, "digests", None)) is not None:
            digests[name] = tuple(packed[n].tolist())
        elif (size := getattr(source, "size", None)) is not None:
            with contextlib.suppress(OSError):  # reading the images reports it later
                by_size[size(n)].append(name)
    alike = {size: found for size, found in by_size.items() if size and len(found) > 1}
    if at_most_bytes is not None and sum(size * len(found) for size, found in alike.items()) > at_most_bytes:
        return digests, False
    for name in (name for found in alike.values() for name in found):
        source, n = images[name]
        with contextlib.suppress(OSError, UserError):
            digests[name] = hashlib.sha256(source.read(n)).hexdigest()
    return digests, True
