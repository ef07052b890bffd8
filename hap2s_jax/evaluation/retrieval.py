"""The one engine of all retrieval metrics: where, among all keys, do a query's matches rank?

Recall@K, CMC, average precision (either rule), MAP@R, R-Precision, reciprocal rank and mINP are all functions
of the ranks of a query's matches, so no gallery need be sorted: a match's rank is one plus the matches before
it plus the wrong keys before it, and the latter are counted by comparing the distances with the match's own.

Ties. Of two keys at exactly the same distance, one right and one wrong, the wrong one ranks first
(`"pessimistic"`, the default). So no figure depends on the order in which the gallery happens to be stored,
and an encoder that maps all images to one point scores the worst, not the luck of that order. `"optimistic"`
puts the right one first; the two bracket every other rule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hap2s_jax.evaluation.inputs import check_problem, check_ranks, space
from hap2s_jax.evaluation.ranking import (
    AVERAGES,
    COUNTS,
    MANY,
    Asked,
    Keys,
    bucket,
    camera_of,
    nearest_block,
    pad,
    rank_block,
    rank_block_by_sorting,
)
from hap2s_jax.evaluation.symmetric import count_before_first

TIES = ("pessimistic", "optimistic")
Distance = Callable[[np.ndarray, np.ndarray], Any]

_TILE_BYTES = 96 * 2**20  # distances of one block of queries to all keys
_MAX_BLOCK = 2048


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
    distance: str | Distance = "euclidean",
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
      distance: "euclidean" or "squared_euclidean" (the same ranking), "cosine", or a function from query rows
        `[b]` and gallery rows `[m]` to distances `[b, m]` (re-ranking, your own metric).
      ties: "pessimistic" (a wrong key at the same distance ranks first) or "optimistic".
      first_only: only `matches` and `first_rank` are filled (Recall@K, CMC), in a fraction of the time.
      block_size: queries per block; None keeps a block's distances below 96 MiB. Where all rows ask all rows
        for `first_only`, a CPU takes tiles of both instead.
      devices: devices to spread the blocks over. None means this host's accelerators, or one CPU device
        (several CPU devices share the same cores). Blocks are the same however many there are, hence so are
        the results. With several processes each takes its share of the blocks, and every one returns the
        whole.

    Returns:
      QueryResults, in the order of `query`.
    """
    check_ties(ties)
    if block_size is not None and (not isinstance(block_size, int | np.integer) or block_size < 1):
        raise ValueError(
            f"block_size must be a number of queries, at least 1, or None, but is {block_size!r}."
        )
    if devices is not None and not len(devices):
        raise ValueError("devices must hold at least one device, or be None, but is empty.")
    array, label, camera, asked, kept = check_problem(embeddings, labels, cameras, query, gallery)
    to_space = space(array, "euclidean" if callable(distance) else distance)
    kept = kept[np.argsort(label[kept], kind="stable")]  # a query's matches now stand side by side
    starts = np.searchsorted(label[kept], label[asked], side="left")
    sizes = np.searchsorted(label[kept], label[asked], side="right") - starts
    order = np.argsort(-sizes, kind="stable")  # so that a block's queries have about equally many matches

    keys = Keys.build(array, None if callable(distance) else to_space, label, camera, kept)
    pool = list(devices) if devices is not None else _default_devices()
    # Ties need equal pairs to get equal products in two programs, which is tested on CPUs alone.
    in_tiles = (
        first_only and camera is None and not callable(distance) and all(d.platform == "cpu" for d in pool)
    )
    if in_tiles and np.array_equal(asked, np.sort(kept)):
        return _first_of_all(keys, asked, kept, sizes - 1, ties == "optimistic", pool)
    block = block_size or _block_rows(len(asked), len(kept))
    copies = [jax.device_put(keys, device) for device in pool]
    strict = ties == "optimistic"
    counts = np.full((len(asked), len(COUNTS)), -1, np.int64)
    averages = np.full((len(asked), len(AVERAGES)), np.nan)
    pending: deque[tuple[np.ndarray, tuple[jax.Array, jax.Array]]] = deque()

    def collect() -> None:
        places, values = pending.popleft()
        counts[places], averages[places] = (np.asarray(value)[: len(places)] for value in values)

    begins = range(0, len(asked), block)[jax.process_index() :: jax.process_count()]
    for number, begin in enumerate(begins):
        places = order[begin : begin + block]
        rows = asked[places]
        numbers = (label[rows], camera_of(camera, rows), rows, starts[places], sizes[places])
        if callable(distance):
            source = _given(distance, rows, kept, (block, len(keys.rows)))
        else:
            source = to_space(array, rows, block)
        device, copy = pool[number % len(pool)], copies[number % len(pool)]
        block_of = Asked(*(pad(part, block) for part in numbers))
        source, block_of = jax.device_put((source, block_of), device)
        largest = int(sizes[places].max())
        how: Any = {"given": callable(distance), "most": bucket(largest), "strict": strict}
        if largest > MANY and device.platform == "cpu" and not first_only:
            values = rank_block_by_sorting(source, block_of, copy, **how)
        else:
            values = rank_block(source, block_of, copy, first_only=first_only, **how)
        pending.append((places, values))
        if len(pending) > 2 * len(pool):
            collect()
    while pending:
        collect()
    counts, averages = _from_all_processes(counts, averages)
    columns = dict(zip(COUNTS, counts.T, strict=True)) | dict(zip(AVERAGES, averages.T, strict=True))
    return QueryResults(asked, **columns)


