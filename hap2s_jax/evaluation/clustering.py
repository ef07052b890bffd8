"""Clustering quality of embeddings: k-means on the device, then NMI, AMI and F1 against the classes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.evaluation.inputs import check_embeddings, check_integers, space

_SEEDING_ROUNDS = 64
_TILE_BYTES = 32 * 2**20
_LANES = 32


def kmeans(
    embeddings: Any,
    clusters: int,
    *,
    distance: str = "euclidean",
    seed: int = 0,
    restarts: int = 3,
    iterations: int = 50,
) -> np.ndarray:
    """Assigns each embedding to one of `clusters` clusters by Lloyd's k-means; int32 `[n]`.

    Starts are drawn with probability proportional to the squared distance from the centres so far (k-means++,
    Arthur 2007), several at a time when there are many clusters (Bahmani 2012). A cluster that falls empty
    takes over the embedding that lies farthest from its centre. Of the `restarts`, the one of least inertia
    is returned. The outcome is a function of the arguments alone.

    Args:
      embeddings: `[n, d]` floats, all finite.
      clusters: number of clusters, at most `n`.
      distance: "euclidean", or "cosine" to cluster the normalised embeddings.
      seed: of the starts.
      restarts: independent starts.
      iterations: at most so many Lloyd steps; a start ends early once no embedding changes its cluster.
    """
    array = check_embeddings(embeddings)
    count = array.shape[0]
    if not 1 <= clusters <= count:
        raise ValueError(f"clusters must lie between 1 and the {count} embeddings, but is {clusters}.")
    if restarts < 1 or iterations < 1:
        raise ValueError(f"restarts and iterations must be at least 1, but are {restarts} and {iterations}.")
    block = max(1, min(count, _TILE_BYTES // (4 * clusters)))
    padded = space(array, distance)(array, np.arange(count), count + -count % block)
    best, least = None, np.inf
    for key in jax.random.split(jax.random.key(seed), restarts):
        assignment, inertia = _lloyd(
            key, padded, count=count, clusters=clusters, iterations=iterations, block=block
        )
        if best is None or float(inertia) < least:
            best, least = assignment, float(inertia)
    return np.asarray(best)


@functools.partial(jax.jit, static_argnames=("count", "clusters", "iterations", "block"))
def _lloyd(
    key: jax.Array, padded: jax.Array, *, count: int, clusters: int, iterations: int, block: int
) -> tuple[jax.Array, jax.Array]:
    """One start of k-means: assignment int32 `[n]` and inertia."""
    points = padded[:count]
    squares = jnp.sum(points * points, axis=1)

    def assign(centres: jax.Array) -> tuple[jax.Array, jax.Array]:
        more = -clusters % _LANES
        lengths = jnp.pad(jnp.sum(centres * centres, axis=1), (0, more), constant_values=jnp.inf)
        centres = jnp.pad(centres, ((0, more), (0, 0)))

        def one(part: jax.Array) -> tuple[jax.Array, jax.Array]:
            return _lowest(lengths - 2 * jnp.matmul(part, centres.T, precision="highest"))

        nearest, scores = lax.map(one, padded.reshape(-1, block, padded.shape[1]))
        return nearest.reshape(-1)[:count], jnp.maximum(scores.reshape(-1)[:count] + squares, 0)

    def update(nearest: jax.Array, gaps: jax.Array) -> jax.Array:
        sums = jnp.zeros((clusters, points.shape[1]), points.dtype).at[nearest].add(points)
        sizes = jnp.zeros(clusters, jnp.int32).at[nearest].add(1)
        farthest = jnp.argsort(-gaps)[:clusters]
        empty = sizes == 0
        stand_in = points[farthest[jnp.cumsum(empty) - 1]]
        return jnp.where(empty[:, None], stand_in, sums / jnp.maximum(sizes, 1)[:, None].astype(points.dtype))

    def step(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        number, nearest, gaps, _ = carry
        again, new_gaps = assign(update(nearest, gaps))
        return number + 1, again, new_gaps, jnp.any(again != nearest)

    def go_on(carry: tuple[jax.Array, ...]) -> jax.Array:
        return carry[3] & (carry[0] < iterations)

    first = assign(_seed_centres(key, points, squares, clusters))
    _, nearest, gaps, _ = lax.while_loop(go_on, step, (jnp.zeros((), jnp.int32), *first, jnp.array(True)))
    return nearest, jnp.sum(gaps)


def _lowest(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Place int32 `[b]` and value `[b]` of the lowest in each row of `[b, k]`, k a multiple of `_LANES`."""
    # XLA's CPU code walks a row in a scalar loop; slice against slice is vectorised, and leaves a short row.
    width = scores.shape[1] // _LANES
    value, lane = scores[:, :width], jnp.zeros((scores.shape[0], width), jnp.int32)
    for number in range(1, _LANES):
        part = scores[:, number * width : (number + 1) * width]
        lane = jnp.where(part < value, number, lane)
        value = jnp.minimum(part, value)
    value, lane = lax.optimization_barrier((value, lane))
    place = jnp.argmin(value, axis=1)[:, None]
    found = jnp.take_along_axis(lane, place, axis=1) * width + place
    return found[:, 0].astype(jnp.int32), jnp.take_along_axis(value, place, axis=1)[:, 0]


