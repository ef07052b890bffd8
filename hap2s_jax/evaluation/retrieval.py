"""The one engine of all retrieval metrics: where, among all keys, do a query's matches rank?

Recall@K, CMC, average precision (either rule), MAP@R, R-Precision, reciprocal rank and mINP are all functions
of the ranks of a query's matches, so no gallery is ever sorted: a match's rank is one plus the matches before
it plus the wrong keys before it, and the latter are counted by comparing the distances with the match's own.

Ties. Of two keys at exactly the same distance, one right and one wrong, the wrong one ranks first
(`"pessimistic"`, the default). So no figure depends on the order in which the gallery happens to be stored,
and an encoder that maps all images to one point scores the worst, not the luck of that order. `"optimistic"`
puts the right one first; the two bracket every other rule.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from hap2s_jax.evaluation.inputs import check_embeddings, check_integers, check_rows, space

JUNK = -1
TIES = ("pessimistic", "optimistic")

_TILE_BYTES = 96 * 2**20  # distances of one block of queries to all keys
_MAX_BLOCK = 2048
_LANES = 32  # partial counts that XLA keeps in vector registers; the gallery is padded to a multiple of it
_CHUNK = 8  # matches counted in one pass over a row of distances


@dataclass(frozen=True)
class QueryResults:
    """What each query found, arrays of shape `[q]`; everything else is a mean of these.

    A query without any possible match has `matches` 0, `first_rank` and `last_rank` 0, and NaN in the others.

    Attributes:
      query: the query's row number in the embeddings.
      matches: how many right answers the gallery holds for it.
      first_rank, last_rank: 1-based rank of its first and last match.
      average_precision: finite sum, the mean over matches of the precision at the match.
      average_precision_trapezoid: the official Market-1501 rule, the area under straight lines between the
        points of the precision-recall curve.
      map_at_r: average precision over the first R ranks, R = matches (Musgrave et al., 2020).
      r_precision: share of right answers among the first R ranks.
    """

    query: np.ndarray
    matches: np.ndarray
    first_rank: np.ndarray
    last_rank: np.ndarray
    average_precision: np.ndarray
    average_precision_trapezoid: np.ndarray
    map_at_r: np.ndarray
    r_precision: np.ndarray

    @property
    def answerable(self) -> np.ndarray:
        """Whether the gallery holds a match, bool `[q]`."""
        return self.matches > 0

    def hit(self, k: int) -> np.ndarray:
        """Whether a match stands among the first `k`, bool `[q]`; False without any possible match."""
        return self.answerable & (self.first_rank <= k)

    @property
    def reciprocal_rank(self) -> np.ndarray:
        """One over the rank of the first match, `[q]`; NaN without any."""
        return np.where(self.answerable, 1 / np.maximum(self.first_rank, 1), np.nan)

    @property
    def inverse_penalty(self) -> np.ndarray:
        """INP, matches over the rank of the last one, `[q]` (Ye et al., 2021); NaN without any match."""
        return np.where(self.answerable, self.matches / np.maximum(self.last_rank, 1), np.nan)


def rank_matches(
    embeddings: Any,
    labels: Any,
    *,
    cameras: Any = None,
    query: Any = None,
    gallery: Any = None,
    distance: str = "euclidean",
    ties: str = "pessimistic",
    first_only: bool = False,
    block_size: int | None = None,
    devices: Sequence[Any] | None = None,
) -> QueryResults:
    """Ranks the gallery for every query, a block of queries at a time, and returns what each query found.

    A key with the query's label is a match. Removed for a query: itself, keys labelled -1 (junk), and with
    `cameras` the matches seen by the query's own camera. A label that no query has is a distractor and stays.

    Args:
      embeddings: `[n, d]` floats, all finite.
      labels: `[n]` integers; a query labelled -1 is left out altogether.
      cameras: `[n]` integers, or None for no camera rule.
      query: rows that ask (indices or a mask), None for all.
      gallery: rows that are asked for, None for all.
      distance: "euclidean" or "squared_euclidean" (the same ranking), or "cosine".
      ties: "pessimistic" (a wrong key at the same distance ranks first) or "optimistic".
      first_only: only `matches` and `first_rank` are filled (Recall@K, CMC), in a fraction of the time.
      block_size: queries per block; None keeps a block's distances below 96 MiB.
      devices: devices to spread the blocks over. None means this host's accelerators, or one CPU device
        (several CPU devices share the same cores). Blocks are the same however many there are, hence so are
        the results. With several processes each takes its share of the blocks, and every one returns the
        whole.

    Returns:
      QueryResults, in the order of `query`.
    """
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, but is {ties!r}.")
    array, label, camera, asked, kept = _check(embeddings, labels, cameras, query, gallery)
    to_space = space(array, distance)
    kept = kept[np.argsort(label[kept], kind="stable")]  # a query's matches now stand side by side
    starts = np.searchsorted(label[kept], label[asked], side="left")
    sizes = np.searchsorted(label[kept], label[asked], side="right") - starts
    order = np.argsort(-sizes, kind="stable")  # so that a block's queries have about equally many matches

    keys = _Keys.build(to_space(array[kept]), label[kept], None if camera is None else camera[kept], kept)
    block = block_size or _block_rows(len(asked), keys.vectors.shape[0])
    pool = list(devices) if devices is not None else _default_devices()
    copies = [jax.device_put(keys, device) for device in pool]
    rank = functools.partial(_rank_block, strict=ties == "optimistic", first_only=first_only)

    starts_of_blocks = range(0, len(asked), block)
    mine = starts_of_blocks[jax.process_index() :: jax.process_count()]
    counts = np.full((len(asked), len(_COUNTS)), -1, np.int64)
    averages = np.full((len(asked), len(_AVERAGES)), np.nan)
    pending: deque[tuple[np.ndarray, tuple[jax.Array, jax.Array]]] = deque()

    def collect() -> None:
        places, values = pending.popleft()
        counts[places], averages[places] = (np.asarray(value)[: len(places)] for value in values)

    for number, begin in enumerate(mine):
        places = order[begin : begin + block]
        rows = asked[places]
        inputs = (
            to_space(array[rows]),
            label[rows],
            np.zeros(len(rows), np.int64) if camera is None else camera[rows],
            rows,
            starts[places],
            sizes[places],
        )
        inputs = tuple(_pad_rows(part, block) for part in inputs)
        most = int(sizes[places].max())
        slot = number % len(pool)
        pending.append((places, rank(*jax.device_put(inputs, pool[slot]), copies[slot], most=_bucket(most))))
        if len(pending) > 2 * len(pool):
            collect()
    while pending:
        collect()
    if jax.process_count() > 1:
        # Exactly one process answered a query; in the others its counts are still -1.
        all_counts, all_averages = multihost_utils.process_allgather((counts, averages))
        owner = np.argmax(np.asarray(all_counts)[:, :, 0] >= 0, axis=0), np.arange(len(asked))
        counts, averages = np.asarray(all_counts)[owner], np.asarray(all_averages)[owner]
    columns = dict(zip(_COUNTS, counts.T, strict=True)) | dict(zip(_AVERAGES, averages.T, strict=True))
    return QueryResults(asked, **columns)


def nearest(
    embeddings: Any,
    labels: Any,
    *,
    k: int,
    cameras: Any = None,
    query: Any = None,
    gallery: Any = None,
    distance: str = "euclidean",
) -> np.ndarray:
    """Row numbers of each query's `k` nearest keys, int64 `[q, k]`, best first, for pictures and tables.

    The same keys are removed as in `rank_matches`; where fewer than `k` are left, -1 fills up. Ties go to the
    key that stands first in `gallery`.
    """
    array, label, camera, asked, kept = _check(embeddings, labels, cameras, query, gallery)
    check_ranks((k,), len(kept))
    to_space = space(array, distance)
    keys = _Keys.build(to_space(array[kept]), label[kept], None if camera is None else camera[kept], kept)
    block = _block_rows(len(asked), keys.vectors.shape[0])
    found = []
    for begin in range(0, len(asked), block):
        rows = asked[begin : begin + block]
        seen_by = np.zeros(len(rows), np.int64) if camera is None else camera[rows]
        inputs = (to_space(array[rows]), label[rows], seen_by, rows)
        places = _nearest_block(*(_pad_rows(part, block) for part in inputs), keys, k=k)
        found.append(np.asarray(places)[: len(rows)])
    places = np.concatenate(found)
    return np.where(places < 0, -1, kept[places])


def check_ranks(ks: Sequence[int], size: int) -> tuple[int, ...]:
    """Returns the ranks `ks`, or raises ValueError: each must lie between 1 and the gallery's size."""
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"a rank k must be a whole number of at least 1, but is {k!r}.")
        if k > size:
            raise ValueError(
                f"a rank k of {k} was asked for, but the gallery holds {size} images; ask for less."
            )
    return tuple(int(k) for k in ks)


