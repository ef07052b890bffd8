"""Every loss as loops in float64, written from the papers: slow, obvious, and without a Gram matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

Row = tuple[list[float], list[float]]  # an anchor's distances to its positives, and to its negatives
Bounds = tuple[float, float]


class Case(NamedTuple):
    """A batch without what is ignored.

    Attributes:
      x: embeddings `[n, d]`.
      labels: `[n]`.
      keys: `[m, d]`, first the embeddings themselves, then further ones.
      key_labels: `[m]`.
      params: the loss's own arrays.
      slack: distances closer than this may count as equal, or the other way round.
    """

    x: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    key_labels: np.ndarray
    params: Mapping[str, Any]
    slack: float


class Oracle(NamedTuple):
    """A loss as a loop.

    Attributes:
      value: the loss of a batch, or for losses that draw the least and the largest that it may be.
      settings: its hyperparameters, where they are not the defaults.
      power: of the embeddings' lengths to which its rounding is relative; 0 for losses of directions.
      is_slope: whether its gradient is that of its value: some weights have none.
    """

    value: Callable[[Case], float | Bounds]
    settings: Mapping[str, Any] = MappingProxyType({})
    power: int = 1
    is_slope: bool = True


def unit(x: np.ndarray) -> np.ndarray:
    """The rows at length 1."""
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def gaps(case: Case, kind: str) -> np.ndarray:
    """Distances `[n, m]`."""
    if kind == "dot":
        return -(case.x[:, None] * case.keys[None]).sum(-1)
    x, keys = (unit(case.x), unit(case.keys)) if kind == "cosine" else (case.x, case.keys)
    squared = ((x[:, None] - keys[None]) ** 2).sum(-1)
    return squared / 2 if kind == "cosine" else squared if kind == "squared" else np.sqrt(squared)


def rows(case: Case, kind: str = "euclidean", *, with_anchor: bool = False) -> list[Row]:
    """The row of each anchor."""
    far_off, found = gaps(case, kind).tolist(), []
    for a, label in enumerate(case.labels):
        own = [k for k, other in enumerate(case.key_labels) if other == label and (with_anchor or k != a)]
        others = [k for k, other in enumerate(case.key_labels) if other != label]
        found.append(([far_off[a][k] for k in own], [far_off[a][k] for k in others]))
    return found


def both(case: Case, kind: str = "euclidean", *, with_anchor: bool = False) -> list[Row]:
    """The rows of anchors that have a positive and a negative."""
    return [row for row in rows(case, kind, with_anchor=with_anchor) if all(row)]


def mean(values: list[float]) -> float:
    """Their mean; 0 of none."""
    return math.fsum(values) / len(values) if values else 0.0


def hinge(value: float) -> float:
    """What it exceeds 0 by."""
    return max(value, 0.0)


def soft(value: float) -> float:
    """log(1 + exp(value))."""
    return hinge(value) + math.log1p(math.exp(-abs(value)))


def log_sum(values: list[float]) -> float:
    """The logarithm of the sum of their exponentials."""
    top = max(values)
    return top + math.log(math.fsum(math.exp(v - top) for v in values))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


def average(values: list[float], logs: list[float]) -> float:
    """Their mean, weighted by the exponentials of `logs`."""
    weights = [math.exp(log - max(logs)) for log in logs]
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


def _exponential(values: list[float], sign: float, sigma: float = 0.5) -> float:
    return average(values, [sign * v / sigma for v in values])


def _polynomial(values: list[float], sign: float) -> float:
    return average(values, [(4.0 if sign > 0 else -8.0) * math.log1p(v) for v in values])


def _ranked(values: list[float], sign: float) -> float:
    return average(values, [math.log(0.5) * sum(sign * o > sign * v for o in values) for v in values])


def _hardest(values: list[float], sign: float) -> float:
    last = sorted(values, key=lambda v: -sign * v)[:3][-1]
    return mean([v for v in values if sign * v >= sign * last])


def _relative(to_set: Callable[[list[float], float], float]) -> Callable[[Case], float]:
    """HAP2S with a distance from a point to a set, 1 for positives and -1 for negatives."""
    return lambda case: mean([hinge(to_set(p, 1.0) - to_set(n, -1.0) + 0.3) for p, n in both(case)])


def _batch_all(case: Case) -> float:
    return mean([t for p, n in both(case) for a in p for b in n if (t := a - b + 0.3) > 0])


def _semi_hard(case: Case) -> Bounds:
    bounds = []
    for slack in (-case.slack, case.slack):
        terms = []
        for near, far in both(case, "squared"):
            for p in near:
                beyond = [n for n in far if n > p + slack]
                terms.append(hinge(p - (min(beyond) if beyond else max(far)) + 0.2))
        bounds.append(terms)
    pairs = list(zip(*bounds, strict=True))
    return mean([min(pair) for pair in pairs]), mean([max(pair) for pair in pairs])


def _random_triplet(case: Case) -> Bounds:
    found = both(case)
    least = mean([hinge(min(p) - max(n) + 0.3) for p, n in found])
    return least, mean([hinge(max(p) - min(n) + 0.3) for p, n in found])


def _margin(case: Case) -> Bounds:
    """Of the mean over active pairs, each positive with any negative that it may draw."""
    pulls, draws = [], []
    directions = case._replace(x=unit(case.x), keys=unit(case.keys))
    for (near, far), label in zip(rows(directions), case.labels, strict=True):
        if far:
            beta = float(case.params["beta"][label])
            pulls += [pull for p in near if (pull := p - beta + 0.2) > 0]
            allowed = [n for n in far if n < 1.4 + case.slack]
            allowed = allowed if any(n < 1.4 - case.slack for n in far) else far
            draws += [[hinge(beta + 0.2 - n) for n in allowed]] * len(near)

    def bound(choose: Callable[[list[float]], float]) -> float:
        low, high = 0.0, 4.0
        for _ in range(40):
            middle = (low + high) / 2
            excess = math.fsum(p - middle for p in pulls)
            excess += math.fsum(choose([d - middle if d > 0 else 0.0 for d in draw]) for draw in draws)
            low, high = (middle, high) if excess > 0 else (low, middle)
        return low

    return bound(min), bound(max)


def _contrastive(case: Case) -> float:
    terms = [mean([v**2 for v in p]) + mean([hinge(1 - v) ** 2 for v in n]) for p, n in rows(case) if p or n]
    return mean(terms) / 2


def _lifted(case: Case) -> float:
    return mean([hinge(log_sum(p) + log_sum([1 - v for v in n])) for p, n in both(case)])


def _multi_similarity(case: Case) -> float:
    terms = []
    for p, n in (row for row in rows(case, "cosine") if any(row)):
        near = [v for v in p if n and v + 0.1 > min(n)]
        far = [v for v in n if p and v - 0.1 < max(p)]
        pull = log_sum([0.0, *(-2 * (0.5 - v) for v in near)]) / 2
        terms.append(pull + log_sum([0.0, *(50 * (0.5 - v) for v in far)]) / 50)
    return mean(terms)


def _circle(case: Case) -> float:
    terms = []
    for p, n in both(case, "cosine"):
        pull = log_sum([-128 * hinge(0.25 + v) * (0.25 - v) for v in p])
        push = log_sum([128 * hinge(1.25 - v) * (0.75 - v) for v in n])
        terms.append(soft(pull + push))
    return mean(terms)


def _supervised(case: Case) -> float:
    terms = [
        log_sum([(1 - v) / 0.1 for v in p + n]) - mean([(1 - v) / 0.1 for v in p])
        for p, n in rows(case, "cosine")
        if p
    ]
    return mean(terms)


def _pairs_against_negatives(kind: str, temperature: float) -> Callable[[Case], float]:
    return lambda case: mean(
        [soft(log_sum([(a - v) / temperature for v in n])) for p, n in both(case, kind) for a in p]
    )


def _smooth_ap(case: Case) -> float:
    terms = []
    for near, far in rows(case, "cosine", with_anchor=True):
        if len(near) > 1:
            precisions = []
            for i, own in enumerate(near):
                before = [sigmoid((own - v) / 0.01) for k, v in enumerate(near) if k != i]
                behind = math.fsum(sigmoid((own - v) / 0.01) for v in far)
                precisions.append((1 + math.fsum(before)) / (1 + math.fsum(before) + behind))
            terms.append(1 - mean(precisions))
    return mean(terms)


def _recall(case: Case) -> float:
    terms = []
    for near, far in (row for row in rows(case, "cosine") if row[0]):
        keys = near + far
        ranks = [0.5 + math.fsum(sigmoid((own - v) / 0.01) for v in keys) for own in near]
        for k in (1, 2, 4, 8, 16):
            found = min(math.fsum(sigmoid(k - rank) for rank in ranks), k)
            terms.append(1 - found / min(k, len(near)))
    return mean(terms)


ORACLES: dict[str, Oracle] = {
    "hap2s_e": Oracle(_relative(_exponential), {"sigma": 0.5}),
    "hap2s_p": Oracle(_relative(_polynomial), {"alpha": 4.0}),
    "hap2s_ranked": Oracle(_relative(_ranked)),
    "hap2s_hardest": Oracle(_relative(_hardest)),
    "batch_hard": Oracle(_relative(lambda values, sign: max(values) if sign > 0 else min(values))),
    "point_to_set_mean": Oracle(_relative(lambda values, sign: mean(values))),
    "batch_all": Oracle(_batch_all),
    "easy_positive": Oracle(
        lambda case: mean([soft(min(p) - min(n)) for p, n in both(case, "cosine")]), power=0
    ),
    "weighted_regularised_triplet": Oracle(
        lambda case: mean(
            [soft(_exponential(p, 1, 1) - _exponential(n, -1, 1)) for p, n in both(case, with_anchor=True)]
        )
    ),
    "semi_hard": Oracle(_semi_hard, power=2),
    "random_triplet": Oracle(_random_triplet),
    "margin": Oracle(_margin, power=0),
    "contrastive": Oracle(_contrastive, power=2),
    "lifted_structure": Oracle(_lifted),
    "multi_similarity": Oracle(_multi_similarity, power=0),
    "circle": Oracle(_circle, power=0, is_slope=False),
    "supervised_contrastive": Oracle(_supervised, power=0),
    "nt_xent": Oracle(_pairs_against_negatives("cosine", 0.1), power=0),
    "n_pair": Oracle(_pairs_against_negatives("dot", 1.0), power=2),
    "smooth_ap": Oracle(_smooth_ap, power=0),
    "recall_at_k_surrogate": Oracle(_recall, power=0),
}
