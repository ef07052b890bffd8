"""Ranks of first matches where every row asks all others: each product of two rows serves both, which halves the work.

Rows lie sorted by label and are taken in tiles. A strip of tiles, from the diagonal on, counts for its rows and, turned
over, for its columns. Counts are whole numbers, so that it does not matter which device has counted which strip.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.evaluation.inputs import JUNK
from hap2s_jax.evaluation.ranking import Keys, pad, score

_TILE = 256
_LANES = 32  # parts of a tile that are added up in bytes, so that no partial count exceeds it


class _Rows(NamedTuple):
    """All rows, padded to whole tiles with rows of no class at an infinite distance."""

    vectors: jax.Array  # [m, d]
    squares: jax.Array  # [m]
    labels: jax.Array  # [m]


def count_before_first(keys: Keys, count: int, *, strict: bool, devices: Sequence[Any]) -> np.ndarray:
    """How many wrong rows come before each row's nearest match, int64 `[count]`; meaningless for rows without any.

    With several processes each counts its share of the strips, and the sum over processes is the whole.

    Args:
      keys: all rows, sorted by label.
      count: how many of them are not padding.
      strict: whether a wrong row must be strictly nearer to come before.
      devices: to spread the strips over.
    """
    side = min(_TILE, -(-count // _LANES) * _LANES)
    padded = -(-count // side) * side
    vectors = np.pad(keys.vectors, ((0, padded - len(keys.vectors)), (0, 0)))
    squares, labels = pad(keys.squares, padded, np.inf), pad(keys.labels, padded, JUNK)
    # The last tile in which the classes of a tile's rows have members.
    ends = (np.searchsorted(labels[:count], labels[:count], side="right") - 1) // side
    tiles = padded // side
    last = [int(ends[min((b + 1) * side, count) - 1]) for b in range(tiles)]
    copies = [_Rows(*jax.device_put((vectors, squares, labels), device)) for device in devices]
    near = [jax.device_put(np.full(padded, np.inf, vectors.dtype), device) for device in devices]
    for b in range(tiles):
        at = b % len(devices)
        near[at] = _nearest_matches(copies[at], near[at], b, last[b], side=side)
    nearest = np.min([np.asarray(part) for part in near], axis=0)
    thresholds = [jax.device_put(nearest, device) for device in devices]
    found = [jax.device_put(np.zeros(padded, np.int32), device) for device in devices]
    for number, b in enumerate(range(tiles)[jax.process_index() :: jax.process_count()]):
        at = number % len(devices)
        found[at] = _count_strip(copies[at], thresholds[at], found[at], b, tiles, side=side, strict=strict)
    return np.sum([np.asarray(part, np.int64) for part in found], axis=0)[:count]


def _tile(rows: _Rows, number: Any, side: int) -> _Rows:
    return _Rows(*(lax.dynamic_slice_in_dim(part, number * side, side) for part in rows))


def _scores(a: _Rows, b: _Rows) -> tuple[jax.Array, jax.Array]:
    """Scores as in `ranking` of `b` for `a`'s rows and of `a` for `b`'s, both `[a, b]`, from the same products."""
    products = jnp.matmul(a.vectors, b.vectors.T, precision="highest")
    return score(products, b.squares), score(products, a.squares[:, None])


@functools.partial(jax.jit, static_argnames="side", donate_argnums=1)
def _nearest_matches(rows: _Rows, near: jax.Array, b: Any, last: Any, *, side: int) -> jax.Array:
    """The least score of each row's matches `[m]`, with the tiles from `b` to `last` of strip `b` taken in."""
    own = _tile(rows, b, side)

    def take(c: jax.Array, near: jax.Array) -> jax.Array:
        other = _tile(rows, c, side)
        itself = (b == c) & jnp.eye(side, dtype=bool)
        match = (own.labels[:, None] == other.labels) & ~itself
        for_rows, for_columns = (jnp.where(match, score, jnp.inf) for score in _scores(own, other))
        near = _merge(jnp.minimum, near, jnp.min(for_rows, axis=1), b, side)
        return _merge(jnp.minimum, near, jnp.min(for_columns, axis=0), c, side)

    return lax.fori_loop(b, last + 1, take, near)


@functools.partial(jax.jit, static_argnames=("side", "strict"), donate_argnums=2)
def _count_strip(
    rows: _Rows, thresholds: jax.Array, counts: jax.Array, b: Any, tiles: Any, *, side: int, strict: bool
) -> jax.Array:
    """`counts` `[m]` of wrong rows before the match, with the tiles from the diagonal on of strip `b` added."""
    own = _tile(rows, b, side)
    threshold = lax.dynamic_slice_in_dim(thresholds, b * side, side)

    def take(c: jax.Array, counts: jax.Array) -> jax.Array:
        other = _tile(rows, c, side)
        wrong = own.labels[:, None] != other.labels
        for_rows, for_columns = _scores(own, other)
        others = lax.dynamic_slice_in_dim(thresholds, c * side, side)
        before_rows = for_rows < threshold[:, None] if strict else for_rows <= threshold[:, None]
        before_columns = for_columns < others if strict else for_columns <= others
        counts = _merge(jnp.add, counts, _count(wrong & before_rows, 1), b, side)
        # On the diagonal rows and columns are the same.
        return _merge(jnp.add, counts, _count(wrong & before_columns & (b != c), 0), c, side)

    return lax.fori_loop(b, tiles, take, counts)


def _count(hits: jax.Array, axis: int) -> jax.Array:
    """How many along an axis, int32; in bytes first, which XLA's CPU code adds many at a time."""
    parts = jnp.split(hits.astype(jnp.uint8), _LANES, axis=axis)
    return jnp.sum(lax.optimization_barrier(sum(parts[1:], parts[0])), axis=axis, dtype=jnp.int32)


def _merge(how: Any, into: jax.Array, part: jax.Array, number: Any, side: int) -> jax.Array:
    old = lax.dynamic_slice_in_dim(into, number * side, side)
    return lax.dynamic_update_slice_in_dim(into, how(old, part), number * side, axis=0)