_COUNTS = ("matches", "first_rank", "last_rank")
_AVERAGES = ("average_precision", "average_precision_trapezoid", "map_at_r", "r_precision")


def _check(
    embeddings: Any, labels: Any, cameras: Any, query: Any, gallery: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
    """The arguments checked and junk taken out: embeddings, classes, cameras, query and gallery rows."""
    array = check_embeddings(embeddings)
    count = array.shape[0]
    label = check_integers(labels, count, "labels")
    camera = None if cameras is None else check_integers(cameras, count, "cameras")
    asked = np.arange(count) if query is None else check_rows(query, count, "query")
    kept = np.arange(count) if gallery is None else check_rows(gallery, count, "gallery")
    asked, kept = asked[label[asked] != JUNK], kept[label[kept] != JUNK]
    for rows, name in ((asked, "query"), (kept, "gallery")):
        if rows.size == 0:
            raise ValueError(f"{name} is empty: all its labels are {JUNK} (junk).")
    # Labels may be any 64-bit number (a hash, a person's id); a device holds 32 bits.
    label = np.unique(label, return_inverse=True)[1]
    camera = None if camera is None else np.unique(camera, return_inverse=True)[1]
    return array, label, camera, asked, kept


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Keys:
    """The gallery on a device, sorted by label and padded to a multiple of `_LANES` with unreachable keys."""

    vectors: Any  # [m, d]
    squares: Any  # [m], |b|^2, or 0 for cosine; infinite for padding
    labels: Any  # [m]
    cameras: Any  # [m]; zeros without the camera rule
    rows: Any  # [m], row number in the embeddings, to find the query itself
    by_camera: Any  # [], whether the camera rule holds

    @classmethod
    def build(
        cls, vectors: np.ndarray, labels: np.ndarray, cameras: np.ndarray | None, rows: np.ndarray
    ) -> _Keys:
        padded = -(-len(vectors) // _LANES) * _LANES
        squares = np.full(padded, np.inf, vectors.dtype)
        squares[: len(vectors)] = np.einsum("md,md->m", vectors, vectors)
        seen_by = np.zeros(len(vectors), np.int64) if cameras is None else cameras
        return cls(
            _pad_rows(vectors, padded),
            squares,
            _pad_rows(labels, padded, JUNK),
            _pad_rows(seen_by, padded),
            _pad_rows(rows, padded, -1),
            np.asarray(cameras is not None),
        )


def _pad_rows(array: np.ndarray, count: int, value: int = 0) -> np.ndarray:
    missing = count - array.shape[0]
    if missing == 0:
        return array
    return np.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)), constant_values=value)


