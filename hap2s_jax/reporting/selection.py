"""Chooses images to show when there are too many to show all."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import numpy.typing as npt


def choose_queries(labels: npt.ArrayLike, count: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Draws the queries to show; none of a class is drawn a second time before all classes were drawn once.

    Args:
      labels: `[n]`, the classes of the queries.
      count: how many to choose; all of them where there are fewer.
      seed: of the draw.

    Returns:
      `[min(count, n)]` distinct positions, int64.
    """
    labels = np.asarray(labels)
    drawn = np.random.default_rng(seed).permutation(len(labels))
    seen: collections.Counter[Any] = collections.Counter()
    turns = []
    for label in labels[drawn].tolist():
        turns.append(seen[label])
        seen[label] += 1
    return drawn[np.argsort(turns, kind="stable")][:count].astype(np.int64)


def choose_for_map(labels: npt.ArrayLike, count: int = 1000, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Chooses images for `plots.embedding_map`: whole classes at random until `count` images are together.

    The map should show whether a class stays together, so that no class is shown in part.

    Args:
      labels: `[n]`. count: greatest number of images. seed: of the draw.

    Returns:
      Sorted positions, int64, `[at most count]`.
    """
    labels = np.asarray(labels)
    classes, index = np.unique(labels, return_inverse=True)
    order = np.argsort(np.random.default_rng(seed).permutation(len(classes))[index], kind="stable")
    sizes = np.bincount(index, minlength=len(classes))[index[order]]
    # The first image of a class decides for all of it.
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    fits = np.repeat(starts + sizes[starts] <= count, sizes[starts]) if len(labels) else np.zeros(0, bool)
    chosen = order[fits] if fits.any() else order[:count]
    return np.sort(chosen).astype(np.int64)
