"""Losses as float64 loops over anchors and pairs: slow, obvious, and without a Gram matrix or a softmax."""

from __future__ import annotations

import math

import numpy as np


def distance(a, b, kind="euclidean"):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if kind == "cosine":
        return 1 - math.fsum(a * b) / (math.sqrt(math.fsum(a * a)) * math.sqrt(math.fsum(b * b)))
    if kind == "negative_dot":
        return -math.fsum(a * b)
    squared = math.fsum((a - b) ** 2)
    return squared if kind == "squared_euclidean" else math.sqrt(squared)


def weigh(form, parameter, value, hardest_value, sign):
    """Weight of a set member relative to that of the hardest member, in the paper's own form."""
    if form == "exponential":
        return math.exp(sign * (value - hardest_value) / parameter)
    power = parameter if sign > 0 else -2 * parameter
    return ((1 + value) / (1 + hardest_value)) ** power


def set_distance(values, form, parameter, sign):
    if form == "hardest":
        return max(values) if sign > 0 else min(values)
    if form == "uniform":
        return sum(values) / len(values)
    if form in ("ranked", "first"):
        ordered = sorted(values, reverse=sign > 0)
        weights = [parameter**i if form == "ranked" else float(i < parameter) for i in range(len(ordered))]
        return sum(w * v for w, v in zip(weights, ordered, strict=True)) / sum(weights)
    hardest_value = max(values) if sign > 0 else min(values)
    weights = [weigh(form, parameter, v, hardest_value, sign) for v in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def hap2s(
    x, labels, *, form="exponential", parameter=0.5, margin=0.3, soft=False, kind="euclidean", ignore=-1
):
    """Mean over anchors with a positive and a negative, and the list of (anchor, loss)."""
    x = np.asarray(x, np.float64)
    kept = [i for i in range(len(labels)) if labels[i] != ignore]
    losses = []
    for a in kept:
        positives = [distance(x[a], x[k], kind) for k in kept if k != a and labels[k] == labels[a]]
        negatives = [distance(x[a], x[k], kind) for k in kept if labels[k] != labels[a]]
        if positives and negatives:
            near = set_distance(positives, form, parameter, 1)
            far = set_distance(negatives, form, parameter, -1)
            excess = near - far + margin
            if soft:
                loss = max(excess, 0) + math.log1p(math.exp(-abs(excess)))
            else:
                loss = max(excess, 0.0)
            losses.append((a, loss))
    return (sum(v for _, v in losses) / len(losses) if losses else 0.0), losses


def difference_gradient(function, x, step):
    """Central differences of a float64 function of `x` [n, d]."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient
