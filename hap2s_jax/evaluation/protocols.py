"""The protocols of the field, each a choice of queries, keys and means over `retrieval.rank_matches`.

- class: every image queries all others. recall@k, map@r, r_precision, mrr; nmi, ami and f1 of k-means.
- query_gallery: the query rows against the gallery rows; removed for a query are itself, junk, and its
  class as seen by its own camera. rank-k (CMC), mAP by finite sum, mAP_trapezoid, mINP.
- in_shop: the same without the camera rule; recall@k, all names with the prefix `in_shop_`.
- single_gallery_shot: the gallery holds one random image of each identity, repeatedly; rank-k.
- multi_query: query_gallery with each query pooled from its identity's images by its camera.
- closed_set: query rows against a database of the same individuals, such as the training images; no camera rule.
  top-k, mAP, the accuracy of the nearest neighbour and its mean over individuals, with the prefix `closed_set_`.
- open_set: queries of known and of unknown classes, see `unknowns`. verification: pairs of images, see `pairs`.

Which queries count: the recall@k of class and in_shop count a query without any possible match as a miss (a
class with a single image); all other figures leave such queries out. Their number is always reported beside
the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter, methodcaller
from typing import TypedDict

import numpy as np
from jax.typing import ArrayLike

from hap2s_jax.data.source import PROTOCOLS
from hap2s_jax.evaluation.clustering import kmeans, measures
from hap2s_jax.evaluation.inputs import Device, check_ranks
from hap2s_jax.evaluation.pairs import verification
from hap2s_jax.evaluation.retrieval import QueryResults, rank_matches
from hap2s_jax.evaluation.special import rank_multi_query, rank_single_gallery_shot
from hap2s_jax.evaluation.unknowns import mean_over_classes, open_set

RECALL_AT = (1, 2, 4, 8)
RANKS = (1, 5, 10)
IN_SHOP_AT = (1, 10, 20, 30)
SINGLE_SHOT_RANKS = (1, 5, 10, 20)
CLOSED_SET_AT = (1, 5)
CLUSTERING = ("nmi", "ami", "f1")

# A metric gives each query's value, `[q]`; NaN leaves the query out of the mean. Recall is `QueryResults.hit`, where a
# query without any possible match is a miss.
Metric = Callable[[QueryResults], np.ndarray]


def rank(results: QueryResults, k: int) -> np.ndarray:
    """Whether a match stands among the first `k`; a query without any possible match is left out."""
    return np.where(results.answerable, results.hit(k), np.nan)


def class_metrics(ks: Sequence[int] = RECALL_AT) -> dict[str, Metric]:
    """The metrics of class retrieval by name."""
    return {f"recall@{k}": methodcaller("hit", k) for k in ks} | {
        "map@r": attrgetter("map_at_r"),
        "r_precision": attrgetter("r_precision"),
        "mrr": attrgetter("reciprocal_rank"),
    }


def query_gallery_metrics(ks: Sequence[int] = RANKS) -> dict[str, Metric]:
    """The metrics of queries against a gallery by name."""
    return {f"rank-{k}": partial(rank, k=k) for k in ks} | {
        "mAP": attrgetter("average_precision"),
        "mAP_trapezoid": attrgetter("average_precision_trapezoid"),
        "mINP": attrgetter("inverse_penalty"),
    }


def multi_query_metrics(ks: Sequence[int] = RANKS) -> dict[str, Metric]:
    """The metrics of pooled queries against a gallery by name."""
    return {f"multi_query_{name}": metric for name, metric in query_gallery_metrics(ks).items()}


def in_shop_metrics(ks: Sequence[int] = IN_SHOP_AT) -> dict[str, Metric]:
    """The metrics of In-shop's own protocol by name."""
    return {f"in_shop_recall@{k}": methodcaller("hit", k) for k in ks} | {
        "in_shop_mAP": attrgetter("average_precision")
    }


def closed_set_metrics(ks: Sequence[int] = CLOSED_SET_AT) -> dict[str, Metric]:
    """The metrics of queries against a database of the same individuals by name."""
    return {f"closed_set_top-{k}": partial(rank, k=k) for k in ks} | {
        "closed_set_mAP": attrgetter("average_precision"),
        "closed_set_accuracy": partial(rank, k=1),
    }


