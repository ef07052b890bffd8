"""The compiled part of retrieval: one block of queries against the whole gallery."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.evaluation.inputs import JUNK, Space

COUNTS = ("matches", "first_rank", "last_rank")
AVERAGES = ("average_precision", "average_precision_trapezoid", "map_at_r", "r_precision")

_LANES = 32  # partial counts that XLA keeps in vector registers; the gallery is padded to a multiple of it
_CHUNK = 8  # matches counted in one pass over a row of distances
MANY = 64  # matches from which on a CPU sorts the row instead


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Keys:
    """The gallery on a device, padded to a multiple of `_LANES` with keys at an infinite distance."""

    vectors: Any  # [m, d], or [m, 0] where the distances come from elsewhere
    squares: Any  # [m], |b|^2, or 0 for cosine; infinite for padding
    labels: Any  # [m]
    cameras: Any  # [m]; zeros without the camera rule
    rows: Any  # [m], row number in the embeddings, to find the query itself
    by_camera: Any  # [], whether the camera rule holds

    @classmethod
    def build(
        cls,
        array: np.ndarray,
        space: Space | None,
        label: np.ndarray,
        camera: np.ndarray | None,
        rows: np.ndarray,
    ) -> Keys:
        """The `rows` of the embeddings `array [n, d]` as keys; no vectors without a `space`."""
        count = -(-len(rows) // _LANES) * _LANES
        vectors = np.zeros((count, 0), np.float32) if space is None else space(array, rows, count)
        squares = np.full(count, np.inf, vectors.dtype)
        squares[: len(rows)] = np.einsum("md,md->m", vectors, vectors)[: len(rows)]
        if np.isinf(squares[: len(rows)]).any():
            raise ValueError("embeddings spread over more than 19 orders of magnitude; no distance can tell.")
        if space is not None and space.cosine:
            squares[: len(rows)] = 0
        numbers = (pad(label[rows], count, JUNK), pad(camera_of(camera, rows), count), pad(rows, count, -1))
        return cls(vectors, squares, *numbers, np.asarray(camera is not None))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Asked:
    """One block of queries, and where in the gallery, sorted by label, their classes stand; all arrays `[q]`."""

    labels: Any
    cameras: Any
    rows: Any
    starts: Any
    sizes: Any


def camera_of(camera: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Camera numbers of the chosen rows, zeros where there are no cameras."""
    return np.zeros(len(rows), np.int64) if camera is None else camera[rows]


def pad(numbers: np.ndarray, count: int, value: float = 0) -> np.ndarray:
    """Appends `value` up to length `count`."""
    return np.pad(numbers, (0, count - len(numbers)), constant_values=value)


def bucket(most: int) -> int:
    """A static bound on matches: few values, so that few programs are compiled."""
    bound = 32
    while bound < most:
        bound *= 8
    return bound


def _products(source: jax.Array, keys: Keys, given: bool) -> jax.Array:
    """What `score` turns into distances, `[q, m]`: the products ab, or the given distances in their place."""
    if given:
        return -source / 2
    return jnp.matmul(source, keys.vectors.T, precision="highest")


def score(products: jax.Array, squares: jax.Array) -> jax.Array:
    """|b|^2 - 2ab: squared distances less the query's own |a|^2; they rank the same, and round less.

    Doubling is exact, so the outcome has the same bits wherever a compiler fuses it.
    """
    return squares - 2 * products


@functools.partial(jax.jit, static_argnames=("given", "most", "strict", "first_only"))
def rank_block(
    source: jax.Array, asked: Asked, keys: Keys, *, given: bool, most: int, strict: bool, first_only: bool
) -> tuple[jax.Array, jax.Array]:
    """The COUNTS `[q, 3]` and AVERAGES `[q, 4]` of one block of queries.

    Args:
      source: the queries `[q, d]`, or if `given` their distances `[q, m]` to the keys.
      asked: whose classes are at most `most` keys large.
      keys: sorted by label.
      given: which of the two `source` is.
      most: static bound on matches, see `bucket`.
      strict: whether a wrong key must be strictly nearer to rank before a match.
      first_only: whether the first match is all that is wanted.
    """
    products = _products(source, keys, given)
    thresholds, matches = _thresholds(products, asked, keys, most)
    wrong = functools.partial(_wrong, products, asked, keys)
    if first_only:
        nearest = jnp.min(thresholds, axis=1, keepdims=True)
        before = _count_before(wrong, products.shape[1], nearest, strict)
        first = jnp.where(matches > 0, before[:, 0] + 1, 0)
        blank = jnp.full((first.shape[0], len(AVERAGES)), jnp.nan, products.dtype)
        return jnp.stack([matches, first, jnp.zeros_like(first)], axis=1), blank
    thresholds = jnp.sort(thresholds, axis=1)
    before = _count_all_before(wrong(slice(None)), thresholds, jnp.max(matches), strict)
    return _from_ranks(before, matches, products.dtype)


def rank_block_by_sorting(
    source: Any, asked: Asked, keys: Keys, *, given: bool, most: int, strict: bool
) -> tuple[jax.Array, jax.Array]:
    """As `rank_block`, for CPUs and classes so large that sorting the row beats counting for every match.

    NumPy sorts a row many times faster than XLA's CPU code does, hence on the host.
    """
    split = _split_block(source, asked, keys, given=given, most=most)
    wrong, thresholds, matches = (np.asarray(part) for part in split)
    before = np.zeros(thresholds.shape, np.int32)

    def one(row: int) -> None:
        found = matches[row]
        side = "left" if strict else "right"
        before[row, :found] = np.searchsorted(np.sort(wrong[row]), thresholds[row, :found], side)

    with ThreadPoolExecutor() as pool:
        deque(pool.map(one, range(len(wrong))), maxlen=0)
    return _finish_block(before, matches, wrong[:0])


