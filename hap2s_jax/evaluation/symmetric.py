"""Ranks of first matches where every row asks all others: each product of two rows serves both, which halves the work.

Rows lie sorted by class and are taken in tiles. A strip of tiles, from the diagonal on, counts for its rows and, turned
over, for its columns. Counts are whole numbers, so that it does not matter which device has counted which strip.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.distances import products, scores
from hap2s_jax.distributed import experimental
from hap2s_jax.evaluation.inputs import JUNK, Device, Problem, Space
from hap2s_jax.evaluation.ranking import AVERAGES, build_keys

_TILE = 512
_LANES = 32  # parts of a tile that are added up in bytes, so that no partial count exceeds it


class _Rows(NamedTuple):
    """All rows, padded to whole tiles with rows of no class at an infinite distance."""

    vectors: jax.Array  # [m, d]
    squares: jax.Array  # [m]
    labels: jax.Array  # [m]


def count_first_of_all(
    problem: Problem, to_space: Space, *, strict: bool, devices: Sequence[Device]
) -> tuple[np.ndarray, np.ndarray]:
    """The result of `ranking.rank_block` with `first_only`, for all rows of `problem.query`, which is its gallery too.

    With several processes each counts its share of the strips, and adds up all shares.

    Args:
      problem: whose query and gallery are the same rows.
      to_space: maps its embeddings.
      strict: whether a wrong row must be strictly nearer to come before.
      devices: to spread the strips over.
    """
    kept, _, sizes = problem.by_class()
    count = len(kept)
    side = min(_TILE, -(-count // _LANES) * _LANES)
    keys = build_keys(problem.embeddings, to_space, problem.cameras, kept, side)
    labels = np.pad(problem.labels[kept], (0, len(keys[1]) - count), constant_values=JUNK)
    tiles = len(keys[1]) // side
    # For each tile, the last tile with members of its rows' classes.
    changes = np.append(np.flatnonzero(np.diff(problem.labels[kept])), count - 1)
    ends = changes[np.searchsorted(changes, np.arange(count))] // side
    last = [int(ends[min((b + 1) * side, count) - 1]) for b in range(tiles)]
    copies = [_Rows(*jax.device_put((*keys[:2], labels), device)) for device in devices]
    near = [jax.device_put(np.full(len(keys[1]), np.inf, keys[1].dtype), device) for device in devices]
    for b in range(tiles):
        at = b % len(devices)
        near[at] = _nearest_matches(copies[at], near[at], np.int32(b), np.int32(last[b]), side=side)
    nearest = np.min([np.asarray(part) for part in near], axis=0)
    thresholds = [jax.device_put(nearest, device) for device in devices]
    found = [jax.device_put(np.zeros(len(keys[1]), np.int32), device) for device in devices]
    for number, b in enumerate(range(tiles)[jax.process_index() :: jax.process_count()]):
        at = number % len(devices)
        span = (np.int32(n) for n in (b, last[b], tiles))
        found[at] = _count_strip(
            copies[at], thresholds[at], found[at], *map(np.asarray, span), side=side, strict=strict
        )
    before = np.sum([np.asarray(part, np.int64) for part in found], axis=0)[:count]
    if jax.process_count() > 1:
        before = np.sum(np.asarray(experimental.gather(before)), axis=0)
    first = np.empty(int(kept.max()) + 1, np.int64)
    first[kept] = before + 1
    matches = sizes - 1
    counts = np.stack(
        [matches, np.where(matches > 0, first[problem.query], 0), np.zeros_like(matches)], axis=1
    )
    return counts, np.full((count, len(AVERAGES)), np.nan)


def _tile(rows: _Rows, number: jax.Array, side: int) -> _Rows:
    return _Rows(*(lax.dynamic_slice_in_dim(part, number * side, side) for part in rows))


def _scores(a: _Rows, b: _Rows) -> tuple[jax.Array, jax.Array]:
    """Scores of `b` for `a`'s rows and of `a` for `b`'s, both `[a, b]`, from the same products."""
    inner = products(a.vectors, b.vectors)
    return scores(inner, b.squares), scores(inner.T, a.squares).T


@functools.partial(jax.jit, static_argnames="side", donate_argnums=1)
def _nearest_matches(rows: _Rows, near: jax.Array, b: jax.Array, last: jax.Array, *, side: int) -> jax.Array:
    """The least score of each row's matches `[m]`, with the tiles from `b` to `last` of strip `b` taken in."""
    own = _tile(rows, b, side)

    def take(c: jax.Array, near: jax.Array) -> jax.Array:
        other = _tile(rows, c, side)
        itself = (b == c) & jnp.eye(side, dtype=bool)
        match = (own.labels[:, None] == other.labels[None, :]) & ~itself
        for_rows, for_columns = (jnp.where(match, score, jnp.inf) for score in _scores(own, other))
        near = _merge(jnp.minimum, near, jnp.min(for_rows, axis=1), b, side)
        return _merge(jnp.minimum, near, jnp.min(for_columns, axis=0), c, side)

    return lax.fori_loop(b, last + 1, take, near)


@functools.partial(jax.jit, static_argnames=("side", "strict"), donate_argnums=2)
def _count_strip(
    rows: _Rows,
    thresholds: jax.Array,
    counts: jax.Array,
    b: jax.Array,
    last: jax.Array,
    tiles: jax.Array,
    *,
    side: int,
    strict: bool,
) -> jax.Array:
    """`counts` `[m]` of wrong rows before the match, with the tiles from the diagonal on of strip `b` added."""
    own = _tile(rows, b, side)
    threshold = lax.dynamic_slice_in_dim(thresholds, b * side, side)[:, None]

    def take(c: jax.Array, counts: jax.Array, *, near: bool) -> jax.Array:
        other = _tile(rows, c, side)
        for_rows, for_columns = _scores(own, other)
        others = lax.dynamic_slice_in_dim(thresholds, c * side, side)[None, :]
        before_rows = for_rows < threshold if strict else for_rows <= threshold
        before_columns = for_columns < others if strict else for_columns <= others
        if near:  # only these tiles hold matches; on the diagonal, rows and columns are the same
            wrong = own.labels[:, None] != other.labels[None, :]
            before_rows, before_columns = wrong & before_rows, wrong & before_columns & (b != c)
        counts = _merge(jnp.add, counts, _count(before_rows, 1), b, side)
        return _merge(jnp.add, counts, _count(before_columns, 0), c, side)

    counts = lax.fori_loop(b, last + 1, functools.partial(take, near=True), counts)
    return lax.fori_loop(last + 1, tiles, functools.partial(take, near=False), counts)


def _count(hits: jax.Array, axis: int) -> jax.Array:
    """Counts along an axis, int32; adds bytes first, which XLA's CPU code vectorises."""
    parts = jnp.split(hits.astype(jnp.uint8), _LANES, axis=axis)
    return jnp.sum(lax.optimization_barrier(sum(parts[1:], parts[0])), axis=axis, dtype=jnp.int32)


def _merge(
    how: Callable[[jax.Array, jax.Array], jax.Array],
    into: jax.Array,
    part: jax.Array,
    number: jax.Array,
    side: int,
) -> jax.Array:
    old = lax.dynamic_slice_in_dim(into, number * side, side)
    return lax.dynamic_update_slice_in_dim(into, how(old, part), number * side, axis=0)
