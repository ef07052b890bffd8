"""The losses of whole classes and of classes' learnt points, as loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from drills.loss_oracles import Case, Oracle, gaps, hinge, log_sum, mean, rows, soft, unit


def _msml(case: Case) -> float:
    found = rows(case)
    near, far = [v for p, _ in found for v in p], [v for _, n in found for v in n]
    return hinge(max(near) - min(far) + 0.3) if near and far else 0.0


def _quadruplet(case: Case) -> float:
    apart, labels, terms = gaps(case, "euclidean"), case.labels, []
    for (p, n), label in zip(rows(case), labels, strict=True):
        if p and n:
            others = [k for k in range(len(labels)) if labels[k] != label]
            between = [apart[i, j] for i in others for j in others if labels[i] != labels[j]]
            second = hinge(max(p) - min(between) + 0.15) if between else 0.0
            terms.append(hinge(max(p) - min(n) + 0.3) + second)
    return mean(terms)


def _centroid_triplet(case: Case) -> float:
    terms = []
    for a, label in enumerate(case.labels):
        own = [k for k in range(len(case.x)) if case.labels[k] == label and k != a]
        others = [case.x[case.labels == c].mean(0) for c in set(case.labels.tolist()) - {int(label)}]
        if own and others:
            near, far = (
                [((case.x[a] - c) ** 2).sum() for c in centres] for centres in ([case.x[own].mean(0)], others)
            )
            terms.append(hinge(near[0] - min(far) + 0.5))
    return mean(terms)


def _adasp(case: Case) -> float:
    similar, terms, t = 1 - gaps(case, "cosine"), [], 0.04
    for c in sorted(set(case.labels.tolist())):
        own, others = np.flatnonzero(case.labels == c), np.flatnonzero(case.labels != c)
        if len(own) > 1 and len(others):
            negative = t * log_sum([similar[i, n] / t for i in own for n in others])
            hard = -t * log_sum([-similar[i, j] / t for i in own for j in own])
            least = t * log_sum([-log_sum([-similar[i, j] / t for j in own]) for i in own])
            share = 2 * hard * least / (hard + least) if hard > 0 else 0.0
            terms.append(soft((negative - share * hard - (1 - share) * least) / t))
    return mean(terms)


def _samples(logits: Callable[[Case], np.ndarray], smoothing: float = 0.0) -> Callable[[Case], float]:
    """Cross-entropy of logits `[n, c]`."""

    def value(case: Case) -> float:
        terms = []
        for row, label in zip(logits(case), case.labels, strict=True):
            own = (1 - smoothing) * row[label] + smoothing * mean(row.tolist())
            terms.append(log_sum(row.tolist()) - own)
        return mean(terms)

    return value


def _linear(case: Case) -> np.ndarray:
    return case.x @ case.params["kernel"] + case.params["bias"]


def _centres(case: Case) -> np.ndarray:
    """Those of each class at length 1, `[d, k, c]`."""
    kernel = case.params["kernel"]
    kernel = kernel[:, None] if kernel.ndim == 2 else kernel
    return kernel / np.sqrt((kernel**2).sum(0))


def _cosines(case: Case) -> np.ndarray:
    """Those with each centre of each class `[n, k, c]`."""
    return np.einsum("nd,dkc->nkc", unit(case.x), _centres(case))


def _arcface(case: Case) -> np.ndarray:
    logits = _cosines(case).max(1)
    for row, label in zip(logits, case.labels, strict=True):
        angle = math.acos(max(-1.0, min(1.0, row[label])))
        beyond = row[label] - 0.5 * math.sin(0.5)
        row[label] = math.cos(angle + 0.5) if angle + 0.5 < math.pi else beyond
    return 64 * logits


def _cosface(case: Case) -> np.ndarray:
    logits = _cosines(case)[:, 0]
    logits[np.arange(len(logits)), case.labels] -= 0.35
    return 64 * logits


def _soft_triple(case: Case) -> float:
    if not len(case.x):
        return 0.0
    cosines, centres = _cosines(case), _centres(case)
    weights = np.exp(cosines / 0.1) / np.exp(cosines / 0.1).sum(1, keepdims=True)
    similar = (weights * cosines).sum(1)
    similar[np.arange(len(similar)), case.labels] -= 0.01
    count, classes = centres.shape[1:]
    apart = [
        math.sqrt(((centres[:, i, c] - centres[:, j, c]) ** 2).sum())
        for c in range(classes)
        for i in range(count)
        for j in range(i)
    ]
    return _samples(lambda _: 20 * similar)(case) + 0.2 * mean(apart) / 2


def _proxy_nca(case: Case) -> float:
    terms, proxies = [], 3 * unit(case.params["proxies"])
    for a, label in zip(3 * unit(case.x), case.labels, strict=True):
        apart = ((a - proxies) ** 2).sum(1)
        terms.append(apart[label] + log_sum((-np.delete(apart, label)).tolist()))
    return mean(terms)


def _proxy_anchor(case: Case) -> float:
    if not len(case.x):
        return 0.0
    similar, pulls, pushes = unit(case.x) @ unit(case.params["proxies"]).T, [], []
    for c in range(similar.shape[1]):
        own = case.labels == c
        if own.any():
            pulls.append(log_sum([0.0, *(-32 * (similar[own, c] - 0.1))]))
        pushes.append(log_sum([0.0, *(32 * (similar[~own, c] + 0.1))]))
    return mean(pulls) + mean(pushes)


def _centre(case: Case) -> float:
    return mean((((case.x - case.params["centres"][case.labels]) ** 2).sum(1) / 2).tolist())


ORACLES: dict[str, Oracle] = {
    "msml": Oracle(_msml),
    "quadruplet": Oracle(_quadruplet),
    "centroid_triplet": Oracle(_centroid_triplet, power=2),
    "adasp": Oracle(_adasp, power=0, is_slope=False),
    "softmax": Oracle(_samples(_linear, 0.1)),
    "arcface": Oracle(_samples(_arcface), power=0),
    "subcenter_arcface": Oracle(_samples(_arcface), power=0),
    "cosface": Oracle(_samples(_cosface), power=0),
    "soft_triple": Oracle(_soft_triple, {"centres": 3}, power=0),
    "proxy_nca": Oracle(_proxy_nca, power=0),
    "proxy_anchor": Oracle(_proxy_anchor, power=0),
    "centre": Oracle(_centre, power=2),
}
