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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.typing import ArrayLike

from hap2s_jax.distributed import experimental
from hap2s_jax.evaluation.inputs import Device, Problem, Space, check_problem, check_ranks, space
from hap2s_jax.evaluation.matches import AVERAGES, COUNTS, Asked, Tiles, bucket
from hap2s_jax.evaluation.ranking import (
    MANY,
    Keys,
    build_keys,
    nearest_keys,
    rank_block,
    rank_block_by_sorting,
    tile_shape,
)
from hap2s_jax.evaluation.symmetric import rank_all, serves_both

TIES = ("pessimistic", "optimistic")
Distance = Callable[[np.ndarray, np.ndarray], ArrayLike]

_HELD = 4  # tiles with matches that a block keeps in memory; further ones are computed twice


@dataclass(frozen=True)
class QueryResults:
    """The result of each query, arrays of shape `[q]`; all other figures are means of these.

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
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    cameras: ArrayLike | None = None,
    query: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    distance: str | Distance = "euclidean",
    ties: str = "pessimistic",
    first_only: bool = False,
    block_size: int | None = None,
    devices: Sequence[Device] | None = None,
) -> QueryResults:
    """Ranks the gallery for every query, a block of queries at a time, and returns what each query found.

    A key with the query's label is a match. Removed for a query: itself, keys labelled -1 (junk), and with
    `cameras` the matches seen by the query's own camera. A label that no query has is a distractor and stays.

    Args:
      embeddings: `[n, d]` floats, all finite.
      labels: `[n]` integers; a query labelled -1 is left out altogether.
      cameras: `[n]` integers, or None for no camera rule; a negative one is unknown and no other image's.
      query: rows that ask (indices or a mask), None for all.
      gallery: rows that are asked for, None for all.
      distance: "euclidean" or "squared_euclidean" (the same ranking), "cosine", or a function from query rows
        `[b]` and gallery rows `[m]` to distances `[b, m]` (re-ranking, your own metric).
      ties: "pessimistic" (a wrong key at the same distance ranks first) or "optimistic".
      first_only: only `matches` and `first_rank` are filled (Recall@K, CMC), in less time.
      block_size: queries per block; None for one whose tiles of distances fit the processor's cache.
      devices: devices to spread the blocks over. None means this host's accelerators, or one CPU device
        (several CPU devices share the same cores). Blocks are the same however many there are, hence so are
        the results. With several processes each takes its share of the blocks, and every one returns the
        whole.

    Returns:
      QueryResults, in the order of `query`.

    Raises:
      ValueError, TypeError: one line that names the argument.
    """
    check_ties(ties)
    # A caller may pass anything.
    whole = isinstance(block_size, int | np.integer)  # pyright: ignore[reportUnnecessaryIsInstance]
    if block_size is not None and (not whole or block_size < 1):
        raise ValueError(
            f"block_size must be a number of queries, at least 1, or None, but is {block_size!r}."
        )
    if devices is not None and not len(devices):
        raise ValueError("devices must hold at least one device, or be None, but is empty.")
    problem = check_problem(embeddings, labels, cameras, query, gallery)
    local = jax.local_devices()
    usual = local[:1] if local[0].platform == "cpu" else local
    pool = usual if devices is None else list(devices)
    strict = ties == "optimistic"
    measure = distance if callable(distance) else space(problem.embeddings, distance)
    # Ties need equal pairs to get equal products in two programs, which is tested on CPUs alone.
    halved = block_size is None and {device.platform for device in pool} == {"cpu"}
    if halved and isinstance(measure, Space) and serves_both(problem, first_only=first_only):
        counts, averages = rank_all(problem, measure, strict=strict, first_only=first_only, devices=pool)
    else:
        counts, averages = _rank_blocks(problem, measure, strict, first_only, block_size, pool)
    if jax.process_count() > 1:
        counts, averages = _from_all_processes(counts, averages)
    columns = dict(zip(COUNTS, counts.T, strict=True)) | dict(zip(AVERAGES, averages.T, strict=True))
    return QueryResults(problem.query, **columns)


def _rank_blocks(
    problem: Problem,
    measure: Space | Distance,
    strict: bool,
    first_only: bool,
    block_size: int | None,
    devices: list[Device],
) -> tuple[np.ndarray, np.ndarray]:
    """COUNTS `[q, 3]`, negative for queries of other processes, and AVERAGES `[q, 4]`."""
    asked, cameras = problem.query, problem.cameras
    # Sorted by class, and classes by size: queries of equally large classes need equally many steps.
    kept, starts, sizes = problem.by_class()
    ends = np.where(sizes > 0, starts + sizes, 0)
    to_space = measure if isinstance(measure, Space) else None
    sorts = devices[0].platform == "cpu" and not first_only and int(sizes.max()) > MANY
    block, tile = tile_shape(len(asked), len(kept), devices[0], whole_rows=sorts or to_space is None)
    block = block_size or block
    keys = build_keys(problem.embeddings, to_space, cameras, kept, tile)
    copies = [Keys(*jax.device_put(keys, device)) for device in devices]
    order = np.argsort(starts, kind="stable")
    begins = np.arange(0, len(asked), block)
    # The tiles with keys of a block's classes. Queries without matches come last and add no tiles.
    first = starts[order[begins]] // tile
    last = np.maximum(first, -(-np.maximum.reduceat(ends[order], begins) // tile))
    held = int(np.max(last - first))
    held = bucket(held, 1, 2) if held <= _HELD else 0
    counts = np.full((len(asked), len(COUNTS)), -1, np.int64)
    averages = np.full((len(asked), len(AVERAGES)), np.nan)
    found: list[tuple[np.ndarray, tuple[jax.Array, jax.Array]]] = []
    for turn, number in enumerate(range(len(begins))[jax.process_index() :: jax.process_count()]):
        part, device = order[begins[number] :][:block], devices[turn % len(devices)]
        largest = int(sizes[part].max())
        if to_space is not None:
            source = to_space(problem.embeddings, asked[part], block)
        else:
            source = _given(measure, asked[part], kept, (block, len(keys[0])))
        queries = np.pad([cameras[asked[part]], starts[part], sizes[part]], ((0, 0), (0, block - len(part))))
        source, *queries = jax.device_put((source, *queries), device)
        one = source, Asked(*queries), copies[turn % len(devices)]
        tiles = Tiles(tile, 0 if first_only else bucket(largest), held, strict, first_only, to_space is None)
        if sorts and largest > MANY:
            values = rank_block_by_sorting(*one, tiles=tiles)
        else:
            values = rank_block(*one, np.int32(first[number]), np.int32(last[number]), tiles=tiles)
        found.append((part, values))
        # Limits how many blocks are in memory at a time.
        jax.block_until_ready(found[: -2 * len(devices)][-1:])
    for part, (ranks, shares) in found:
        counts[part], averages[part] = np.asarray(ranks)[: len(part)], np.asarray(shares)[: len(part)]
    return counts, averages


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
    # Exactly one process answered a query; in the others its counts are still -1.
    all_counts, all_averages = experimental.gather((counts, averages))
    owner = np.argmax(np.asarray(all_counts)[:, :, 0] >= 0, axis=0), np.arange(counts.shape[0])
    return np.asarray(all_counts)[owner], np.asarray(all_averages)[owner]


def nearest(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    k: int,
    cameras: ArrayLike | None = None,
    query: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    distance: str = "euclidean",
) -> np.ndarray:
    """Row numbers of each query's `k` nearest keys, int64 `[q, k]`, best first, for pictures and tables.

    The same keys are removed as in `rank_matches`; where fewer than `k` are left, -1 fills up. Ties go to the
    key that stands first in `gallery`.
    """
    problem = check_problem(embeddings, labels, cameras, query, gallery)
    check_ranks((k,), len(problem.gallery))
    return nearest_keys(problem, space(problem.embeddings, distance), k)