def _first_of_all(
    keys: Keys, asked: np.ndarray, kept: np.ndarray, matches: np.ndarray, strict: bool, devices: list[Any]
) -> QueryResults:
    """What `rank_matches` returns with `first_only` where all rows ask all rows."""
    before = count_before_first(keys, len(kept), strict=strict, devices=devices)
    if jax.process_count() > 1:
        before = np.sum(np.asarray(multihost_utils.process_allgather(before)), axis=0)
    first = before[np.argsort(kept)] + 1
    blanks = [np.full(len(asked), np.nan) for _ in AVERAGES]
    nothing = np.zeros(len(asked), np.int64)
    return QueryResults(asked, matches, np.where(matches > 0, first, 0), nothing, *blanks)


def check_ties(ties: str) -> None:
    """Raises ValueError unless `ties` is one of TIES."""
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, but is {ties!r}.")


def _given(distance: Distance, rows: np.ndarray, kept: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A block of the user's own distances, padded to `shape`."""
    table = np.asarray(distance(rows, kept))
    if table.shape != (len(rows), len(kept)):
        raise ValueError(
            f"distance returned shape {table.shape} for {len(rows)} queries and {len(kept)} gallery rows."
        )
    if not np.isfinite(table).all():
        raise ValueError("distance returned NaN or infinity.")
    padded = np.full(shape, np.inf, np.float32 if table.dtype != np.float64 else np.float64)
    padded[: len(rows), : len(kept)] = table
    return padded


def _from_all_processes(counts: np.ndarray, averages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if jax.process_count() == 1:
        return counts, averages
    # Exactly one process answered a query; in the others its counts are still -1.
    all_counts, all_averages = multihost_utils.process_allgather((counts, averages))
    owner = np.argmax(np.asarray(all_counts)[:, :, 0] >= 0, axis=0), np.arange(counts.shape[0])
    return np.asarray(all_counts)[owner], np.asarray(all_averages)[owner]


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
    array, label, camera, asked, kept = check_problem(embeddings, labels, cameras, query, gallery)
    check_ranks((k,), len(kept))
    to_space = space(array, distance)
    keys = Keys.build(array, to_space, label, camera, kept)
    block = _block_rows(len(asked), len(kept))
    found = []
    for begin in range(0, len(asked), block):
        rows = asked[begin : begin + block]
        numbers = (label[rows], camera_of(camera, rows), rows, rows, rows)
        asked_now = Asked(*(pad(part, block) for part in numbers))
        places = nearest_block(to_space(array, rows, block), asked_now, keys, k=k)
        found.append(np.asarray(places)[: len(rows)])
    places = np.concatenate(found)
    return np.where(places < 0, -1, kept[places])


def _default_devices() -> list[Any]:
    local = jax.local_devices()
    return local[:1] if local[0].platform == "cpu" else local


def _block_rows(queries: int, keys: int) -> int:
    fitting = max(8, min(_MAX_BLOCK, _TILE_BYTES // (4 * keys)))
    even = -(-queries // -(-queries // fitting))
    return -(-even // 8) * 8
