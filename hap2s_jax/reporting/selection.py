"""Which images to show, where there are too many to show all."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def choose_queries(
    number: int,
    count: int,
    *,
    seed: int = 0,
    worst: float = 0.0,
    scores: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
) -> npt.NDArray[np.int64]:
    """Chooses which queries to show: a seeded draw, with a share of the worst if wanted.

    Args:
      number: queries there are; count: how many to choose (all of them where there are fewer).
      seed: of the draw; the same arguments give the same choice.
      worst: share of the chosen, 0 to 1, taken from those with the lowest score; they come last. NaN (a query
        without any possible match) is never among the worst.
      scores: `[number]`, average precision of each query say; needed for `worst`.
      labels: `[number]`: no class twice while there are classes left.

    Returns:
      `[min(count, number)]` distinct positions, int64.

    Raises:
      ValueError: `worst` outside 0 to 1 or without scores; lengths that differ.
    """
    if not 0 <= worst <= 1 or (worst > 0 and scores is None):
        raise ValueError(f"worst is {worst}; it should be 0 to 1, with scores")
    for name, values in (("scores", scores), ("labels", labels)):
        if values is not None and np.shape(values) != (number,):
            raise ValueError(f"{name} has shape {np.shape(values)}; it should be ({number},)")
    count = min(count, number)
    drawn = np.random.default_rng(seed).permutation(number)
    bad: list[int] = []
    if worst > 0:
        quality = np.asarray(scores, dtype=np.float64)[drawn]
        # Stable, after the draw: of many equally bad ones it takes a random few, not those of one class.
        ranked = drawn[np.argsort(quality, kind="stable")]
        bad = _spread(ranked[: np.isfinite(quality).sum()], labels)[: round(worst * count)]
    chosen = [i for i in _spread(np.concatenate([bad, drawn]).astype(np.int64), labels) if i not in set(bad)]
    return np.asarray(chosen[: count - len(bad)] + bad, dtype=np.int64)


def choose_for_map(labels: npt.ArrayLike, count: int = 1500, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Chooses images for `plots.embedding_map`: whole classes at random until `count` images are together.

    Whole classes, because the map is there to show whether a class keeps together.

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


def _spread(order: npt.NDArray[np.int64], labels: npt.ArrayLike | None) -> list[int]:
    """`order` without repeats, the first of every class before the second of any."""
    order = order[np.sort(np.unique(order, return_index=True)[1])]
    if labels is None:
        return order.tolist()
    seen: dict[Any, int] = {}
    turns = []
    for label in np.asarray(labels)[order].tolist():
        turns.append(seen.setdefault(label, 0))
        seen[label] += 1
    return order[np.argsort(turns, kind="stable")].tolist()