def means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean of each figure, given by name, over the queries that count (not NaN); NaN if none does."""
    out = {}
    for name, column in values.items():
        known = column[~np.isnan(column)]
        out[name] = float(known.mean()) if known.size else float("nan")
    return out


def figures(results: QueryResults, metrics: Mapping[str, Metric], protocol: str) -> dict[str, float]:
    """Means of the metrics, the number of queries, and of those without a possible match."""
    return means({name: metric(results) for name, metric in metrics.items()}) | {
        f"{protocol}_queries": float(len(results.query)),
        f"{protocol}_queries_without_match": float(np.sum(~results.answerable)),
    }


class _Compared(TypedDict):
    distance: str
    ties: str


class _Asked(TypedDict):
    query: ArrayLike | None
    gallery: ArrayLike | None


def names(protocols: Sequence[str]) -> tuple[str, ...]:
    """The figures, without the counts, that `evaluate` returns of "class" and "query_gallery" by default."""
    found = [*class_metrics(), *CLUSTERING] if "class" in protocols else []
    return (*found, *(query_gallery_metrics() if "query_gallery" in protocols else ()))


def evaluate(
    embeddings: ArrayLike,
    labels: ArrayLike,
    cameras: ArrayLike | None = None,
    *,
    query: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    views: ArrayLike | None = None,
    protocols: Sequence[str] = ("class",),
    distance: str = "euclidean",
    ties: str = "pessimistic",
    recall_at: Sequence[int] | None = None,
    ranks: Sequence[int] | None = None,
    cluster: bool = True,
    seed: int = 0,
    restarts: int = 3,
    repeats: int = 10,
    pairs: ArrayLike | None = None,
    threshold: float | None = None,
    devices: Sequence[Device] | None = None,
) -> dict[str, float]:
    """Evaluates embeddings by one or more protocols.

    Args:
      embeddings: `[n, d]` floats, all finite.
      labels: `[n]` integers; -1 is junk, neither query nor key (also for images that could not be read).
      cameras: `[n]` integers for the camera rule, or None for no such rule; with a single camera it does not hold.
      query, gallery: rows (indices or masks); None for all. "class" always takes every row.
      views: rows that "multi_query" pools from; None for the queries.
      protocols: among PROTOCOLS.
      distance: "euclidean" ("squared_euclidean" ranks alike) or "cosine".
      ties: see `retrieval`.
      recall_at: k of recall@k instead of 1, 2, 4, 8 (class) and 1, 10, 20, 30 (in_shop). A k that is given
        must not exceed the gallery; the usual ones are reported for any gallery.
      ranks: k of rank-k instead of 1, 5, 10 (single_gallery_shot: and 20; closed_set: 1, 5); likewise.
      cluster: whether "class" also clusters (k = number of classes) for nmi, ami and f1.
      seed: of k-means and of the single-shot galleries.
      restarts: of k-means.
      repeats: single-shot galleries drawn.
      pairs: of "verification", see `pairs.verification`; None for all.
      threshold: of "open_set", see `unknowns.open_set`.
      devices: see `retrieval.rank_matches`.

    Returns:
      Figures between 0 and 1, and counts, by name. A mean over no query at all is NaN.

    Raises:
      ValueError, TypeError: one line that names the argument.
    """
    if isinstance(protocols, str) or not protocols or not set(protocols) <= set(PROTOCOLS):
        raise ValueError(f"protocols must be a list out of {', '.join(PROTOCOLS)}, but is {protocols!r}.")
    size = np.size(labels) if gallery is None else np.arange(np.size(labels))[np.asarray(gallery)].size
    at, in_shop_at = RECALL_AT, IN_SHOP_AT
    rank_at, single_at, closed_at = RANKS, SINGLE_SHOT_RANKS, CLOSED_SET_AT
    if recall_at is not None:
        at = in_shop_at = check_ranks(recall_at, np.size(labels) - 1 if "class" in protocols else size)
    if ranks is not None:
        rank_at = single_at = closed_at = check_ranks(ranks, size)
    common: _Compared = {"distance": distance, "ties": ties}
    rows: _Asked = {"query": query, "gallery": gallery}
    ranked = partial(rank_matches, embeddings, labels, devices=devices, **common)
    found: dict[str, float] = {}
    if "class" in protocols:
        results = ranked()
        found |= figures(results, class_metrics(at), "class")
        if cluster:
            images, classes = np.asarray(embeddings)[results.query], np.asarray(labels)[results.query]
            groups = kmeans(images, len(np.unique(classes)), distance=distance, seed=seed, restarts=restarts)
            found |= dict(zip(CLUSTERING, measures(classes, groups), strict=True))
    if "query_gallery" in protocols:
        found |= figures(ranked(cameras=cameras, **rows), query_gallery_metrics(rank_at), "query_gallery")
    if "in_shop" in protocols:
        found |= figures(ranked(**rows), in_shop_metrics(in_shop_at), "in_shop")
    if "single_gallery_shot" in protocols:
        places = rank_single_gallery_shot(
            embeddings, labels, cameras=cameras, repeats=repeats, seed=seed, **rows, **common
        )
        found |= single_gallery_shot_figures(places, single_at)
    if "multi_query" in protocols:
        results = rank_multi_query(embeddings, labels, cameras, views=views, **rows, **common)
        found |= figures(results, multi_query_metrics(rank_at), "multi_query")
    if "closed_set" in protocols:
        found |= closed_set_figures(ranked(**rows), labels, closed_at)
    if "open_set" in protocols:
        found |= open_set(embeddings, labels, cameras, threshold=threshold, distance=distance, **rows)
    if "verification" in protocols:
        found |= verification(embeddings, labels, pairs, distance=distance)
    return found


def class_values(results: QueryResults, ks: Sequence[int] = RECALL_AT) -> dict[str, np.ndarray]:
    """Each query's values of class retrieval by metric, `[q]` each; NaN where a query does not count."""
    return {name: metric(results).astype(float) for name, metric in class_metrics(ks).items()}


def query_gallery_values(results: QueryResults, ks: Sequence[int] = RANKS) -> dict[str, np.ndarray]:
    """Each query's values of query/gallery retrieval by metric, `[q]` each; NaN where a query does not count."""
    return {name: metric(results) for name, metric in query_gallery_metrics(ks).items()}


def closed_set_figures(
    results: QueryResults, labels: ArrayLike, ks: Sequence[int] = CLOSED_SET_AT
) -> dict[str, float]:
    """Means over answerable queries, of the accuracy over individuals (labels `[n]`) too, and the counts."""
    answered = results.answerable
    balanced = mean_over_classes(np.asarray(labels)[results.query[answered]], results.hit(1)[answered])
    found = figures(results, closed_set_metrics(ks), "closed_set")
    return found | {"closed_set_balanced_accuracy": balanced}


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
