"""Nearest neighbours among all embeddings, a block of rows at a time; for re-ranking and expansion."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.distances import distances_between, gram_distances, products, scores, squares
from hap2s_jax.evaluation.inputs import cached_cells, check_embeddings, space

_TILE_BYTES = 96 * 2**20  # distances of a block of rows to all keys
_PAIR_BYTES = 64 * 2**20
_QUERIES_AT_ONCE = 256
_SPARE = 32


def all_neighbors(vectors: np.ndarray, k: int, *, cosine: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `k` nearest of all rows to each row, the row itself first among equals.

    Args:
      vectors: `[n, d]`, coordinates as `Space` makes them.
      k: how many, at most `n`.
      cosine: whether `vectors` are directions: the distance is then `1 - cos`, else Euclidean.

    Returns:
      Row numbers int32 `[n, k]`, nearest first (ties: the lower row first, but the row itself before all);
      distances `[n, k]`, squared if Euclidean; and each row's largest distance `[n]`, likewise.
    """
    count = len(vectors)
    # As many rows as fit the cache; products of fewer than 256 rows are slow.
    block = max(1, min(count, max(256, cached_cells() // count), _TILE_BYTES // (4 * count)))
    keys = jnp.asarray(vectors)
    lengths = squares(keys)
    index = np.empty((count, k), np.int32)
    near, far = np.empty((count, k), vectors.dtype), np.empty(count, vectors.dtype)
    for begin in range(0, count, block):
        start = min(begin, count - block)  # the last block overlaps, so that one program serves all
        found = _neighbor_block(keys, lengths, np.int32(start), block=block, k=k, cosine=cosine)
        index[start : start + block], near[start : start + block], far[start : start + block] = found
    return index, near, far


@functools.partial(jax.jit, static_argnames=("block", "k", "cosine"))
def _neighbor_block(
    keys: jax.Array, lengths: jax.Array, start: jax.Array, *, block: int, k: int, cosine: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    rows, own = (lax.dynamic_slice_in_dim(array, start, block) for array in (keys, lengths))
    table = gram_distances(rows, keys, cosine=cosine, a_squares=own, b_squares=lengths)
    # Rounding must not push a row off the first place of its own list.
    itself = (jnp.arange(block), start + jnp.arange(block))
    values, index = lax.top_k(-table.at[itself].set(-1), k)
    near = jnp.maximum(-values, 0)
    return index.astype(jnp.int32), near, jnp.max(table, axis=1)


def opposite_distances(
    vectors: np.ndarray, first: np.ndarray, second: np.ndarray, *, cosine: bool
) -> np.ndarray:
    """Distances between `vectors[first]` and `vectors[second]`, `[p]`, as in `all_neighbors`, by differences."""
    out = np.empty(len(first), vectors.dtype)
    step = max(1, _PAIR_BYTES // (vectors.shape[1] * vectors.itemsize))
    for begin in range(0, len(first), step):
        a, b = vectors[first[begin : begin + step]], vectors[second[begin : begin + step]]
        if cosine:
            out[begin : begin + step] = 1 - (squares(a) + squares(b) - squares(a - b)) / 2
        else:
            out[begin : begin + step] = squares(a - b)
    return out


def cross_distances(
    vectors: np.ndarray, rows: np.ndarray, columns: np.ndarray, *, cosine: bool
) -> np.ndarray:
    """Distances between `vectors[rows]` and `vectors[columns]`, `[r, c]`, as in `all_neighbors`."""
    return np.asarray(_cross(vectors[rows], vectors[columns], cosine=cosine))


_cross = jax.jit(gram_distances, static_argnames="cosine")


class ExactIndex:
    """Finds the nearest of many rows exactly: computes every distance, on the device, block by block.

    Args:
      embeddings: float `[n, d]`, finite.
      distance: "euclidean", "squared_euclidean" or "cosine".
    """

    def __init__(self, embeddings: ArrayLike, distance: str = "euclidean"):
        self._rows = check_embeddings(embeddings)
        self._space, self._distance = space(self._rows, distance), distance
        count = len(self._rows)
        # Rows in powers of two, so that galleries of other sizes find their programs compiled.
        self._block = min(1 << (count - 1).bit_length(), _TILE_BYTES // 4 // _QUERIES_AT_ONCE)
        self._blocks = []
        for begin in range(0, count, self._block):
            rows = np.arange(begin, min(begin + self._block, count))
            keys = self._space(self._rows, rows, self._block)
            # The rows that fill up the last block are infinitely far away.
            lengths = np.where(np.arange(self._block) < len(rows), squares(keys), np.inf).astype(keys.dtype)
            self._blocks.append((jnp.asarray(keys), jnp.asarray(lengths)))

    def search(
        self, queries: ArrayLike, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest rows to each query.

        Args:
          queries: float `[q, d]`.
          k: how many, at most n.
          allowed: bool `[n]`, the rows that may be found; None for all.

        Returns:
          Distances `[q, k]`, formed by differences, and row numbers int64 `[q, k]`, nearest first; ties: the lower row
          first. Infinity and -1 where fewer rows are allowed.
        """
        asked = check_embeddings(queries, "queries").astype(self._rows.dtype, copy=False)
        if asked.shape[1] != self._rows.shape[1] or not 1 <= k <= len(self._rows):
            raise ValueError(
                f"queries are {list(asked.shape)} and k is {k}, where the rows are {list(self._rows.shape)}."
            )
        most = len(self._rows) if allowed is None else int(allowed.sum())
        if most == 0:
            return np.full((len(asked), k), np.inf), np.full((len(asked), k), -1)
        blocks = self._blocks if allowed is None else self._allowing(allowed)
        distances, rows = [], []
        for begin in range(0, len(asked), _QUERIES_AT_ONCE):
            part = asked[begin : begin + _QUERIES_AT_ONCE]
            # Float32 products cannot order close neighbours, so a few more are found, and ordered by differences.
            found = self._nearest(part, min(k + _SPARE, len(self._rows)), blocks)[:, :most]
            # One query at a time: float64 copies of all neighbours may be large.
            for one, near in zip(part, found, strict=True):
                near = np.sort(near)
                apart = distances_between(one[None], self._rows[near], self._distance)
                order = np.argsort(apart, kind="stable")[:k]
                distances.append(apart[order])
                rows.append(near[order])
        missing = ((0, 0), (0, max(0, k - most)))
        return (
            np.pad(np.stack(distances), missing, constant_values=np.inf),
            np.pad(np.stack(rows), missing, constant_values=-1),
        )

    def _allowing(self, allowed: np.ndarray) -> list[tuple[jax.Array, jax.Array]]:
        """The blocks, with all other rows infinitely far away."""
        padded = np.zeros(len(self._blocks) * self._block, bool)
        padded[: len(allowed)] = allowed
        return [
            (keys, jnp.where(part, lengths, jnp.inf))
            for part, (keys, lengths) in zip(padded.reshape(-1, self._block), self._blocks, strict=True)
        ]

    def _nearest(self, asked: np.ndarray, k: int, blocks: list[tuple[jax.Array, jax.Array]]) -> np.ndarray:
        placed = self._space(asked, np.arange(len(asked)), 1 << (len(asked) - 1).bit_length())
        scores, rows = [], []
        for number, (keys, lengths) in enumerate(blocks):
            values, places = _nearest_keys(
                placed, keys, lengths, k=min(k, self._block), cosine=self._space.cosine
            )
            scores.append(np.asarray(values)[: len(asked)])
            rows.append(np.asarray(places)[: len(asked)].astype(np.int64) + number * self._block)
        order = np.argsort(np.concatenate(scores, axis=1), axis=1, kind="stable")[:, :k]
        return np.take_along_axis(np.concatenate(rows, axis=1), order, axis=1)


@functools.partial(jax.jit, static_argnames=("k", "cosine"))
def _nearest_keys(
    queries: jax.Array, keys: jax.Array, lengths: jax.Array, *, k: int, cosine: bool
) -> tuple[jax.Array, jax.Array]:
    inner = products(queries, keys)
    # A query's own square does not change the order of its neighbours.
    score = jnp.where(jnp.isinf(lengths)[None, :], jnp.inf, -inner if cosine else scores(inner, lengths))
    values, places = lax.top_k(-score, k)
    return -values, places
