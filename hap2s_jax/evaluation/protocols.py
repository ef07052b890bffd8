"""The protocols of the field, each a choice of queries, keys and means over `retrieval.rank_matches`.

- class: every image queries all others. recall@k, map@r, r_precision, mrr; nmi, ami and f1 of k-means.
- query_gallery: the query rows against the gallery rows; removed for a query are itself, junk, and its
  class as seen by its own camera. rank-k (CMC), mAP by finite sum, mAP_trapezoid, mINP.
- in_shop: the same without the camera rule; recall@k, all names with the prefix `in_shop_`.
- single_gallery_shot: the gallery holds one random image of each identity, repeatedly; rank-k.
- multi_query: query_gallery with each query pooled from its identity's images by its camera.

Which queries count: the recall@k of class and in_shop count a query without any possible match as a miss (a
class with a single image); all other figures leave such queries out. How many those are always stands beside
the figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from hap2s_jax.evaluation import clustering
from hap2s_jax.evaluation.inputs import JUNK, check_embeddings, check_integers, check_ranks
from hap2s_jax.evaluation.retrieval import QueryResults, rank_matches
from hap2s_jax.evaluation.special import rank_multi_query, rank_single_gallery_shot
from hap2s_jax.evaluation.statistics import means

PROTOCOLS = ("class", "query_gallery", "in_shop", "single_gallery_shot", "multi_query")

RECALL_AT = (1, 2, 4, 8)
RANKS = (1, 5, 10)
IN_SHOP_AT = (1, 10, 20, 30)
SINGLE_SHOT_RANKS = (1, 5, 10, 20)
_CLUSTER_MEASURES = {"nmi": clustering.nmi, "ami": clustering.ami, "f1": clustering.f1}


def evaluate(
    embeddings: Any,
    labels: Any,
    cameras: Any = None,
    *,
    query: Any = None,
    gallery: Any = None,
    views: Any = None,
    protocols: Sequence[str] = ("class",),
    distance: str = "euclidean",
    ties: str = "pessimistic",
    recall_at: Sequence[int] | None = None,
    ranks: Sequence[int] | None = None,
    cluster: bool = True,
    seed: int = 0,
    restarts: int = 3,
    repeats: int = 10,
    devices: Sequence[Any] | None = None,
) -> dict[str, float]:
    """Evaluates embeddings by one or more protocols.

    Args:
      embeddings: `[n, d]` floats, all finite.
      labels: `[n]` integers; -1 is junk, neither query nor key (also for images that could not be read).
      cameras: `[n]` integers for the camera rule, or None for no such rule.
      query, gallery: rows (indices or masks); None for all. "class" always takes every row.
      views: rows that "multi_query" pools from; None for the queries.
      protocols: among PROTOCOLS.
      distance: "euclidean" ("squared_euclidean" ranks alike) or "cosine".
      ties: see `retrieval`.
      recall_at: k of recall@k instead of 1, 2, 4, 8 (class) and 1, 10, 20, 30 (in_shop). A k that is given
        must not exceed the gallery; the usual ones are reported for any gallery.
      ranks: k of rank-k instead of 1, 5, 10 (single_gallery_shot: and 20); likewise.
      cluster: whether "class" also clusters (k = number of classes) for nmi, ami and f1.
      seed: of k-means and of the single-shot galleries.
      restarts: of k-means.
      repeats: single-shot galleries drawn.
      devices: see `retrieval.rank_matches`.

    Returns:
      Figures between 0 and 1, and counts, by name. A mean over no query at all is NaN.

    Raises:
      ValueError, TypeError: one line that names the argument.
    """
    if isinstance(protocols, str) or not protocols or any(name not in PROTOCOLS for name in protocols):
        raise ValueError(f"protocols must be a list out of {', '.join(PROTOCOLS)}, but is {protocols!r}.")
    count = len(np.asarray(labels))
    size = count if gallery is None else _size(gallery)
    at, in_shop_at, rank_at, single_at = RECALL_AT, IN_SHOP_AT, RANKS, SINGLE_SHOT_RANKS
    if recall_at is not None:
        at = in_shop_at = check_ranks(recall_at, count - 1 if "class" in protocols else size)
    if ranks is not None:
        rank_at = single_at = check_ranks(ranks, size)
    rows = {"query": query, "gallery": gallery}
    common: dict[str, Any] = {"distance": distance, "ties": ties}
    figures: dict[str, float] = {}
    if "class" in protocols:
        figures |= class_figures(rank_matches(embeddings, labels, devices=devices, **common), at)
        if cluster:
            figures |= cluster_figures(embeddings, labels, distance=distance, seed=seed, restarts=restarts)
    if "query_gallery" in protocols:
        results = rank_matches(embeddings, labels, cameras=cameras, devices=devices, **rows, **common)
        figures |= query_gallery_figures(results, rank_at)
    if "in_shop" in protocols:
        figures |= in_shop_figures(
            rank_matches(embeddings, labels, devices=devices, **rows, **common), in_shop_at
        )
    if "single_gallery_shot" in protocols:
        places = rank_single_gallery_shot(
            embeddings, labels, cameras=cameras, repeats=repeats, seed=seed, **rows, **common
        )
        figures |= single_gallery_shot_figures(places, single_at)
    if "multi_query" in protocols:
        results = rank_multi_query(embeddings, labels, cameras, views=views, **rows, **common)
        pooled = query_gallery_figures(results, rank_at, protocol="multi_query")
        figures |= {
            name if name.startswith("multi") else f"multi_query_{name}": v for name, v in pooled.items()
        }
    return figures


def names(protocols: Sequence[str]) -> tuple[str, ...]:
    """The figures, without the counts, that `evaluate` returns of "class" and "query_gallery" by default."""
    nothing = np.zeros(0)
    results = QueryResults(*[nothing] * len(dataclasses.fields(QueryResults)))
    figures: list[str] = []
    if "class" in protocols:
        figures += [*class_values(results), *_CLUSTER_MEASURES]
    if "query_gallery" in protocols:
        figures += query_gallery_values(results)
    return tuple(figures)


def class_values(results: QueryResults, ks: Sequence[int] = RECALL_AT) -> dict[str, np.ndarray]:
    """Each query's share in the figures of class retrieval, `[q]` each, NaN where it does not count."""
    return {f"recall@{k}": results.hit(k).astype(float) for k in ks} | {
        "map@r": results.map_at_r,
        "r_precision": results.r_precision,
        "mrr": results.reciprocal_rank,
    }


