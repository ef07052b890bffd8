"""Special query/gallery protocols: single gallery shot (CUHK03's old one) and multi-query (Market-1501)."""

from __future__ import annotations

import dataclasses

import numpy as np
from jax.typing import ArrayLike

from hap2s_jax.evaluation.inputs import cached_cells, check_problem, check_rows, space
from hap2s_jax.evaluation.neighbors import cross_distances
from hap2s_jax.evaluation.retrieval import QueryResults, check_ties, rank_matches

POOLS = ("mean", "max")


def rank_single_gallery_shot(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    cameras: ArrayLike | None = None,
    query: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    distance: str = "euclidean",
    ties: str = "pessimistic",
    repeats: int = 10,
    seed: int = 0,
) -> np.ndarray:
    """Ranks of the match when the gallery holds one random image of each identity.

    In every repeat an image of each identity is drawn for the gallery, and for each query one of its own
    valid matches (the camera rule holds).

    Args:
      embeddings, labels, cameras, query, gallery, distance, ties: as for `rank_matches`.
      repeats: galleries drawn.
      seed: of the draws; the outcome is a function of the arguments alone.

    Returns:
      int64 `[repeats, q]` in the order of `query` without junk, 0 for queries without any valid match.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, but is {repeats}.")
    check_ties(ties)
    before = np.less if ties == "optimistic" else np.less_equal
    array, label, camera, asked, kept = check_problem(embeddings, labels, cameras, query, gallery)
    to_space = space(array, distance)
    vectors = to_space(array, np.arange(len(array)))
    random = np.random.default_rng(seed)
    shown = [_one_of_each(label[kept], random) for _ in range(repeats)]
    draws = random.random((repeats, len(asked)))
    ranks = np.zeros((repeats, len(asked)), np.int64)
    block = max(1, min(len(asked), cached_cells() // len(kept)))
    for begin in range(0, len(asked), block):
        part = slice(begin, begin + block)
        rows = asked[part]
        padded = np.resize(rows, block)  # one shape, one compilation
        table = cross_distances(vectors, padded, kept, cosine=to_space.cosine)[: len(rows)]
        same = label[rows, None] == label[kept]
        valid = same & (camera[rows, None] != camera[kept])
        number = np.cumsum(valid, axis=1)
        count = number[:, -1]
        for repeat in range(repeats):
            drawn = np.argmax(number == 1 + (draws[repeat, part] * count).astype(int)[:, None], axis=1)
            own = table[np.arange(len(rows)), drawn]
            wrong = before(table[:, shown[repeat]], own[:, None]) & ~same[:, shown[repeat]]
            ranks[repeat, part] = np.where(count > 0, 1 + wrong.sum(axis=1), 0)
    return ranks


def _one_of_each(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random position of each distinct label."""
    shuffled = random.permutation(len(labels))
    return shuffled[np.unique(labels[shuffled], return_index=True)[1]]


def rank_multi_query(
    embeddings: ArrayLike,
    labels: ArrayLike,
    cameras: ArrayLike | None,
    *,
    query: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    views: ArrayLike | None = None,
    pool: str = "mean",
    distance: str = "euclidean",
    ties: str = "pessimistic",
) -> QueryResults:
    """Market-1501's multi-query: a query is pooled from all images of its identity by its camera.

    Args:
      embeddings, labels, query, gallery, distance, ties: as for `rank_matches`.
      cameras: `[n]` integers, required.
      views: rows to pool from (Market-1501's `gt_bbox`); None for the queries themselves.
      pool: "mean" or "max" over the views, of their directions where `distance` is "cosine".

    Returns:
      QueryResults, one per query, in their order.
    """
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, but is {pool!r}.")
    if cameras is None:
        raise ValueError("cameras must be given: multi-query pools the images of one identity by one camera.")
    array, label, camera, asked, kept = check_problem(embeddings, labels, cameras, query, gallery)
    seen = asked if views is None else check_rows(views, len(array), "views")
    if distance == "cosine":
        array = space(array, distance)(array, np.arange(len(array)))
    group = np.unique(np.stack([label, camera]), axis=1, return_inverse=True)[1].reshape(-1)
    pooled = np.empty((len(asked), array.shape[1]), array.dtype)
    for number in np.unique(group[asked]):
        members = seen[group[seen] == number]
        places = np.flatnonzero(group[asked] == number)
        if members.size == 0:
            raise ValueError(
                f"views holds no image of the identity and camera of query row {asked[places[0]]}."
            )
        pooled[places] = array[members].mean(axis=0) if pool == "mean" else array[members].max(axis=0)
    results = rank_matches(
        np.concatenate([array, pooled]),
        np.concatenate([label, label[asked]]),
        cameras=np.concatenate([camera, camera[asked]]),
        query=len(array) + np.arange(len(asked)),
        gallery=kept,
        distance=distance,
        ties=ties,
    )
    return dataclasses.replace(results, query=asked)
