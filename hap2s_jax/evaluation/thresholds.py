"""Open-set retrieval: is the nearest image near enough to be an answer? False accepts against false rejects.

A query is *known* when the gallery holds an image of its class, and *unknown* otherwise. At a threshold t on the
distance

    false accepts:  share of unknown queries whose nearest gallery image lies within t, so that a wrong answer is given;
    false rejects:  share of known queries whose nearest image of their own class lies beyond t, so that it is missed.

Every image of the calibration classes is asked twice: against the gallery as it is (known), and against the gallery
without its class (unknown). The more images a gallery holds, the more unknown queries find something near: a threshold
holds for galleries about as large as the one that it was calibrated on.

How sure these shares are, `bounds` says.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hap2s_jax.distances import distances_between, products, scores, squares
from hap2s_jax.evaluation.bounds import CONFIDENCE, classes_for, upper_bound
from hap2s_jax.evaluation.inputs import JUNK, check_problem, space

# Fewer classes make no threshold by themselves: even without any error they leave 14 % false rejects possible.
FEWEST_CLASSES = 20
_ROWS = 512
_POINTS = 400
# Images or classes that a calibration on file may claim.
_MOST = 10**8


@dataclasses.dataclass(frozen=True)
class ErrorRates:
    """False accepts and false rejects over thresholds.

    Attributes:
      thresholds: `[p]` distances, ascending.
      false_accepts, false_rejects: `[p]` shares of queries, 0 to 1; the first rises, the second falls.
      accepting_classes, rejecting_classes: `[p]` numbers of classes with at least one such query.
      known, unknown: number of queries behind each share.
      known_classes, unknown_classes: number of these queries' classes.
      gallery: images that a query was compared with.
      data: what it was calibrated on, in words.
    """

    thresholds: np.ndarray
    false_accepts: np.ndarray
    false_rejects: np.ndarray
    accepting_classes: np.ndarray
    rejecting_classes: np.ndarray
    known: int
    unknown: int
    known_classes: int
    unknown_classes: int
    gallery: int
    data: str = ""

    def at(self, threshold: float) -> tuple[float, float]:
        """(false accepts, false rejects) at a threshold; those of the nearest smaller one of `thresholds`."""
        place = self._place(threshold)
        return (
            (0.0, 1.0) if place < 0 else (float(self.false_accepts[place]), float(self.false_rejects[place]))
        )

    def bounds(self, threshold: float) -> tuple[float, float]:
        """Upper bounds, with 95 % confidence, of (false accepts, false rejects) of new classes at a threshold."""
        place = self._place(threshold)
        accepting = 0 if place < 0 else int(self.accepting_classes[place])
        rejecting = self.known_classes if place < 0 else int(self.rejecting_classes[place])
        return self._accept_bound(accepting), upper_bound(rejecting, self.known_classes)

    def equal(self) -> float:
        """The threshold at which the two shares are nearest to one another."""
        return float(self.thresholds[np.argmin(np.abs(self.false_accepts - self.false_rejects))])

    def default(self) -> float | None:
        """The threshold of equal errors, None where it would rest on fewer than FEWEST_CLASSES classes."""
        return self.equal() if min(self.known_classes, self.unknown_classes) >= FEWEST_CLASSES else None

    def for_false_accepts(self, share: float) -> float:
        """The largest threshold at which false accepts are at most this share, with 95 % confidence.

        Raises:
          ValueError: so few classes cannot show so small a share.
        """
        least = self._accept_bound(0)
        if share < least:
            shown = math.ceil(1000 * least) / 1000
            wanted = f"{classes_for(share):,} classes" if share > 0 else "no number of classes"
            raise ValueError(
                f"a share of {share:.3g} is less than {self.unknown_classes} classes can show: without any error among "
                f"them it may be {shown:g}, the smallest that can be asked for; {wanted} can show {share:.3g}"
            )
        # The classes that err rise with the threshold, and the bound with them.
        count = bisect.bisect_right(self.accepting_classes.tolist(), share, key=self._accept_bound)
        return float(self.thresholds[count - 1] if count else np.nextafter(self.thresholds[0], -1))

    def describe(self, threshold: float) -> str:
        """The errors at a threshold: their shares, counts and bounds."""
        place, parts = self._place(threshold), []
        for name, share, bound, queries, erring, classes in zip(
            ("false accepts", "false rejects"),
            self.at(threshold),
            self.bounds(threshold),
            (f"{self.unknown:,} unknown", f"{self.known:,} known"),
            (0, self.known_classes)
            if place < 0
            else (self.accepting_classes[place], self.rejecting_classes[place]),
            (self.unknown_classes, self.known_classes),
            strict=True,
        ):
            parts.append(
                f"{share:.1%} {name} of {queries} queries ({erring:,} of {classes:,} classes; new ones: at most "
                f"{bound:.1%} with {CONFIDENCE:.0%} confidence)"
            )
        return ", ".join(parts)

    def too_few(self) -> str:
        """Why there is no default threshold."""
        return (
            f"calibrated on {min(self.known_classes, self.unknown_classes)} classes, too few for a threshold "
            f"({FEWEST_CLASSES} are needed); give --threshold=NUMBER, or calibrate on labelled images of more: embed, "
            "then search --calibrate --gallery=FILE"
        )

    def to_json(self) -> dict[str, Any]:  # of JSON's types
        """The rates as plain lists and numbers; `from_json` is the inverse."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ErrorRates:  # of JSON's types
        """Undoes `to_json`; a KeyError, ValueError, TypeError or OverflowError for anything else."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            name, value = field.name, values[field.name]
            if field.type == "np.ndarray":
                value = np.array(value, np.int64 if name.endswith("classes") else float)
                fits = value.shape == (len(values["thresholds"]),) != (0,) and np.isfinite(value).all()
                fits = fits and (name == "thresholds" or value.min() >= 0)
                # What the threshold is found by rises with it.
                rises = name in ("thresholds", "false_accepts", "accepting_classes")
                fits = fits and not (rises and (np.diff(value) < 0).any())
            else:
                fits = (
                    isinstance(value, str) if name == "data" else type(value) is int and 0 <= value <= _MOST
                )
            if not fits:
                raise ValueError(f"{name} is {values[name]!r:.60}")
            found[name] = value
        return cls(**found)

    def _place(self, threshold: float) -> int:
        return int(np.searchsorted(self.thresholds, threshold, side="right")) - 1

    def _accept_bound(self, classes: int) -> float:
        # By pairs, see the top of `bounds`.
        return upper_bound(-(-classes // 2), self.unknown_classes // 2)


def error_rates(
    embeddings: ArrayLike, labels: ArrayLike, cameras: ArrayLike | None = None, *, distance: str = "euclidean"
) -> ErrorRates:
    """Calibrates thresholds on labelled embeddings, each of which queries all the others.

    Args:
      embeddings: `[n, d]`, of classes that were not trained on.
      labels: `[n]` integers; -1 is junk.
      cameras: `[n]` integers, or None: images of the query's class by its camera are then no answers to it.
      distance: "euclidean", "squared_euclidean" or "cosine".

    Raises:
      ValueError: fewer than two classes, or no query with an answer.
    """
    right, wrong = nearest_right_and_wrong(embeddings, labels, cameras, distance=distance)
    classes = np.asarray(labels)[np.asarray(labels) != JUNK]
    return rates_of(right, wrong, classes, len(right) - 1)


def rates_of(
    right: np.ndarray, wrong: np.ndarray, classes: np.ndarray, gallery: int, at: tuple[float, ...] = ()
) -> ErrorRates:
    """Calibrates thresholds on queries whose nearest images are known.

    Args:
      right, wrong: `[n]` distances to the nearest image of a query's own class, and of another; infinite without any.
      classes: `[n]` integers.
      gallery: how many images a query was compared with.
      at: thresholds that must be among those of the result.

    Raises:
      ValueError: no query has the one or the other.
    """
    known, unknown = np.isfinite(right), np.isfinite(wrong)
    if not known.any() or not unknown.any():
        raise ValueError("thresholds need at least two classes, one of them with two images.")
    # A class has false accepts from the distance of its nearest wrong image on, and false rejects up to its farthest
    # nearest right image.
    accepting, rejecting = (
        _each(np.minimum, classes[unknown], wrong[unknown]),
        _each(np.maximum, classes[known], right[known]),
    )
    both = np.unique(np.concatenate([right[known], wrong[unknown]]))
    # Evenly over the distances that occur, with both ends, and just before each class begins to err.
    even = both[np.linspace(0, len(both) - 1, min(_POINTS, len(both))).round().astype(int)]
    chosen = np.unique(np.concatenate([even, np.nextafter(accepting[:_POINTS], -1), at]))
    return ErrorRates(
        chosen,
        np.searchsorted(np.sort(wrong[unknown]), chosen, side="right") / unknown.sum(),
        1 - np.searchsorted(np.sort(right[known]), chosen, side="right") / known.sum(),
        np.searchsorted(accepting, chosen, side="right"),
        len(rejecting) - np.searchsorted(rejecting, chosen, side="right"),
        int(known.sum()),
        int(unknown.sum()),
        len(rejecting),
        len(accepting),
        gallery,
    )


def _each(extreme: np.ufunc, classes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The extreme value of every class, sorted."""
    number = np.unique(classes, return_inverse=True)[1]
    order = np.argsort(number, kind="stable")
    return np.sort(extreme.reduceat(values[order], np.flatnonzero(np.diff(number[order], prepend=-1))))


