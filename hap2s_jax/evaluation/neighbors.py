"""Nearest neighbours among all embeddings, a block of rows at a time: where re-ranking and expansion start."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_TILE_BYTES = 96 * 2**20
_PAIR_BYTES = 64 * 2**20


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
    squares = jnp.einsum("nd,nd->n", a, a)[:, None] + jnp.einsum("nd,nd->n", b, b)
    return jnp.maximum(squares - 2 * product, 0)
