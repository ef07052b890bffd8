"""The matches of a block of queries: their scores, how many wrong keys come before them, and what follows from that.

Keys lie sorted by class, a tile at a time; `ranking` and `symmetric` go through the tiles in ways of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

COUNTS = ("matches", "first_rank", "last_rank")
AVERAGES = ("average_precision", "average_precision_trapezoid", "map_at_r", "r_precision")

LANES = 32  # tiles are multiples of it, so that counts can be added up in as many parts
_CHUNK = 4  # matches counted in one pass over a row of scores


class Asked(NamedTuple):
    """One block of queries, and the places of their classes among the keys; all arrays `[q]`."""

    cameras: Any
    starts: Any
    sizes: Any


class Tiles(NamedTuple):
    """How a block goes through the keys; static under jit.

    Attributes:
      size: keys in a tile.
      most: bound on the size of a query's class among the keys, see `bucket`; 0 where `first_only`.
      held: how many tiles with keys of the block's own classes are kept in memory; 0 forms them twice.
      strict: whether a wrong key must be strictly nearer to rank before a match.
      first_only: whether the first match is all that is wanted.
      given: whether `source` holds distances instead of queries.
    """

    size: int
    most: int
    held: int
    strict: bool
    first_only: bool
    given: bool


def bucket(most: int, least: int = _CHUNK, factor: int = 4) -> int:
    """Rounds a bound up to one of few values, so that few programs are compiled."""
    bound = least
    while bound < most:
        bound *= factor
    return bound


def members(asked: Asked, number: jax.Array, size: int) -> jax.Array:
    """Which of a tile's keys are of the queries' own classes, `[q, size]`."""
    at = number * size + jnp.arange(size)[None, :] - asked.starts[:, None]
    return (at >= 0) & (at < asked.sizes[:, None])


def match_scores(
    score: Callable[[jax.Array], jax.Array],
    asked: Asked,
    cameras: jax.Array,
    first: jax.Array,
    last: jax.Array,
    *,
    tiles: Tiles,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The scores of a block's matches, ascending `[q, p]` and infinite where there is none; how many these are `[q]`.

    Also the tiles from `first` to `last` themselves, if `tiles.held`. `score` makes one; `cameras` `[m]` are the keys'.
    Where only the first match is wanted, it alone is given, `[q, 1]`.
    """

    def through(
        take: Callable[[jax.Array, jax.Array, Any], Any], found: jax.Array | tuple[jax.Array, jax.Array]
    ) -> tuple[Any, jax.Array]:
        def step(number: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            found, held = carry
            tile = score(number)
            if tiles.held:
                held = lax.dynamic_update_slice_in_dim(held, tile[None], number - first, axis=0)
            return take(number, tile, found), held

        return lax.fori_loop(first, last, step, (found, jnp.zeros((tiles.held, rows, tiles.size), dtype)))

    def least(
        number: jax.Array, tile: jax.Array, found: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        there = lax.dynamic_slice_in_dim(cameras, number * tiles.size, tiles.size)
        right = members(asked, number, tiles.size) & (there[None, :] != asked.cameras[:, None])
        nearest = jnp.min(jnp.where(right, tile, jnp.inf), axis=1, keepdims=True)
        return jnp.minimum(found[0], nearest), found[1] + jnp.sum(right, axis=1, dtype=jnp.int32)

    def gather(number: jax.Array, tile: jax.Array, found: jax.Array) -> jax.Array:
        there = place - number * tiles.size
        inside = (there >= 0) & (there < tiles.size)
        return jnp.where(inside, jnp.take_along_axis(tile, jnp.clip(there, 0, tiles.size - 1), axis=1), found)

    rows, dtype = len(asked.starts), jax.eval_shape(score, first).dtype
    if tiles.first_only:  # without a slot for each match, of which a large class has thousands
        nothing = jnp.full((rows, 1), jnp.inf, dtype), jnp.zeros(rows, jnp.int32)
        (own, matches), held = through(least, nothing)
        return own, matches, held
    slots = jnp.arange(tiles.most)[None, :]
    place = jnp.minimum(asked.starts[:, None] + slots, cameras.shape[0] - 1)
    valid = (slots < asked.sizes[:, None]) & (cameras[place] != asked.cameras[:, None])
    own, held = through(gather, jnp.full(valid.shape, jnp.inf, dtype))
    own = jnp.sort(jnp.where(valid, own, jnp.inf), axis=1)
    return own, jnp.sum(valid, axis=1, dtype=jnp.int32), held


def count_before(
    scores: jax.Array, thresholds: jax.Array, most: jax.Array, *, strict: bool, axis: int = 1
) -> jax.Array:
    """How many scores come before each of the first `most` thresholds `[q, p]`, int32 `[q, p]`.

    Scores are `[q, t]`, or, to be counted along `axis` 0, `[t, q]`.
    """
    parts = 8 if scores.shape[axis] <= 1024 else LANES
    width = scores.shape[axis] // parts

    def chunk(number: jax.Array, counts: jax.Array) -> jax.Array:
        these = lax.dynamic_slice_in_dim(thresholds, number * size, size, axis=1)
        these = these[:, :, None] if axis else these.T[:, None, :]
        # A sum over one axis is a scalar loop in XLA's CPU code, 20 times slower than the products deserve; adding
        # slices element by element is vectorised. Counts as wide as scores save the conversion of every vector.
        partial = jnp.zeros((), jnp.int32)
        for begin in range(0, parts * width, width):
            part = jnp.expand_dims(lax.slice_in_dim(scores, begin, begin + width, axis=axis), axis)
            partial = partial + (part < these if strict else part <= these).astype(jnp.int32)
        found = jnp.sum(lax.optimization_barrier(partial), axis=axis + 1, dtype=jnp.int32)
        return lax.dynamic_update_slice_in_dim(counts, found if axis else found.T, number * size, axis=1)

    size = min(_CHUNK, thresholds.shape[1])
    nothing = jnp.zeros(thresholds.shape, jnp.int32)
    if size == thresholds.shape[1]:
        return chunk(jnp.zeros((), jnp.int32), nothing)
    return lax.fori_loop(0, (most + size - 1) // size, chunk, nothing)


def from_ranks(
    before: jax.Array, matches: jax.Array, dtype: jnp.dtype, first_only: bool = False
) -> tuple[jax.Array, jax.Array]:
    """COUNTS `[q, 3]` and AVERAGES `[q, 4]` from the wrong keys before each match, nearest first `[q, p]`."""
    if first_only:
        first_rank = jnp.where(matches > 0, before[:, 0] + 1, 0)
        counts = jnp.stack([matches, first_rank, jnp.zeros_like(first_rank)], axis=1)
        return counts, jnp.full((len(matches), len(AVERAGES)), jnp.nan, dtype)
    right = jnp.arange(1, before.shape[1] + 1, dtype=jnp.int32)[None, :]  # correct answers up to this match
    rank = before + right
    counted = right <= matches[:, None]
    within = counted & (rank <= matches[:, None])
    found = matches > 0
    precision = right.astype(dtype) / rank.astype(dtype)
    # The trapezoid also looks at the precision just before the match, which by convention is 1 at rank 1.
    earlier = jnp.where(rank == 1, 1, (right - 1).astype(dtype) / jnp.maximum(rank - 1, 1).astype(dtype))
    totals = [
        jnp.sum(jnp.where(counted, precision, 0), axis=1),
        jnp.sum(jnp.where(counted, (precision + earlier) / 2, 0), axis=1),
        jnp.sum(jnp.where(within, precision, 0), axis=1),
        jnp.sum(within, axis=1, dtype=dtype),
    ]
    averages = jnp.stack(totals, axis=1) / jnp.maximum(matches, 1).astype(dtype)[:, None]
    last = jnp.take_along_axis(rank, jnp.maximum(matches - 1, 0)[:, None], axis=1)[:, 0]
    counts = jnp.stack([matches, jnp.where(found, rank[:, 0], 0), jnp.where(found, last, 0)], axis=1)
    return counts, jnp.where(found[:, None], averages, jnp.nan)