def class_figures(results: QueryResults, ks: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """Means over queries of class retrieval: recall@k, map@r, r_precision, mrr, and the counts."""
    return means(class_values(results, ks)) | _counts(results, "class")


def query_gallery_values(results: QueryResults, ks: Sequence[int] = RANKS) -> dict[str, np.ndarray]:
    """Each query's share in the query/gallery figures, `[q]` each, NaN where it does not count."""
    return {f"rank-{k}": np.where(results.answerable, results.hit(k), np.nan) for k in ks} | {
        "mAP": results.average_precision,
        "mAP_trapezoid": results.average_precision_trapezoid,
        "mINP": results.inverse_penalty,
    }


def query_gallery_figures(
    results: QueryResults, ks: Sequence[int] = RANKS, *, protocol: str = "query_gallery"
) -> dict[str, float]:
    """Means over answerable queries: rank-k (CMC), mAP by either rule, mINP, and the counts."""
    return means(query_gallery_values(results, ks)) | _counts(results, protocol)


def in_shop_figures(results: QueryResults, ks: Sequence[int] = IN_SHOP_AT) -> dict[str, float]:
    """In-shop's recall@k and mAP, with their prefix, and the counts."""
    values = {f"in_shop_recall@{k}": results.hit(k).astype(float) for k in ks}
    return means(values | {"in_shop_mAP": results.average_precision}) | _counts(results, "in_shop")


def single_gallery_shot_figures(ranks: np.ndarray, ks: Sequence[int] = SINGLE_SHOT_RANKS) -> dict[str, float]:
    """Means over repeats and answerable queries of `ranks [repeats, q]`, and the counts."""
    answerable = ranks[0] > 0
    values = {
        f"single_gallery_shot_rank-{k}": np.where(answerable, (ranks <= k).mean(axis=0), np.nan) for k in ks
    }
    return means(values) | {
        "single_gallery_shot_queries": float(len(answerable)),
        "single_gallery_shot_queries_without_match": float(np.sum(~answerable)),
    }


def cluster_figures(
    embeddings: Any, labels: Any, *, distance: str = "euclidean", seed: int = 0, restarts: int = 3
) -> dict[str, float]:
    """nmi, ami and f1 of k-means with as many clusters as there are classes (junk left out)."""
    array = check_embeddings(embeddings)
    label = check_integers(labels, array.shape[0], "labels")
    array, label = array[label != JUNK], label[label != JUNK]
    classes = len(np.unique(label))
    assignment = clustering.kmeans(array, classes, distance=distance, seed=seed, restarts=restarts)
    return {name: measure(label, assignment) for name, measure in _CLUSTER_MEASURES.items()}


def _size(rows: Any) -> int:
    array = np.asarray(rows)
    return int(array.sum()) if array.dtype == np.bool_ else array.size


def _counts(results: QueryResults, protocol: str) -> dict[str, float]:
    """Queries asked, and those that no key could answer."""
    return {
        f"{protocol}_queries": float(len(results.query)),
        f"{protocol}_queries_without_match": float(np.sum(~results.answerable)),
    }
