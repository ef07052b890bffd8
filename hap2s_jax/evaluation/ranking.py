"""The compiled part of retrieval: one block of queries against the whole gallery, a tile of keys at a time.

Keys lie sorted by class, so the keys of a query's own class are one range, and those of a block of queries in the same
order lie in a few tiles. Only there must right keys be told from wrong ones. Elsewhere counting is a comparison of
scores that are still in the processor's cache, which costs little beside the products that they are made of.
"""

from __future__ import annotations

import functools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.distances import products, scores, squares
from hap2s_jax.evaluation.inputs import Device, Problem, Space, cached_cells
from hap2s_jax.evaluation.matches import LANES, Asked, Tiles, count_before, from_ranks, match_scores, members

_WHOLE_ROWS = 24 * 2**20  # distances in a block that needs whole rows
MANY = 256  # matches from which on a CPU sorts the row instead


class Keys(NamedTuple):
    """The gallery on a device, sorted by class and padded to whole tiles with keys at an infinite distance."""

    vectors: jax.Array  # [m, d], or [m, 0] if distances are given
    squares: jax.Array  # [m], |b|^2, or 0 for cosine; infinite for padding
    cameras: jax.Array  # [m]


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
            tile = jnp.where(members(asked, number, tiles.size), jnp.inf, tile)
        else:
            tile = score(jnp.where(number < first, number, number + last - first))
        return before + count_before(tile, thresholds, jnp.max(matches), strict=tiles.strict)

    thresholds, matches, held = match_scores(score, asked, keys.cameras, first, last, tiles=tiles)
    before = jnp.zeros(thresholds.shape, jnp.int32)
    before = lax.fori_loop(first, last, functools.partial(count, own=True), before)
    others = keys.cameras.shape[0] // tiles.size - last + first
    before = lax.fori_loop(0, others, functools.partial(count, own=False), before)
    return from_ranks(before, matches, thresholds.dtype, tiles.first_only)


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
