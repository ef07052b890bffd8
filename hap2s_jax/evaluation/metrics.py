"""The metrics of the protocols by name, from the ranks of each query, and their means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

import numpy as np

from hap2s_jax.evaluation.retrieval import QueryResults
from hap2s_jax.evaluation.statistics import means

RECALL_AT = (1, 2, 4, 8)
RANKS = (1, 5, 10)
IN_SHOP_AT = (1, 10, 20, 30)
SINGLE_SHOT_RANKS = (1, 5, 10, 20)
CLOSED_SET_AT = (1, 5)
ACCURACY = "closed_set_accuracy"

# A metric is each query's share in a mean, `[q]`; NaN leaves the query out of it.
Metric = Callable[[QueryResults], np.ndarray]


def recall(k: int) -> Metric:
    """Whether a match stands among the first `k`; a query without any possible match is a miss."""
    return lambda results: results.hit(k).astype(float)


def rank(k: int) -> Metric:
    """Whether a match stands among the first `k`; a query without any possible match is left out."""
    return lambda results: np.where(results.answerable, results.hit(k), np.nan)


def class_metrics(ks: Sequence[int] = RECALL_AT) -> dict[str, Metric]:
    """The metrics of class retrieval by name."""
    return dict(zip(map("recall@{}".format, ks), map(recall, ks), strict=True)) | {
        "map@r": attrgetter("map_at_r"),
        "r_precision": attrgetter("r_precision"),
        "mrr": attrgetter("reciprocal_rank"),
    }


def query_gallery_metrics(ks: Sequence[int] = RANKS) -> dict[str, Metric]:
    """The metrics of queries against a gallery by name."""
    return dict(zip(map("rank-{}".format, ks), map(rank, ks), strict=True)) | {
        "mAP": attrgetter("average_precision"),
        "mAP_trapezoid": attrgetter("average_precision_trapezoid"),
        "mINP": attrgetter("inverse_penalty"),
    }


def in_shop_metrics(ks: Sequence[int] = IN_SHOP_AT) -> dict[str, Metric]:
    """The metrics of In-shop's own protocol by name."""
    by_k = zip(map("in_shop_recall@{}".format, ks), map(recall, ks), strict=True)
    return {**dict(by_k), "in_shop_mAP": attrgetter("average_precision")}


def closed_set_metrics(ks: Sequence[int] = CLOSED_SET_AT) -> dict[str, Metric]:
    """The metrics of queries against a database of the same individuals by name."""
    by_k = zip(map("closed_set_top-{}".format, ks), map(rank, ks), strict=True)
    return {**dict(by_k), "closed_set_mAP": attrgetter("average_precision"), ACCURACY: rank(1)}


def figures(results: QueryResults, metrics: Mapping[str, Metric], protocol: str) -> dict[str, float]:
    """Means of the metrics, queries asked, and those that no key could answer."""
    return means(zip(metrics, (metric(results) for metric in metrics.values()), strict=True)) | {
        f"{protocol}_queries": float(len(results.query)),
        f"{protocol}_queries_without_match": float(np.sum(~results.answerable)),
    }
