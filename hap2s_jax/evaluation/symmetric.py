"""Ranks where every row asks all others: each product of two rows serves both, which halves the work.

Rows lie sorted by class and are taken in tiles. A strip of tiles, from the diagonal on, counts for its rows and, turned
over, for its columns. Counts are whole numbers, so that it does not matter which device has counted which strip.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.distances import products, scores
from hap2s_jax.distributed import experimental
from hap2s_jax.evaluation.inputs import Device, Problem, Space
from hap2s_jax.evaluation.matches import LANES, Asked, Tiles, bucket, count_before, from_ranks, match_scores
from hap2s_jax.evaluation.ranking import MANY, build_keys

_TILE = 512
_THRESHOLDS = 2**26  # that are held in memory for all rows
# With fewer dimensions a match, counting along columns takes longer than the saved products. Measured beside `ranking`:
# SOP (up to 11 matches) 1.7 times as fast at 512 dimensions, 1.2 at 128; CUB (60) 1.1 times at 2,048, 0.9 at 128.
_DIMENSIONS = 8
_Tree = TypeVar("_Tree")


class _Rows(NamedTuple):
    """All rows, sorted by class and padded to whole tiles with rows of no class at an infinite distance."""

    vectors: Any  # [m, d], here and below an array on the host or on a device
    squares: Any  # [m]
    asked: Asked  # [m] each


class _Own(NamedTuple):
    """What the rows compare others with."""

    thresholds: Any  # [m, p], the scores of their matches, ascending, then infinite
    matches: Any  # [m], how many these are


def serves_both(problem: Problem, *, first_only: bool) -> bool:
    """Whether a problem's queries are its gallery, and their matches so few that halving the products is worth it."""
    if not np.array_equal(np.sort(problem.query), np.sort(problem.gallery)):
        return False
    if first_only:
        return True
    most = int(np.bincount(problem.labels[problem.gallery]).max())
    few = most * _DIMENSIONS <= problem.embeddings.shape[1] and most <= MANY
    return few and bucket(most) * len(problem.query) <= _THRESHOLDS


def rank_all(
    problem: Problem, to_space: Space, *, strict: bool, first_only: bool, devices: Sequence[Device]
) -> tuple[np.ndarray, np.ndarray]:
    """COUNTS `[q, 3]` and AVERAGES `[q, 4]`, as `ranking.rank_block` has them, of a problem that `serves_both`.

    With several processes each counts its share of the strips, and adds up all shares.

    Args:
      problem: whose query and gallery are the same rows.
      to_space: maps its embeddings.
      strict: whether a wrong row must be strictly nearer to come before.
      first_only: whether the first match is all that is wanted.
      devices: to spread the strips over.
    """
    order, rows, spans, tiles = _prepare(problem, to_space, strict, first_only)
    copies = [jax.device_put(rows, device) for device in devices]
    own = [_match_scores(copies[b % len(devices)], *span, tiles=tiles) for b, span in enumerate(spans)]
    own = _Own(*(np.concatenate(jax.device_get(parts)) for parts in zip(*own, strict=True)))
    found = [jax.device_put(np.zeros(own.thresholds.shape, np.int32), device) for device in devices]
    known = [jax.device_put(own, device) for device in devices]
    for number, (b, _, last) in enumerate(spans[jax.process_index() :: jax.process_count()]):
        at = number % len(devices)
        found[at] = _count_strip(copies[at], known[at], found[at], b, last, tiles=tiles)
    before = np.sum(jax.device_get(found), axis=0)
    if jax.process_count() > 1:
        before = np.sum(np.asarray(experimental.gather(before)), axis=0)
    values = [
        _results(*(part[edge : edge + tiles.size] for part in (before, *own)), first_only=first_only)
        for edge in range(0, len(before), tiles.size)
    ]
    counts, averages = (np.concatenate(jax.device_get(parts))[order] for parts in zip(*values, strict=True))
    return counts.astype(np.int64), averages.astype(np.float64)