def _seed_centres(key: jax.Array, points: jax.Array, squares: jax.Array, clusters: int) -> jax.Array:
    """k-means++ starts `[clusters, d]`, a few at a time so that many clusters need no more than 64 rounds."""
    count = points.shape[0]
    at_once = -(-clusters // _SEEDING_ROUNDS)
    rounds = -(-clusters // at_once)

    def draw(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chosen, gaps = carry
        # The first draw is uniform. A coincident point (gap 0) comes only when there is nothing else.
        logits = jnp.log(jnp.clip(gaps, jnp.finfo(gaps.dtype).tiny, jnp.finfo(gaps.dtype).max))
        noisy = logits + jax.random.gumbel(jax.random.fold_in(key, number), (count,), gaps.dtype)
        new = lax.top_k(noisy, at_once)[1]
        centres = points[new]
        product = jnp.matmul(points, centres.T, precision="highest")
        apart = squares[:, None] + squares[new] - 2 * product
        nearer = jnp.minimum(jnp.min(apart, axis=1), jnp.where(jnp.isinf(gaps), jnp.inf, gaps))
        return lax.dynamic_update_slice(chosen, new, (number * at_once,)), jnp.maximum(nearer, 0).at[new].set(
            0
        )

    start = jnp.zeros(rounds * at_once, jnp.int32), jnp.full(count, jnp.inf, points.dtype)
    chosen, _ = lax.fori_loop(0, rounds, draw, start)
    return points[chosen[:clusters]]


def nmi(labels: Any, assignment: Any) -> float:
    """Normalised mutual information, by the arithmetic mean of the two entropies."""
    table = _Contingency(labels, assignment)
    if table.trivial:
        return 1.0
    return float(max(0.0, table.mutual_information / ((table.row_entropy + table.column_entropy) / 2)))


def ami(labels: Any, assignment: Any) -> float:
    """Adjusted mutual information (Vinh et al., 2010), by the arithmetic mean of the two entropies."""
    table = _Contingency(labels, assignment)
    if table.trivial:
        return 1.0
    expected = table.expected_mutual_information()
    normaliser = (table.row_entropy + table.column_entropy) / 2
    # All singletons on both sides: the gap closes to rounding error, and its sign alone is to be kept.
    gap = normaliser - expected
    gap = min(gap, -np.finfo(float).eps) if gap < 0 else max(gap, np.finfo(float).eps)
    return float((table.mutual_information - expected) / gap)


def f1(labels: Any, assignment: Any) -> float:
    """F1 over pairs of images: those in one cluster against those in one class (Song et al., 2016)."""
    table = _Contingency(labels, assignment)
    together = np.sum(table.cells * (table.cells - 1.0))
    clustered = np.sum(table.column_sums * (table.column_sums - 1.0))
    related = np.sum(table.row_sums * (table.row_sums - 1.0))
    return float(2 * together / (clustered + related)) if clustered + related > 0 else 1.0


class _Contingency:
    """Counts of images by class and cluster, the nonzero cells only, in float64."""

    def __init__(self, labels: Any, assignment: Any) -> None:
        assigned = np.asarray(assignment)
        classes = np.unique(check_integers(labels, assigned.shape[0], "labels"), return_inverse=True)[1]
        clusters = np.unique(check_integers(assigned, classes.shape[0], "assignment"), return_inverse=True)[1]
        self.total = classes.shape[0]
        self.row_sums = np.bincount(classes).astype(np.float64)
        self.column_sums = np.bincount(clusters).astype(np.float64)
        pairs, cells = np.unique(classes * len(self.column_sums) + clusters, return_counts=True)
        self.cells = cells.astype(np.float64)
        rows, columns = pairs // len(self.column_sums), pairs % len(self.column_sums)
        outer = self.row_sums[rows] * self.column_sums[columns]
        self.mutual_information = float(
            np.sum(self.cells / self.total * np.log(self.cells * self.total / outer)),
        )
        self.row_entropy = _entropy(self.row_sums)
        self.column_entropy = _entropy(self.column_sums)

    @property
    def trivial(self) -> bool:
        """Both partitions put everything together: nothing to tell apart."""
        return len(self.row_sums) == len(self.column_sums) == 1

    def expected_mutual_information(self) -> float:
        """Mean mutual information of random partitions with these class and cluster sizes."""
        n = self.total
        log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
        rows, row_times = np.unique(self.row_sums.astype(np.int64), return_counts=True)
        columns, column_times = np.unique(self.column_sums.astype(np.int64), return_counts=True)
        expected = 0.0
        # Sizes repeat: a few dozen distinct ones stand for thousands of classes.
        for a, a_times in zip(rows, row_times, strict=True):
            for b, b_times in zip(columns, column_times, strict=True):
                shared = np.arange(max(1, a + b - n), min(a, b) + 1)
                chance = np.exp(
                    log_factorial[[a, b, n - a, n - b]].sum()
                    - log_factorial[n]
                    - log_factorial[shared]
                    - log_factorial[a - shared]
                    - log_factorial[b - shared]
                    - log_factorial[n - a - b + shared]
                )
                expected += a_times * b_times * np.sum(shared / n * np.log(n * shared / (a * b)) * chance)
        return float(expected)


def _entropy(sums: np.ndarray) -> float:
    share = sums / sums.sum()
    return float(-np.sum(share * np.log(share)))
