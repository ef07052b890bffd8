"""Nearest neighbours among all embeddings, a block of rows at a time: where re-ranking and expansion start."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.evaluation.inputs import check_distance, check_embeddings, space

_TILE_BYTES = 96 * 2**20
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
    block = max(1, min(count, _TILE_BYTES // (4 * count)))
    keys = jnp.asarray(vectors)
    squares = jnp.einsum("nd,nd->n", keys, keys, precision="highest")
    index = np.empty((count, k), np.int32)
    near, far = np.empty((count, k), vectors.dtype), np.empty(count, vectors.dtype)
    for begin in range(0, count, block):
        start = min(begin, count - block)  # the last block overlaps, so that one program serves all
        found = _neighbor_block(keys, squares, start, block=block, k=k, cosine=cosine)
        index[start : start + block], near[start : start + block], far[start : start + block] = found
    return index, near, far


@functools.partial(jax.jit, static_argnames=("block", "k", "cosine"))
def _neighbor_block(
    keys: jax.Array, squares: jax.Array, start: Any, *, block: int, k: int, cosine: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    rows = lax.dynamic_slice_in_dim(keys, start, block)
    product = jnp.matmul(rows, keys.T, precision="highest")
    if cosine:
        table = 1 - product
    else:
        own = lax.dynamic_slice_in_dim(squares, start, block)
        table = jnp.maximum(own[:, None] + squares - 2 * product, 0)
    # Rounding must not push a row off the first place of its own list.
    itself = (jnp.arange(block), start + jnp.arange(block))
    values, index = lax.top_k(-table.at[itself].set(-1), k)
    near = jnp.maximum(-values, 0)
    return index.astype(jnp.int32), near, jnp.max(table, axis=1)


def pair_distances(vectors: np.ndarray, first: np.ndarray, second: np.ndarray, *, cosine: bool) -> np.ndarray:
    """Distances between `vectors[first]` and `vectors[second]`, `[p]`, as in `all_neighbors`, by differences."""
    out = np.empty(len(first), vectors.dtype)
    step = max(1, _PAIR_BYTES // (vectors.shape[1] * vectors.itemsize))
    for begin in range(0, len(first), step):
        a, b = vectors[first[begin : begin + step]], vectors[second[begin : begin + step]]
        if cosine:
            out[begin : begin + step] = 1 - np.einsum("pd,pd->p", a, b)
        else:
            a -= b
            out[begin : begin + step] = np.einsum("pd,pd->p", a, a)
    return out


def cross_distances(
    vectors: np.ndarray, rows: np.ndarray, columns: np.ndarray, *, cosine: bool
) -> np.ndarray:
    """Distances between `vectors[rows]` and `vectors[columns]`, `[r, c]`, as in `all_neighbors`."""
    return np.asarray(_cross(vectors[rows], vectors[columns], cosine=cosine))


@functools.partial(jax.jit, static_argnames="cosine")
def _cross(a: jax.Array, b: jax.Array, *, cosine: bool) -> jax.Array:
    product = jnp.matmul(a, b.T, precision="highest")
    if cosine:
        return 1 - product
    own, others = (jnp.einsum("nd,nd->n", x, x, precision="highest") for x in (a, b))
    squares = own[:, None] + others
    return jnp.maximum(squares - 2 * product, 0)


class ExactIndex:
    """The nearest of many rows to any vectors, exactly: every distance is formed, on the device, block by block.

    Args:
      embeddings: float `[n, d]`, finite.
      distance: "euclidean", "squared_euclidean" or "cosine".
    """

    def __init__(self, embeddings: Any, distance: str = "euclidean"):
        self._rows = check_embeddings(embeddings)
        self._space, self._distance = space(self._rows, distance), distance
        count = len(self._rows)
        # Rows in powers of two, so that galleries of other sizes find their programs compiled.
        self._block = min(1 << (count - 1).bit_length(), _TILE_BYTES // 4 // _QUERIES_AT_ONCE)
        self._blocks = []
        for begin in range(0, count, self._block):
            rows = np.arange(begin, min(begin + self._block, count))
            keys = jnp.asarray(self._space(self._rows, rows, self._block))
            squares = jnp.einsum("nd,nd->n", keys, keys, precision="highest")
            # What fills up the last block is infinitely far away.
            self._blocks.append((keys, jnp.where(jnp.arange(self._block) < len(rows), squares, jnp.inf)))

    def search(self, queries: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest rows to each query.

        Args:
          queries: float `[q, d]`.
          k: how many, at most n.

        Returns:
          Distances `[q, k]`, formed by differences, and row numbers int64 `[q, k]`, nearest first; ties: the lower row
          first.
        """
        asked = check_embeddings(queries, "queries").astype(self._rows.dtype, copy=False)
        if asked.shape[1] != self._rows.shape[1] or not 1 <= k <= len(self._rows):
            raise ValueError(
                f"queries are {list(asked.shape)} and k is {k}, where the rows are {list(self._rows.shape)}."
            )
        distances, rows = [], []
        for begin in range(0, len(asked), _QUERIES_AT_ONCE):
            part = asked[begin : begin + _QUERIES_AT_ONCE]
            # Float32 products cannot tell what lies close together; differences can, among a few more.
            found = self._nearest(part, min(k + _SPARE, len(self._rows)))
            # One query at a time: float64 copies of all neighbours may be large.
            for one, near in zip(part, found, strict=True):
                near = np.sort(near)
                apart = distances_between(one[None], self._rows[near], self._distance)
                order = np.argsort(apart, kind="stable")[:k]
                distances.append(apart[order])
                rows.append(near[order])
        return np.stack(distances), np.stack(rows)

    def _nearest(self, asked: np.ndarray, k: int) -> np.ndarray:
        placed = self._space(asked, np.arange(len(asked)), 1 << (len(asked) - 1).bit_length())
        scores, rows = [], []
        for number, (keys, squares) in enumerate(self._blocks):
            values, places = _nearest_keys(
                placed, keys, squares, k=min(k, self._block), cosine=self._space.cosine
            )
            scores.append(np.asarray(values)[: len(asked)])
            rows.append(np.asarray(places)[: len(asked)].astype(np.int64) + number * self._block)
        order = np.argsort(np.concatenate(scores, axis=1), axis=1, kind="stable")[:, :k]
        return np.take_along_axis(np.concatenate(rows, axis=1), order, axis=1)


@functools.partial(jax.jit, static_argnames=("k", "cosine"))
def _nearest_keys(
    queries: jax.Array, keys: jax.Array, squares: jax.Array, *, k: int, cosine: bool
) -> tuple[jax.Array, jax.Array]:
    product = jnp.matmul(queries, keys.T, precision="highest")
    # A query's own square changes nothing in its order.
    score = jnp.where(jnp.isinf(squares), jnp.inf, -product if cosine else squares - 2 * product)
    values, places = lax.top_k(-score, k)
    return -values, places


def distances_between(a: np.ndarray, b: np.ndarray, distance: str) -> np.ndarray:
    """Distances between vectors that stand opposite each other, `[..., d]` to `[...]`, by differences, in float64."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if check_distance(distance) == "cosine":
        lengths = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second)]
        first, second = (x / np.where(n == 0, 1, n) for x, n in zip((first, second), lengths, strict=True))
        return 1 - np.sum(first * second, axis=-1)
    squared = np.sum((first - second) ** 2, axis=-1)
    return squared if distance == "squared_euclidean" else np.sqrt(squared)
