"""Verification: do two images show the same? All pairs of images, or a given list, as a ROC curve.

At a threshold t on the distance a pair is accepted when its distance is at most t. TAR (true-accept rate) is the share
of accepted pairs among those of one class, FAR (false-accept rate) among those of two.

- `auc`: area under the curve; the share of (same, different) couples of pairs in the right order, ties counted half.
- `eer`: the FAR at which FAR = 1 - TAR, on straight lines between the points of the curve.
- `tar@1e-03`: the largest TAR at any threshold with a FAR of at most 1e-3. It is reported if at least ten pairs of
  different classes may be accepted, so 1e-3 takes 10,000 of them.

Exactness. Up to `_EXACT` pairs, distances are formed by differences in float64 and sorted: everything is exact, ties
included. More pairs are counted in 2^20 steps of equal width from 0 to the largest possible distance: distances of one
step count as tied, and the counts at every reported threshold (the end of a step) are exact for the distances that
float32 products give. A step is about as wide as the rounding of these products.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from hap2s_jax.distances import distances_between
from hap2s_jax.evaluation.counted_pairs import CountedPairs
from hap2s_jax.evaluation.inputs import JUNK, check_embeddings, check_integers

FALSE_ACCEPTS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FEWEST = 10  # a rate is reported only if at least so many pairs or queries could be accepted falsely
_EXACT = 2**22
_AT_ONCE = 2**15  # pairs whose differences are computed at a time
_CURVE = np.logspace(-6, 0, 49)  # false-accept rates at which intervals are given


@dataclasses.dataclass(frozen=True)
class Roc:
    """Pairs accepted at each threshold.

    Attributes:
      distances: `[p]` thresholds, ascending.
      same, different: int64 `[p]` pairs of one class, and of two, at most so far apart.
    """

    distances: np.ndarray
    same: np.ndarray
    different: np.ndarray

    @property
    def tar(self) -> np.ndarray:
        """True-accept rates `[p]`."""
        return self.same / self.same[-1]

    @property
    def far(self) -> np.ndarray:
        """False-accept rates `[p]`."""
        return self.different / self.different[-1]

    def auc(self) -> float:
        """The area under TAR over FAR."""
        tar = np.append(0.0, self.tar)
        return float(np.sum(np.diff(self.far, prepend=0.0) * (tar[1:] + tar[:-1]) / 2))

    def eer(self) -> float:
        """The rate at which as many pairs of different classes are accepted as pairs of one class are rejected."""
        tar, far = np.append(0.0, self.tar), np.append(0.0, self.far)
        place = int(np.argmax(tar + far >= 1))  # the first point on or beyond the line FAR = 1 - TAR
        before, beyond = (tar[at] + far[at] - 1 for at in (place - 1, place))
        return float(far[place - 1] + (far[place] - far[place - 1]) * before / (before - beyond))

    def at(self, false_accepts: float) -> tuple[float, float]:
        """(TAR, threshold) of the largest threshold whose FAR is at most this; (0, NaN) where there is none."""
        place = int(np.searchsorted(self.far, false_accepts, side="right")) - 1
        return (0.0, float("nan")) if place < 0 else (float(self.tar[place]), float(self.distances[place]))

    def figures(self) -> dict[str, float]:
        """`auc`, `eer`, `tar@1e-01`, ..., and the numbers of pairs."""
        enough = [rate for rate in FALSE_ACCEPTS if enough_for(rate, int(self.different[-1]))]
        return {
            "auc": self.auc(),
            "eer": self.eer(),
            **{f"tar@{rate:.0e}": self.at(rate)[0] for rate in enough},
            "same_pairs": float(self.same[-1]),
            "different_pairs": float(self.different[-1]),
        }


def enough_for(rate: float, count: int) -> bool:
    """Whether so many pairs or queries are enough to measure a rate of false accepts."""
    return rate * count >= FEWEST * (1 - 1e-9)


def verification(
    embeddings: ArrayLike,
    labels: ArrayLike | None,
    pairs: ArrayLike | None = None,
    *,
    distance: str = "euclidean",
) -> dict[str, float]:
    """ROC AUC, equal error rate and true-accept rates of pairs of images.

    Args:
      embeddings: `[n, d]` floats, all finite.
      labels: `[n]` integers; -1 is junk, and no pair has it. None where `pairs` says which are the same.
      pairs: `[p, 2]` row numbers, or `[p, 3]` with 1 for a pair of one class and 0 for others; None for all pairs.
      distance: "euclidean" ("squared_euclidean" gives the same figures) or "cosine".

    Returns:
      Figures by name, see the top of the module.

    Raises:
      ValueError, TypeError: one line that names the argument; there is no pair of one class, or none of two.
    """
    return roc(embeddings, labels, pairs, distance=distance).figures()


def roc(
    embeddings: ArrayLike,
    labels: ArrayLike | None,
    pairs: ArrayLike | None = None,
    *,
    distance: str = "euclidean",
) -> Roc:
    """The whole curve; arguments and errors are `verification`'s."""
    found = _pairs(embeddings, labels, pairs, distance)
    if isinstance(found, CountedPairs):
        counts = found.counts()
        seen = np.flatnonzero(counts.any(axis=0))
        distances, counts = found.threshold(seen + 1), counts[:, seen]
    else:
        distances, place = np.unique(found.distances, return_inverse=True)
        counts = np.stack(
            [np.bincount(place[found.same == kind], minlength=len(distances)) for kind in (True, False)]
        )
    same, different = np.cumsum(counts, axis=1)
    for number, which in ((same, "of one class"), (different, "of two classes")):
        if not len(number) or not number[-1]:
            raise ValueError(f"verification needs pairs of one class and of two, but there is none {which}.")
    return Roc(distances, same, different)


