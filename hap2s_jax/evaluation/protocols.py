"""The protocols of the field, each a choice of queries, keys and means over `retrieval.rank_matches`.

- class: every image queries all others. recall@k, map@r, r_precision, mrr; nmi, ami and f1 of k-means.
- query_gallery: the query rows against the gallery rows; removed for a query are itself, junk, and its
  class as seen by its own camera. rank-k (CMC), mAP by finite sum, mAP_trapezoid, mINP.

Which queries count: recall@k counts a query without any possible match as a miss (a class with a single
image); all other figures leave such queries out. How many those are always stands beside the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hap2s_jax.evaluation import clustering
from hap2s_jax.evaluation.inputs import check_embeddings, check_integers
from hap2s_jax.evaluation.retrieval import JUNK, QueryResults, check_ranks, rank_matches

PROTOCOLS = ("class", "query_gallery")


def evaluate(
    embeddings: Any,
    labels: Any,
    cameras: Any = None,
    *,
    query: Any = None,
    gallery: Any = None,
    protocols: Sequence[str] = ("class",),
    distance: str = "euclidean",
    ties: str = "pessimistic",
    recall_at: Sequence[int] | None = None,
    ranks: Sequence[int] | None = None,
    cluster: bool = True,
    seed: int = 0,
    restarts: int = 3,
    devices: Sequence[Any] | None = None,
) -> dict[str, float]:
    """Evaluates embeddings by one or both protocols.

    Args:
      embeddings: `[n, d]` floats, all finite.
      labels: `[n]` integers; -1 is junk, neither query nor key (also for images that could not be read).
      cameras: `[n]` integers for the camera rule of "query_gallery", or None for no such rule.
      query, gallery: rows (indices or masks) for "query_gallery"; None for all. "class" always takes every
        row.
      protocols: "class", "query_gallery", or both.
      distance: "euclidean" ("squared_euclidean" ranks alike) or "cosine".
      ties: see `retrieval`.
      recall_at: k of recall@k, 1, 2, 4, 8 unless given. A k that is given must not exceed the gallery.
      ranks: k of rank-k, 1, 5, 10 unless given; likewise.
      cluster: whether "class" also clusters (k = number of classes) for nmi, ami and f1.
      seed, restarts: of k-means.
      devices: see `retrieval.rank_matches`.

    Returns:
      Figures between 0 and 1, and counts, by name. A mean over no query at all is NaN.

    Raises:
      ValueError, TypeError: one line that names the argument.
    """
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown or not protocols:
        raise ValueError(f"protocols must be among {', '.join(PROTOCOLS)}, but is {tuple(protocols)!r}.")
    common: dict[str, Any] = {"distance": distance, "ties": ties, "devices": devices}
    figures: dict[str, float] = {}
    if "class" in protocols:
        results = rank_matches(embeddings, labels, **common)
        ks = (1, 2, 4, 8) if recall_at is None else check_ranks(recall_at, len(results.query) - 1)
        figures |= class_figures(results, ks)
        if cluster:
            figures |= cluster_figures(embeddings, labels, distance=distance, seed=seed, restarts=restarts)
    if "query_gallery" in protocols:
        results = rank_matches(embeddings, labels, cameras=cameras, query=query, gallery=gallery, **common)
        size = len(np.asarray(labels)) if gallery is None else int(np.size(gallery))
        ks = (1, 5, 10) if ranks is None else check_ranks(ranks, size)
        figures |= query_gallery_figures(results, ks)
    return figures


def class_figures(results: QueryResults, ks: Sequence[int] = (1, 2, 4, 8)) -> dict[str, float]:
    """Means over queries of class retrieval: recall@k, map@r, r_precision, mrr, and the counts."""
    figures = {f"recall@{k}": float(np.mean(results.hit(k))) for k in ks}
    figures["map@r"] = _mean(results.map_at_r)
    figures["r_precision"] = _mean(results.r_precision)
    figures["mrr"] = _mean(results.reciprocal_rank)
    return figures | _counts(results, "class")


def query_gallery_figures(results: QueryResults, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Means over answerable queries: rank-k (CMC), mAP by either rule, mINP, and the counts."""
    answerable = results.answerable
    figures = {f"rank-{k}": _mean(results.hit(k)[answerable].astype(float)) for k in ks}
    figures["mAP"] = _mean(results.average_precision)
    figures["mAP_trapezoid"] = _mean(results.average_precision_trapezoid)
    figures["mINP"] = _mean(results.inverse_penalty)
    return figures | _counts(results, "query_gallery")


def cluster_figures(
    embeddings: Any, labels: Any, *, distance: str = "euclidean", seed: int = 0, restarts: int = 3
) -> dict[str, float]:
    """nmi, ami and f1 of k-means with as many clusters as there are classes (junk left out)."""
    array = check_embeddings(embeddings)
    label = check_integers(labels, array.shape[0], "labels")
    array, label = array[label != JUNK], label[label != JUNK]
    classes = len(np.unique(label))
    assignment = clustering.kmeans(array, classes, distance=distance, seed=seed, restarts=restarts)
    measures = {"nmi": clustering.nmi, "ami": clustering.ami, "f1": clustering.f1}
    return {name: measure(label, assignment) for name, measure in measures.items()}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _counts(results: QueryResults, protocol: str) -> dict[str, float]:
    """Queries asked, and those that no key could answer."""
    return {
        f"{protocol}_queries": float(len(results.query)),
        f"{protocol}_queries_without_match": float(np.sum(~results.answerable)),
    }
