"""The compiled part of retrieval: one block of queries against the whole gallery, a tile of keys at a time.

Keys lie sorted by class, so the keys of a query's own class are one range, and those of a block of queries in the same
order lie in a few tiles. Only there must right keys be told from wrong ones. Elsewhere counting is a comparison of
scores that are still in the processor's cache, which costs little beside the products that they are made of.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.distances import products, scores, squares
from hap2s_jax.evaluation.inputs import Device, Problem, Space, cached_cells

COUNTS = ("matches", "first_rank", "last_rank")
AVERAGES = ("average_precision", "average_precision_trapezoid", "map_at_r", "r_precision")

LANES = 32  # tiles are multiples of it, so that counts can be added up in as many parts
_WHOLE_ROWS = 24 * 2**20  # distances in a block that needs whole rows
MANY = 256  # matches from which on a CPU sorts the row instead
_CHUNK = 4  # matches counted in one pass over a row of scores


class Keys(NamedTuple):
    """The gallery on a device, sorted by class and padded to whole tiles with keys at an infinite distance."""

    vectors: jax.Array  # [m, d], or [m, 0] if distances are given
    squares: jax.Array  # [m], |b|^2, or 0 for cosine; infinite for padding
    cameras: jax.Array  # [m]


class Asked(NamedTuple):
    """One block of queries, and the places of their classes among the keys; all arrays `[q]`."""

    cameras: Any
    starts: Any
    sizes: Any


class Tiles(NamedTuple):
    """How a block goes through the keys; static under jit.

    Attributes:
      size: keys in a tile.
      most: bound on the size of a query's class among the keys; see `bucket`.
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