def _default_devices() -> list[Any]:
    local = jax.local_devices()
    return local[:1] if local[0].platform == "cpu" else local


def _block_rows(queries: int, keys: int) -> int:
    fitting = max(8, min(_MAX_BLOCK, _TILE_BYTES // (4 * keys)))
    even = -(-queries // -(-queries // fitting))
    return -(-even // 8) * 8


def _bucket(most: int) -> int:
    """A static bound on matches: few values, so that few programs are compiled."""
    bound = 32
    while bound < most:
        bound *= 8
    return bound


def _scores(queries: jax.Array, keys: _Keys) -> jax.Array:
    """Squared distances less the query's own |a|^2, `[q, m]`: they rank the same, and round less."""
    product = jnp.matmul(queries, keys.vectors.T, precision="highest")
    return keys.squares - 2 * product


@functools.partial(jax.jit, static_argnames=("most", "strict", "first_only"))
def _rank_block(
    queries: jax.Array,
    labels: jax.Array,
    cameras: jax.Array,
    rows: jax.Array,
    starts: jax.Array,
    sizes: jax.Array,
    keys: _Keys,
    *,
    most: int,
    strict: bool,
    first_only: bool,
) -> tuple[jax.Array, jax.Array]:
    """The counts `[q, 3]` and averages `[q, 4]` of one block of queries."""
    scores = _scores(queries, keys)
    place = starts[:, None] + jnp.arange(most)
    of_class = jnp.arange(most) < sizes[:, None]
    place = jnp.minimum(place, keys.labels.shape[0] - 1)
    same_camera = keys.by_camera & (keys.cameras[place] == cameras[:, None])
    valid = of_class & ~same_camera & (keys.rows[place] != rows[:, None])
    thresholds = jnp.where(valid, jnp.take_along_axis(scores, place, axis=1), jnp.inf)
    wrong = jnp.where(labels[:, None] == keys.labels, jnp.inf, scores)
    matches = jnp.sum(valid, axis=1)
    if first_only:
        before = _count_before(wrong, jnp.min(thresholds, axis=1, keepdims=True), strict)
        first = jnp.where(matches > 0, before[:, 0] + 1, 0)
        blank = jnp.full((first.shape[0], len(_AVERAGES)), jnp.nan, scores.dtype)
        return jnp.stack([matches, first, jnp.zeros_like(first)], axis=1), blank

    thresholds = jnp.sort(thresholds, axis=1)
    before = _count_all_before(wrong, thresholds, jnp.max(matches), strict)
    return _from_ranks(before, matches, scores.dtype)


def _count_all_before(wrong: jax.Array, thresholds: jax.Array, most: jax.Array, strict: bool) -> jax.Array:
    """Wrong keys before each match, int32 `[q, p]`, in chunks of matches, and no more chunks than needed."""

    def chunk(number: jax.Array, counts: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(thresholds, number * _CHUNK, _CHUNK, axis=1)
        return lax.dynamic_update_slice_in_dim(
            counts, _count_before(wrong, part, strict), number * _CHUNK, axis=1
        )

    chunks = (most + _CHUNK - 1) // _CHUNK
    return lax.fori_loop(0, chunks, chunk, jnp.zeros(thresholds.shape, jnp.int32))


def _count_before(wrong: jax.Array, thresholds: jax.Array, strict: bool) -> jax.Array:
    """For each threshold `[q, p]`, how many of the row `wrong [q, m]` come before it, int32 `[q, p]`."""
    # A sum over the last axis is a scalar loop in XLA's CPU code, 20 times slower than the distances deserve;
    # adding _LANES slices of the row element by element is vectorised, in bytes, as no partial count exceeds
    # _LANES.
    width = wrong.shape[1] // _LANES
    partial: Any = 0
    for lane in range(_LANES):
        part = wrong[:, None, lane * width : (lane + 1) * width]
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
def _nearest_block(
    queries: jax.Array, labels: jax.Array, cameras: jax.Array, rows: jax.Array, keys: _Keys, *, k: int
) -> jax.Array:
    """Places in `keys` of the k nearest keys, int32 `[q, k]`, -1 where the removed ones leave fewer."""
    scores = _scores(queries, keys)
    same = (labels[:, None] == keys.labels) & (cameras[:, None] == keys.cameras) & keys.by_camera
    removed = same | (rows[:, None] == keys.rows)
    values, places = lax.top_k(jnp.where(removed, -jnp.inf, -scores), k)
    return jnp.where(jnp.isneginf(values), -1, places)
