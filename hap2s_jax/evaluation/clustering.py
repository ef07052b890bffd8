"""Clustering quality of embeddings: k-means on the device, then NMI, AMI and F1 against the classes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.distances import gram_distances, products, scores, squares
from hap2s_jax.evaluation.inputs import cached_cells, check_embeddings, check_integers, space

_SEEDING_ROUNDS = 64
_LANES = 32


def kmeans(
    embeddings: ArrayLike,
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
    block = max(1, min(count, cached_cells() // clusters))
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
    lengths = squares(points)
    more = -clusters % _LANES
    width = (clusters + more) // _LANES

    def step(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        number, centres, before, _, _ = carry
        of_centres = jnp.pad(squares(centres), (0, more), constant_values=jnp.inf)
        centres = jnp.pad(centres, ((0, more), (0, 0)))

        def lowest(part: jax.Array) -> tuple[jax.Array, jax.Array]:
            # XLA's CPU code reduces a row in a scalar loop; slice against slice is vectorised, and leaves a short row.
            score = scores(products(part, centres), of_centres)
            value, lane = score[:, :width], jnp.zeros((block, width), jnp.int32)
            for turn in range(1, _LANES):
                other = score[:, turn * width : (turn + 1) * width]
                lane = jnp.where(other < value, turn, lane)
                value = jnp.minimum(other, value)
            value, lane = lax.optimization_barrier((value, lane))
            place = jnp.argmin(value, axis=1)[:, None]
            found = jnp.take_along_axis(lane, place, axis=1) * width + place
            return found[:, 0].astype(jnp.int32), jnp.take_along_axis(value, place, axis=1)[:, 0]

        nearest, gaps = lax.map(lowest, padded.reshape(-1, block, padded.shape[1]))
        nearest, gaps = nearest.reshape(-1)[:count], jnp.maximum(gaps.reshape(-1)[:count] + lengths, 0)
        sums = jnp.zeros((clusters, points.shape[1]), points.dtype).at[nearest].add(points)
        sizes = jnp.zeros(clusters, jnp.int32).at[nearest].add(1)[:, None]
        empty = sizes[:, 0] == 0
        stand_in = points[jnp.argsort(-gaps)[:clusters][jnp.cumsum(empty) - 1]]
        means = jnp.where(empty[:, None], stand_in, sums / jnp.maximum(sizes, 1).astype(points.dtype))
        return number + 1, means, nearest, gaps, jnp.any(nearest != before)

    centres = _seed_centres(key, points, lengths, clusters)
    start = jnp.zeros((), jnp.int32), centres, jnp.full(count, -1, jnp.int32), lengths, jnp.array(True)
    # One step more than `iterations`: the first assigns the embeddings to the starts.
    *_, nearest, gaps, _ = lax.while_loop(lambda carry: carry[4] & (carry[0] <= iterations), step, start)
    return nearest, jnp.sum(gaps)


def _seed_centres(key: jax.Array, points: jax.Array, lengths: jax.Array, clusters: int) -> jax.Array:
    """k-means++ starts `[clusters, d]`, a few at a time so that many clusters need no more than 64 rounds."""
    count = points.shape[0]
    at_once = -(-clusters // _SEEDING_ROUNDS)
    rounds = -(-clusters // at_once)

    def draw(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chosen, gaps = carry
        # The first draw is uniform. A coincident point (gap 0) is drawn only when no other is left.
        logits = jnp.log(jnp.clip(gaps, jnp.finfo(gaps.dtype).tiny, jnp.finfo(gaps.dtype).max))
        noisy = logits + jax.random.gumbel(jax.random.fold_in(key, number), (count,), gaps.dtype)
        new = lax.top_k(noisy, at_once)[1]
        apart = gram_distances(points, points[new], a_squares=lengths, b_squares=lengths[new])
        nearer = jnp.minimum(jnp.min(apart, axis=1), gaps).at[new].set(0)
        return lax.dynamic_update_slice(chosen, new, (number * at_once,)), nearer

    start = jnp.zeros(rounds * at_once, jnp.int32), jnp.full(count, jnp.inf, points.dtype)
    chosen, _ = lax.fori_loop(0, rounds, draw, start)
    return points[chosen[:clusters]]


def measures(labels: ArrayLike, assignment: ArrayLike) -> tuple[float, float, float]:
    """nmi, ami and f1 of clusters against classes, integers `[n]` each; see the functions of these names."""
    assigned = np.asarray(assignment)
    classes = np.unique(check_integers(labels, len(assigned), "labels"), return_inverse=True)[1]
    clusters = np.unique(check_integers(assigned, len(classes), "assignment"), return_inverse=True)[1]
    rows, columns = np.bincount(classes), np.bincount(clusters)
    # Number of images of each class in each cluster; nonzero cells only.
    cell, cells = np.unique(classes * len(columns) + clusters, return_counts=True)
    sums = np.concatenate([rows, columns]).astype(np.float64)
    together, pairs = np.sum(cells * (cells - 1.0)), np.sum(sums * (sums - 1.0))
    pairwise = float(2 * together / pairs) if pairs > 0 else 1.0
    # Among these is the one case in which chance leaves no gap to the maximum, so that ami were 0 / 0 up to rounding:
    # classes of one image each in clusters of one.
    if len(cells) == len(rows) == len(columns):
        return 1.0, 1.0, pairwise
    total, cells = len(classes), cells.astype(np.float64)
    outer = sums[cell // len(columns)] * columns[cell % len(columns)]
    mutual = float(np.sum(cells / total * np.log(cells * total / outer)))
    # Mean of the entropies of classes and clusters.
    entropy = float(-np.sum(sums / total * np.log(sums / total)) / 2)
    expected = _expected_mutual_information(rows, columns)
    return float(max(0.0, mutual / entropy)), float((mutual - expected) / (entropy - expected)), pairwise


def nmi(labels: ArrayLike, assignment: ArrayLike) -> float:
    """Normalised mutual information, by the arithmetic mean of the two entropies."""
    return measures(labels, assignment)[0]


def ami(labels: ArrayLike, assignment: ArrayLike) -> float:
    """Adjusted mutual information (Vinh et al., 2010), by the arithmetic mean of the two entropies."""
    return measures(labels, assignment)[1]


def f1(labels: ArrayLike, assignment: ArrayLike) -> float:
    """F1 over pairs of images: those in one cluster against those in one class (Song et al., 2016)."""
    return measures(labels, assignment)[2]


def _expected_mutual_information(classes: np.ndarray, clusters: np.ndarray) -> float:
    """Mean mutual information of random partitions with these class and cluster sizes."""
    n = int(classes.sum())
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    rows, row_times = np.unique(classes, return_counts=True)
    columns, column_times = np.unique(clusters, return_counts=True)
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