def nearest_right_and_wrong(
    embeddings: ArrayLike,
    labels: ArrayLike,
    cameras: ArrayLike | None = None,
    *,
    query: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    distance: str = "euclidean",
) -> tuple[np.ndarray, np.ndarray]:
    """Each query's distance to the nearest other image of its class, and to the nearest of another class.

    Arguments are those of `error_rates`, and the rows of queries and gallery, None for all. Returns float64 `[q]` each,
    without junk; infinite without such an image.
    """
    problem = check_problem(embeddings, labels, cameras, query, gallery)
    array, asked, kept = problem.embeddings, problem.query, problem.gallery
    to_space = space(array, distance)
    keys = (to_space(array, kept), problem.labels[kept], problem.cameras[kept])
    keys = jax.device_put(tuple(np.asarray(x, np.int32 if x.ndim == 1 else x.dtype) for x in keys))
    block = min(_ROWS, len(asked))
    found = []
    for begin in range(0, len(asked), block):
        part = asked[begin : begin + block]
        padded = np.resize(part, block)  # so that one program serves all
        queries = (to_space(array, padded), problem.labels[padded], problem.cameras[padded])
        near = np.stack(_nearest_places(queries, keys, cosine=to_space.cosine), axis=1)[: len(part)]
        distances = distances_between(array[part, None], array[kept[np.maximum(near, 0)]], distance)
        found.append(np.where(near < 0, np.inf, distances))
    right, wrong = np.concatenate(found).T
    return right, wrong


@functools.partial(jax.jit, static_argnames="cosine")
def _nearest_places(
    queries: tuple[jax.Array, ...], keys: tuple[jax.Array, ...], *, cosine: bool
) -> tuple[jax.Array, jax.Array]:
    """Place of the nearest right and of the nearest wrong key, int32 `[q]` each, -1 without one.

    `queries` and `keys` are (vectors, labels, cameras) each.
    """
    inner = products(queries[0], keys[0])
    score = -inner if cosine else scores(inner, squares(keys[0]))
    same, same_camera = (a[:, None] == b[None, :] for a, b in zip(queries[1:], keys[1:], strict=True))

    def nearest(allowed: jax.Array) -> jax.Array:
        place = jnp.argmin(jnp.where(allowed, score, jnp.inf), axis=1)
        return jnp.where(allowed.any(axis=1), place, -1)

    return nearest(same & ~same_camera), nearest(~same)
