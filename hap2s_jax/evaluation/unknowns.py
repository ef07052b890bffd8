"""Open-set retrieval: queries of known classes among queries of classes that the gallery does not hold.

A query is answered when its nearest gallery image lies within a threshold. *Known* queries have a match in the gallery,
*unknown* ones have none of their class there. `thresholds` calibrates on other data; nothing here chooses a
threshold for the balanced accuracies from the queries that it judges.
"""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from hap2s_jax.evaluation.inputs import check_problem
from hap2s_jax.evaluation.pairs import FALSE_ACCEPTS, enough_for
from hap2s_jax.evaluation.thresholds import nearest_right_and_wrong, rates_of


def open_set(
    embeddings: ArrayLike,
    labels: ArrayLike,
    cameras: ArrayLike | None = None,
    *,
    query: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    threshold: float | None = None,
    distance: str = "euclidean",
) -> dict[str, float]:
    """How well known queries are found and unknown ones recognised.

    Args:
      embeddings: `[n, d]` floats, all finite.
      labels: `[n]` integers; -1 is junk.
      cameras: `[n]` integers, or None: images of a query's class by its camera are then no answers to it. A known query
        with no others is left out.
      query, gallery: rows (indices or masks); None for all.
      threshold: distance up to which a query is answered, from other data (`thresholds.error_rates(...).equal()`).
      distance: "euclidean", "squared_euclidean" or "cosine".

    Returns:
      - `dir@1e-01`, ...: detection and identification rate (Phillips et al., 2011), the share of known queries whose
        nearest image is right and within the largest threshold at which at most a tenth of the unknown queries are
        answered. A rate is reported if at least ten unknown queries may be answered.
      - with `threshold`: `baks`, the share of known queries answered rightly, and `baus`, of unknown ones not answered,
        means over classes (AnimalCLEF, 2025), and `geometric_mean` of both; `false_accepts` and `false_rejects` of
        queries, and what they are at most for new classes with 95 % confidence (`..._bound`, see `thresholds`).
        Without known queries, or without unknown ones, what would be a mean over none is NaN.
      - the numbers of known and of unknown queries, and of those left out.

    At exactly the same distance a wrong image comes before a right one.

    Raises:
      ValueError, TypeError: one line that names the argument.
    """
    problem = check_problem(embeddings, labels, cameras, query, gallery)
    rows = {"query": problem.query, "gallery": problem.gallery}
    right, wrong = nearest_right_and_wrong(embeddings, labels, cameras, distance=distance, **rows)
    classes, kept = problem.labels[problem.query], problem.gallery
    others = np.bincount(problem.labels[kept], minlength=int(problem.labels.max()) + 1)[classes]
    known = np.isfinite(right)
    unknown = others == np.isin(problem.query, kept)
    identified = np.where(right < wrong, right, np.inf)[known]
    alarms = np.sort(np.where(unknown, wrong, np.inf))[: unknown.sum()]
    found = {}
    for rate in FALSE_ACCEPTS:
        if enough_for(rate, len(alarms)) and known.any():
            # The next alarm comes at this distance, so everything nearer is allowed.
            limit = np.append(alarms, np.inf)[int(rate * len(alarms) * (1 + 1e-9))]
            found[f"dir@{rate:.0e}"] = float(np.mean(identified < limit))
    if threshold is not None:
        answered = np.minimum(right, wrong) <= threshold
        baks = mean_over_classes(classes[known], identified <= threshold)
        baus = mean_over_classes(classes[unknown], ~answered[unknown])
        found |= {"baks": baks, "baus": baus, "geometric_mean": float(np.sqrt(baks * baus))}
        shares = bounds = (float("nan"), float("nan"))
        if known.any() and unknown.any():
            asked = np.where(known, right, np.inf), np.where(unknown, wrong, np.inf)
            rates = rates_of(*asked, classes, len(kept), at=(threshold,))
            shares, bounds = rates.at(threshold), rates.bounds(threshold)
        for name, share, bound in zip(("false_accepts", "false_rejects"), shares, bounds, strict=True):
            found |= {name: share, f"{name}_bound": bound}
    return found | {
        "open_set_known_queries": float(known.sum()),
        "open_set_unknown_queries": float(unknown.sum()),
        "open_set_left_out_queries": float((~known & ~unknown).sum()),
    }


def mean_over_classes(classes: np.ndarray, right: np.ndarray) -> float:
    """The mean over classes `[q]` of the share of queries answered right, bool `[q]`; NaN without queries."""
    if not len(classes):
        return float("nan")
    number = np.unique(classes, return_inverse=True)[1]
    return float(np.mean(np.bincount(number, right) / np.bincount(number)))
