"""When is the nearest image near enough to be an answer? Open-set retrieval: false accepts against false rejects.

A query is *known* when the gallery holds an image of its class, and *unknown* otherwise. At a threshold t on the
distance

    false accepts:  share of unknown queries whose nearest gallery image lies within t, so that a wrong answer is given;
    false rejects:  share of known queries whose nearest image of their own class lies beyond t, so that it is missed.

Every image of the calibration classes is asked twice: against the gallery as it is (known), and against the gallery
without its class (unknown). The more images a gallery holds, the more unknown queries find something near: a threshold
holds for galleries about as large as the one that it was calibrated on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hap2s_jax.distances import distances_between, products, scores, squares
from hap2s_jax.evaluation.inputs import check_problem, space

_ROWS = 512
_POINTS = 400


@dataclasses.dataclass(frozen=True)
class ErrorRates:
    """False accepts and false rejects over thresholds.

    Attributes:
      thresholds: `[p]` distances, ascending.
      false_accepts, false_rejects: `[p]` shares, 0 to 1; the first rises, the second falls.
      known, unknown: queries that each share is of.
      gallery: images that a query was compared with.
    """

    thresholds: np.ndarray
    false_accepts: np.ndarray
    false_rejects: np.ndarray
    known: int
    unknown: int
    gallery: int

    def at(self, threshold: float) -> tuple[float, float]:
        """(false accepts, false rejects) at a threshold; those of the nearest smaller one of `thresholds`."""
        place = int(np.searchsorted(self.thresholds, threshold, side="right")) - 1
        if place < 0:
            return 0.0, 1.0
        return float(self.false_accepts[place]), float(self.false_rejects[place])

    def equal(self) -> float:
        """The threshold at which the two shares are nearest to one another."""
        return float(self.thresholds[np.argmin(np.abs(self.false_accepts - self.false_rejects))])

    def for_false_accepts(self, share: float) -> float:
        """The largest threshold with at most this share of false accepts; below all distances where there is none."""
        fitting = np.flatnonzero(self.false_accepts <= share)
        return float(self.thresholds[fitting[-1]]) if len(fitting) else float(np.nextafter(0, -1))

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers; `from_json` is the inverse."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ErrorRates:
        """Undoes `to_json`; a KeyError or ValueError for anything else."""
        curve = ("thresholds", "false_accepts", "false_rejects")
        found: dict[str, Any] = {name: np.asarray(values[name], float) for name in curve}
        found |= {name: int(values[name]) for name in ("known", "unknown", "gallery")}
        return cls(**found)


def error_rates(
    embeddings: Any, labels: Any, cameras: Any = None, *, distance: str = "euclidean"
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
    known, unknown = right[np.isfinite(right)], wrong[np.isfinite(wrong)]
    if len(known) == 0 or len(unknown) == 0:
        raise ValueError("thresholds need at least two classes, one of them with two images.")
    both = np.unique(np.concatenate([known, unknown]))
    # Evenly over the distances that occur, their ends included.
    chosen = np.unique(both[np.linspace(0, len(both) - 1, min(_POINTS, len(both))).round().astype(int)])
    accepts = np.searchsorted(np.sort(unknown), chosen, side="right") / len(unknown)
    rejects = 1 - np.searchsorted(np.sort(known), chosen, side="right") / len(known)
    return ErrorRates(chosen, accepts, rejects, len(known), len(unknown), len(right) - 1)


def nearest_right_and_wrong(
    embeddings: Any, labels: Any, cameras: Any = None, *, distance: str = "euclidean"
) -> tuple[np.ndarray, np.ndarray]:
    """Each image's distance to the nearest other of its class, and to the nearest of another class.

    Arguments are those of `error_rates`; infinite where there is none. float64 `[n]` each, without junk.
    """
    problem = check_problem(embeddings, labels, cameras, None, None)
    rows = problem.query
    array, label, seen = problem.embeddings[rows], problem.labels[rows], problem.cameras[rows]
    to_space = space(array, distance)
    keys = to_space(array, np.arange(len(array)))
    block = min(_ROWS, len(array))
    found = []
    for begin in range(0, len(array), block):
        start = min(begin, len(array) - block)  # the last block overlaps, so that one program serves all
        places = _nearest_places(keys, label, seen, start, block=block, cosine=to_space.cosine)
        near = np.stack(places, axis=1)[begin - start :]
        asking = array[begin : begin + len(near), None]
        distances = distances_between(asking, array[np.maximum(near, 0)], distance)
        found.append(np.where(near < 0, np.inf, distances))
    right, wrong = np.concatenate(found).T
    return right, wrong


@functools.partial(jax.jit, static_argnames=("block", "cosine"))
def _nearest_places(
    keys: jax.Array, label: jax.Array, camera: jax.Array, start: Any, *, block: int, cosine: bool
) -> tuple[jax.Array, jax.Array]:
    """Row of the nearest right and of the nearest wrong key, int32 `[block]` each, -1 without one."""
    row = start + jnp.arange(block)
    inner = products(keys[row], keys)
    score = -inner if cosine else scores(inner, squares(keys))
    same = label[row][:, None] == label[None, :]
    is_right = same & (camera[row][:, None] != camera[None, :])

    def nearest(allowed: jax.Array) -> jax.Array:
        place = jnp.argmin(jnp.where(allowed, score, jnp.inf), axis=1)
        return jnp.where(allowed.any(axis=1), place, -1)

    return nearest(is_right), nearest(~same)