def tile_shape(queries: int, keys: int, device: Device, *, whole_rows: bool) -> tuple[int, int]:
    """Queries in a block, and keys in a tile (a multiple of `LANES`), each of nearly equal size.

    Args:
      queries: how many ask.
      keys: how many are asked for.
      device: a tile of distances stays in a CPU's cache; an accelerator has more of both at a time.
      whole_rows: whether a block's distances to all keys must fit into memory.
    """
    # Larger tiles are no faster: measured from 1 to 32 MiB, with a cache of 32 MiB.
    cells = min(cached_cells() // 4, 2**20) if device.platform == "cpu" else 2048 * 8192
    block = 1 << (int(np.sqrt(cells / 4)).bit_length() - 1)
    tiles = -(-keys // (cells // block))
    if whole_rows:
        block = min(block, max(8, _WHOLE_ROWS // keys))
    blocks = -(-queries // block)
    return -(-queries // (blocks * 8)) * 8, -(-keys // (tiles * LANES)) * LANES


def build_keys(
    array: np.ndarray, to_space: Space | None, cameras: np.ndarray, rows: np.ndarray, multiple: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fields of `Keys`: the `rows` of the embeddings `array [n, d]`; no vectors without a space."""
    count = -(-len(rows) // multiple) * multiple
    vectors = np.zeros((count, 0), np.float32) if to_space is None else to_space(array, rows, count)
    lengths = np.full(count, np.inf, vectors.dtype)
    lengths[: len(rows)] = squares(vectors[: len(rows)])
    if np.isinf(lengths[: len(rows)]).any():
        raise ValueError("embeddings spread over more than 19 orders of magnitude; no distance can tell.")
    if to_space is not None and to_space.cosine:
        lengths[: len(rows)] = 0
    return vectors, lengths, np.pad(cameras[rows], (0, count - len(rows)))


@functools.partial(jax.jit, static_argnames="tiles")
def rank_block(
    source: jax.Array, asked: Asked, keys: Keys, first: jax.Array, last: jax.Array, *, tiles: Tiles
) -> tuple[jax.Array, jax.Array]:
    """The COUNTS `[q, 3]` and AVERAGES `[q, 4]` of one block of queries.

    Args:
      source: the queries `[q, d]`, or their distances `[q, m]` to the keys.
      asked: whose classes are at most `tiles.most` keys large.
      keys: sorted by class.
      first: the first tile with keys of the queries' classes.
      last: the tile after the last such one.
      tiles: see `Tiles`.
    """

    def score(number: jax.Array) -> jax.Array:
        begin = number * tiles.size
        if tiles.given:
            return lax.dynamic_slice_in_dim(source, begin, tiles.size, axis=1)
        vectors = lax.dynamic_slice_in_dim(keys.vectors, begin, tiles.size)
        lengths = lax.dynamic_slice_in_dim(keys.squares, begin, tiles.size)
        return scores(products(source, vectors), lengths)

    def count(number: jax.Array, before: jax.Array, *, own: bool) -> jax.Array:
        if own:
            tile = held[number - first] if tiles.held else score(number)
            at = number * tiles.size + jnp.arange(tiles.size)[None, :] - asked.starts[:, None]
            tile = jnp.where((at >= 0) & (at < asked.sizes[:, None]), jnp.inf, tile)
        else:
            tile = score(jnp.where(number < first, number, number + last - first))
        return before + count_before(tile, thresholds, jnp.max(matches), strict=tiles.strict)

    thresholds, matches, held = match_scores(score, asked, keys.cameras, first, last, tiles=tiles)
    before = jnp.zeros(thresholds.shape, jnp.int32)
    before = lax.fori_loop(first, last, functools.partial(count, own=True), before)
    others = keys.cameras.shape[0] // tiles.size - last + first
    before = lax.fori_loop(0, others, functools.partial(count, own=False), before)
    return from_ranks(before, matches, thresholds.dtype, tiles.first_only)


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
    """

    def gather(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        own, held = carry
        tile = score(number)
        there = place - number * tiles.size
        inside = (there >= 0) & (there < tiles.size)
        found = jnp.take_along_axis(tile, jnp.clip(there, 0, tiles.size - 1), axis=1)
        if tiles.held:
            held = lax.dynamic_update_slice_in_dim(held, tile[None], number - first, axis=0)
        return jnp.where(inside, found, own), held

    slots = jnp.arange(tiles.most)[None, :]
    place = jnp.minimum(asked.starts[:, None] + slots, cameras.shape[0] - 1)
    valid = (slots < asked.sizes[:, None]) & (cameras[place] != asked.cameras[:, None])
    dtype = jax.eval_shape(score, first).dtype
    own = jnp.full(valid.shape, jnp.inf, dtype)
    held = jnp.zeros((tiles.held, valid.shape[0], tiles.size), dtype)
    own, held = lax.fori_loop(first, last, gather, (own, held))
    own = jnp.where(valid, own, jnp.inf)
    own = jnp.min(own, axis=1, keepdims=True) if tiles.first_only else jnp.sort(own, axis=1)
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


def rank_block_by_sorting(
    source: jax.Array, asked: Asked, keys: Keys, *, tiles: Tiles
) -> tuple[jax.Array, jax.Array]:
    """As `rank_block`, for CPUs and classes so large that sorting the row beats counting for every match.

    NumPy sorts a row many times faster than XLA's CPU code does, hence on the host.
    """
    table = np.asarray(source if tiles.given else _row_scores(source, keys))
    before = np.zeros((len(table), tiles.most), np.int32)
    matches = np.zeros(len(table), np.int32)
    cameras, asking, starts, sizes = (np.asarray(part) for part in (keys.cameras, *asked))
    side = "left" if tiles.strict else "right"

    def one(row: int) -> None:
        own = slice(starts[row], starts[row] + sizes[row])
        right = np.sort(table[row, own][cameras[own] != asking[row]])
        wrong = np.sort(np.delete(table[row], own))
        matches[row] = len(right)
        before[row, : len(right)] = np.searchsorted(wrong, right, side)

    with ThreadPoolExecutor() as pool:
        deque(pool.map(one, range(len(table))), maxlen=0)
    return _finish(before, matches, dtype=table.dtype)


@jax.jit
def _row_scores(source: jax.Array, keys: Keys) -> jax.Array:
    return scores(products(source, keys.vectors), keys.squares)


_finish = jax.jit(from_ranks, static_argnames="dtype")


def nearest_keys(problem: Problem, to_space: Space, k: int) -> np.ndarray:
    """Row numbers of each query's `k` nearest keys, int64 `[q, k]`; -1 where there are fewer."""
    array, labels, cameras, asked, kept = problem
    block, _ = tile_shape(len(asked), len(kept), jax.devices()[0], whole_rows=True)
    keys = Keys(*map(jnp.asarray, build_keys(array, to_space, cameras, kept, LANES)))
    classes = np.pad(labels[kept], (0, len(keys.cameras) - len(kept)), constant_values=-1)
    found = []
    for begin in range(0, len(asked), block):
        rows = asked[begin : begin + block]
        known = np.pad([labels[rows], cameras[rows]], ((0, 0), (0, block - len(rows))))
        found.append(
            np.asarray(_nearest_block(to_space(array, rows, block), *known, keys, classes, k=k))[: len(rows)]
        )
    places = np.concatenate(found)
    return np.where(places < 0, -1, kept[places])


@functools.partial(jax.jit, static_argnames="k")
def _nearest_block(
    queries: jax.Array, labels: jax.Array, cameras: jax.Array, keys: Keys, classes: jax.Array, *, k: int
) -> jax.Array:
    removed = (labels[:, None] == classes[None, :]) & (cameras[:, None] == keys.cameras[None, :])
    values, places = lax.top_k(jnp.where(removed, -jnp.inf, -_row_scores(queries, keys)), k)
    return jnp.where(jnp.isneginf(values), -1, places)