@functools.partial(jax.jit, static_argnames=("given", "most"))
def _split_block(
    source: jax.Array, asked: Asked, keys: Keys, *, given: bool, most: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    products = _products(source, keys, given)
    thresholds, matches = _thresholds(products, asked, keys, most)
    return _wrong(products, asked, keys, slice(None)), jnp.sort(thresholds, axis=1), matches


@jax.jit
def _finish_block(before: jax.Array, matches: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _from_ranks(before, matches, like.dtype)


def _thresholds(products: jax.Array, asked: Asked, keys: Keys, most: int) -> tuple[jax.Array, jax.Array]:
    """Scores of each query's matches `[q, most]`, infinite elsewhere, and how many they are `[q]`."""
    of_class = jnp.arange(most) < asked.sizes[:, None]
    place = jnp.minimum(asked.starts[:, None] + jnp.arange(most), keys.labels.shape[0] - 1)
    same_camera = keys.by_camera & (keys.cameras[place] == asked.cameras[:, None])
    valid = of_class & ~same_camera & (keys.rows[place] != asked.rows[:, None])
    scores = score(jnp.take_along_axis(products, place, axis=1), keys.squares[place])
    return jnp.where(valid, scores, jnp.inf), jnp.sum(valid, axis=1)


def _wrong(products: jax.Array, asked: Asked, keys: Keys, part: slice) -> jax.Array:
    """Scores of the wrong keys among a `part` of all, `[q, p]`, infinite for right ones."""
    own = asked.labels[:, None] == keys.labels[part]
    return jnp.where(own, jnp.inf, score(products[:, part], keys.squares[part]))


def _count_all_before(wrong: jax.Array, thresholds: jax.Array, most: jax.Array, strict: bool) -> jax.Array:
    """Wrong keys before each match, int32 `[q, p]`, in chunks of matches, and no more chunks than needed."""

    def chunk(number: jax.Array, counts: jax.Array) -> jax.Array:
        these = lax.dynamic_slice_in_dim(thresholds, number * _CHUNK, _CHUNK, axis=1)
        found = _count_before(lambda part: wrong[:, part], wrong.shape[1], these, strict)
        return lax.dynamic_update_slice_in_dim(counts, found, number * _CHUNK, axis=1)

    chunks = (most + _CHUNK - 1) // _CHUNK
    return lax.fori_loop(0, chunks, chunk, jnp.zeros(thresholds.shape, jnp.int32))


def _count_before(
    wrong: Callable[[slice], jax.Array], count: int, thresholds: jax.Array, strict: bool
) -> jax.Array:
    """For each threshold `[q, p]`, how many of the `wrong` scores `[q, m]` come before it, int32 `[q, p]`."""
    # A sum over the last axis is a scalar loop in XLA's CPU code, 20 times slower than the distances deserve; adding
    # _LANES slices of the row element by element is vectorised, in bytes, as no partial count exceeds _LANES.
    width = count // _LANES
    partial: Any = 0
    for lane in range(_LANES):
        part = wrong(slice(lane * width, (lane + 1) * width))[:, None]
        hit = part < thresholds[:, :, None] if strict else part <= thresholds[:, :, None]
        partial = partial + hit.astype(jnp.uint8)
    return jnp.sum(lax.optimization_barrier(partial), axis=-1, dtype=jnp.int32)


def _from_ranks(before: jax.Array, matches: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Counts `[q, 3]` and averages `[q, 4]` from the wrong keys before each match, nearest first."""
    right = jnp.arange(1, before.shape[1] + 1)  # right answers up to and including this match
    rank = before + right
    counted = right <= matches[:, None]
    within = counted & (rank <= matches[:, None])
    found = matches > 0

    def mean(values: jax.Array, where: jax.Array) -> jax.Array:
        total = jnp.sum(jnp.where(where, values, 0), axis=1, dtype=dtype)
        return jnp.where(found, total / jnp.maximum(matches, 1), jnp.nan)

    precision = right.astype(dtype) / rank
    # The trapezoid also looks at the precision just before the match, which by convention is 1 at rank 1.
    earlier = jnp.where(rank == 1, 1, (right - 1).astype(dtype) / jnp.maximum(rank - 1, 1))
    last = jnp.take_along_axis(rank, jnp.maximum(matches - 1, 0)[:, None], axis=1)[:, 0]
    counts = [matches, jnp.where(found, rank[:, 0], 0), jnp.where(found, last, 0)]
    averages = [
        mean(precision, counted),
        mean((precision + earlier) / 2, counted),
        mean(precision, within),
        mean(jnp.ones_like(precision), within),
    ]
    return jnp.stack(counts, axis=1), jnp.stack(averages, axis=1)


@functools.partial(jax.jit, static_argnames="k")
def nearest_block(queries: jax.Array, asked: Asked, keys: Keys, *, k: int) -> jax.Array:
    """Places in `keys` of the k nearest keys, int32 `[q, k]`, -1 where the removed ones leave fewer."""
    scores = score(_products(queries, keys, given=False), keys.squares)
    same = (asked.labels[:, None] == keys.labels) & (asked.cameras[:, None] == keys.cameras)
    removed = (same & keys.by_camera) | (asked.rows[:, None] == keys.rows)
    values, places = lax.top_k(jnp.where(removed, -jnp.inf, -scores), k)
    return jnp.where(jnp.isneginf(values), -1, places)