def intervals(
    embeddings: ArrayLike,
    labels: ArrayLike,
    pairs: ArrayLike | None = None,
    *,
    distance: str = "euclidean",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence intervals of the curve, by a bootstrap over classes, since pairs of a class are not independent.

    A class drawn w times brings its pairs w times; a pair of two classes, drawn v and w times, counts v + w - 1 times,
    which is v * w to first order.

    Args:
      embeddings, labels, pairs, distance: of `verification`, with labels.
      level: share of resampled curves within the interval.
      resamples: number of them.
      seed: of the resampling.

    Returns:
      False-accept rates `[g]`, ascending, and bounds `[2, g]` of the true-accept rate at each.
    """
    curve = roc(embeddings, labels, pairs, distance=distance)
    rates = _CURVE[[enough_for(rate, int(curve.different[-1])) for rate in _CURVE]]
    limits = [curve.at(rate)[1] for rate in rates if curve.at(rate)[0] > 0] + [float(curve.distances[-1])]
    by_class = _by_class(embeddings, labels, pairs, np.unique(limits), distance)
    draws = np.random.default_rng(seed)
    count = by_class.shape[1]
    resampled = []
    for _ in range(resamples):
        times = draws.multinomial(count, np.full(count, 1 / count))
        same, different = np.sum(times[:, None] * by_class, axis=1)
        # Each pair of images of two classes counts for both classes.
        different = different - by_class[1].sum(axis=0) / 2
        if same[-1] > 0 and different[-1] > 0:
            far = np.maximum.accumulate(np.clip(different / different[-1], 0, 1))
            resampled.append(np.interp(rates, np.append(0, far), np.append(0, same / same[-1])))
    tail = 100 * (1 - level) / 2
    return rates, np.percentile(resampled, [tail, 100 - tail], axis=0)


class _Listed(NamedTuple):
    """A list of pairs: distances `[p]`, whether of one class `[p]`, and rows `[p, 2]`."""

    distances: np.ndarray
    same: np.ndarray
    rows: np.ndarray


def _pairs(
    embeddings: ArrayLike, labels: ArrayLike | None, pairs: ArrayLike | None, distance: str
) -> _Listed | CountedPairs:
    """The chosen pairs, without junk."""
    array = check_embeddings(embeddings)
    if labels is None and (pairs is None or np.shape(pairs)[-1] != 3):
        raise ValueError(
            "labels must be given, or pairs of three columns: row, row, and 1 for one class or 0."
        )
    label = np.zeros(len(array), int) if labels is None else check_integers(labels, len(array), "labels")
    same = None
    if pairs is not None:
        rows, same = _checked(pairs, len(array))
    else:
        kept = np.flatnonzero(label != JUNK)
        if len(kept) * (len(kept) - 1) // 2 > _EXACT:
            return CountedPairs(array, kept, np.unique(label[kept], return_inverse=True)[1], distance)
        rows = kept[np.stack(np.triu_indices(len(kept), 1), axis=1)]
    known = (label[rows] != JUNK).all(axis=1)
    rows, same = rows[known], label[rows[known, 0]] == label[rows[known, 1]] if same is None else same[known]
    apart = np.empty(len(rows))
    for begin in range(0, len(rows), _AT_ONCE):
        part = rows[begin : begin + _AT_ONCE]
        apart[begin : begin + _AT_ONCE] = distances_between(array[part[:, 0]], array[part[:, 1]], distance)
    return _Listed(apart, same, rows)


def _by_class(
    embeddings: ArrayLike, labels: ArrayLike, pairs: ArrayLike | None, limits: np.ndarray, distance: str
) -> np.ndarray:
    """Each class's pairs at most `limits` `[g]` apart, with the same class and with others, `[2, c, g]`."""
    found = _pairs(embeddings, labels, pairs, distance)
    classes = np.setdiff1d(labels, [JUNK])
    numbers = np.searchsorted(classes, np.asarray(labels))
    out = np.zeros((2, len(classes), len(limits)))
    if isinstance(found, CountedPairs):
        for kind, by_row in enumerate(found.by_row(limits)):
            np.add.at(out[kind], numbers[np.asarray(labels) != JUNK], by_row.T)
        return out
    for kind, of_kind in enumerate((found.same, ~found.same)):
        for place, limit in enumerate(limits):
            hits = numbers[found.rows[of_kind & (found.distances <= limit)]]
            out[kind, :, place] = np.bincount(hits.reshape(-1), minlength=out.shape[1])
    return out


def _checked(pairs: ArrayLike, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] not in (2, 3) or not len(array):
        raise ValueError(
            f"pairs must be [p, 2] row numbers, or [p, 3] with 1 for the same or 0, but is {array.shape}."
        )
    if array.dtype.kind not in "iu":
        raise TypeError(f"pairs must be integer row numbers, but has dtype {array.dtype}.")
    rows = array[:, :2].astype(np.int64)
    if wrong := rows[(rows < 0) | (rows >= count)].tolist():
        raise ValueError(f"pairs names row {wrong[0]}, but the embeddings have rows 0 to {count - 1}.")
    if (twice := np.flatnonzero(rows[:, 0] == rows[:, 1])).size:
        raise ValueError(f"pairs compares row {rows[twice[0], 0]} with itself, in pair {twice[0]}.")
    if array.shape[1] == 2:
        return rows, None
    if not np.isin(array[:, 2], (0, 1)).all():
        raise ValueError("pairs: the third column must be 1 for a pair of one class and 0 for others.")
    return rows, array[:, 2] == 1