def _prepare(
    problem: Problem, to_space: Space, strict: bool, first_only: bool
) -> tuple[np.ndarray, _Rows, np.ndarray, Tiles]:
    """Each query's place among the sorted rows, `[q]`; these rows; the strips, int32 `[s, 3]`; and the tiles.

    Of a strip, its number, the first tile with members of its rows' classes and the one after the last.
    """
    kept, starts, sizes = problem.by_class()
    count = len(kept)
    side = min(_TILE, -(-count // LANES) * LANES)
    vectors, squares, cameras = build_keys(problem.embeddings, to_space, problem.cameras, kept, side)
    place = np.empty(int(kept.max()) + 1, np.int64)
    place[kept] = np.arange(count)
    order = place[problem.query]
    start, size = np.full(len(squares), -1), np.zeros(len(squares), np.int64)
    start[order], size[order] = starts, sizes
    edges = np.arange(0, len(squares), side)
    last = np.minimum(edges + side, count) - 1
    spans = np.stack([edges, start[edges], start[last] + size[last] + side - 1], axis=1)
    tiles = Tiles(side, 0 if first_only else bucket(int(sizes.max())), 0, strict, first_only, False)
    return (
        order,
        _Rows(vectors, squares, Asked(cameras, start, size)),
        (spans // side).astype(np.int32),
        tiles,
    )


def _tile(tree: _Tree, number: jax.Array, tiles: Tiles) -> _Tree:
    """The rows of this tile, of every array."""
    return jax.tree.map(lambda part: lax.dynamic_slice_in_dim(part, number * tiles.size, tiles.size), tree)


def _scores(a: _Rows, b: _Rows) -> tuple[jax.Array, jax.Array]:
    """Scores of `b` for `a`'s rows and of `a` for `b`'s, both `[a, b]`, from the same products."""
    inner = products(a.vectors, b.vectors)
    return scores(inner, b.squares), scores(inner.T, a.squares).T


@functools.partial(jax.jit, static_argnames="tiles")
def _match_scores(
    rows: _Rows, b: jax.Array, first: jax.Array, last: jax.Array, *, tiles: Tiles
) -> tuple[jax.Array, jax.Array]:
    """What `_Own` holds of strip `b`."""
    own = _tile(rows, b, tiles)

    def score(number: jax.Array) -> jax.Array:
        return _scores(own, _tile(rows, number, tiles))[0]

    return match_scores(score, own.asked, rows.asked.cameras, first, last, tiles=tiles)[:2]


@functools.partial(jax.jit, static_argnames="tiles", donate_argnums=2)
def _count_strip(
    rows: _Rows, known: _Own, counts: jax.Array, b: jax.Array, last: jax.Array, *, tiles: Tiles
) -> jax.Array:
    """`counts` `[m, p]` of wrong rows before each match, with the tiles from the diagonal on of strip `b` added."""
    own, own_known = _tile((rows, known), b, tiles)
    most = jnp.max(own_known.matches)

    def take(c: jax.Array, carry: tuple[jax.Array, jax.Array], *, near: bool) -> tuple[jax.Array, jax.Array]:
        counts, own_counts = carry
        other, other_known = _tile((rows, known), c, tiles)
        for_rows, for_columns = _scores(own, other)
        if near:  # only these tiles hold matches; on the diagonal, rows and columns are the same
            right = own.asked.starts[:, None] == other.asked.starts[None, :]
            for_rows = jnp.where(right, jnp.inf, for_rows)
            for_columns = jnp.where(right | (b == c), jnp.inf, for_columns)
        own_counts += count_before(for_rows, own_known.thresholds, most, strict=tiles.strict)
        found = count_before(
            for_columns, other_known.thresholds, jnp.max(other_known.matches), strict=tiles.strict, axis=0
        )
        return _add(counts, found, c), own_counts

    def _add(counts: jax.Array, found: jax.Array, number: jax.Array) -> jax.Array:
        at = number * tiles.size
        old = lax.dynamic_slice_in_dim(counts, at, tiles.size)
        return lax.dynamic_update_slice_in_dim(counts, old + found, at, axis=0)

    carry = counts, jnp.zeros(own_known.thresholds.shape, jnp.int32)
    carry = lax.fori_loop(b, last, functools.partial(take, near=True), carry)
    end = counts.shape[0] // tiles.size
    counts, own_counts = lax.fori_loop(last, end, functools.partial(take, near=False), carry)
    return _add(counts, own_counts, b)


@functools.partial(jax.jit, static_argnames="first_only")
def _results(
    before: jax.Array, thresholds: jax.Array, matches: jax.Array, *, first_only: bool
) -> tuple[jax.Array, jax.Array]:
    return from_ranks(before, matches, thresholds.dtype, first_only)
