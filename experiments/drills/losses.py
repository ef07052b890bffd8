"""Losses of random batches, in every way they can be computed, against loops in float64.

Shapes come from a few, since each costs a compilation; labels, lengths, duplicates and rows that are ignored are drawn.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from drill import Trial, WrongError

SHAPES = ((12, 4), (17, 6))
# Relative to the lengths of the embeddings. bfloat16 has 8 bits, and what it holds is what the oracle gets.
TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-4, "float16": 2e-4}

Rows = list[tuple[list[float], list[float]]]
Oracle = Callable[[np.ndarray, np.ndarray], float]


def rows(x: np.ndarray, labels: np.ndarray, *, squared: bool = False) -> Rows:
    """Of each anchor with both: its distances to its positives, and to its negatives."""
    found = []
    kept = [i for i in range(len(labels)) if labels[i] != -1]
    for a in kept:
        far = {k: math.fsum((x[a] - x[k]) ** 2) for k in kept if k != a}
        far = {k: v if squared else math.sqrt(v) for k, v in far.items()}
        near = [v for k, v in far.items() if labels[k] == labels[a]]
        others = [v for k, v in far.items() if labels[k] != labels[a]]
        if near and others:
            found.append((near, others))
    return found


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _hinge(value: float) -> float:
    return max(value, 0.0)


def _weighted(values: list[float], sign: float, sigma: float) -> float:
    hardest = max(sign * v for v in values)
    weights = [math.exp((sign * v - hardest) / sigma) for v in values]
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


def _power(values: list[float], exponent: float) -> float:
    logs = [exponent * math.log1p(v) for v in values]
    weights = [math.exp(log - max(logs)) for log in logs]
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


def _batch_all(x: np.ndarray, labels: np.ndarray) -> float:
    found = rows(x, labels)
    terms = [p - n + 0.3 for near, others in found for p in near for n in others]
    active = [t for t in terms if t > 0]
    return _mean(active)


# Settings, and the loss as loops. Every form of weighting, mining and reduction is among them.
ORACLES: dict[str, tuple[dict[str, object], Oracle]] = {
    "hap2s_e": (
        {"sigma": 0.5, "margin": 0.3, "soft_margin": False},
        lambda x, y: _mean(
            [_hinge(_weighted(p, 1, 0.5) - _weighted(n, -1, 0.5) + 0.3) for p, n in rows(x, y)]
        ),
    ),
    "hap2s_p": (
        {"alpha": 4.0, "margin": 0.3, "soft_margin": False},
        lambda x, y: _mean([_hinge(_power(p, 4.0) - _power(n, -8.0) + 0.3) for p, n in rows(x, y)]),
    ),
    "batch_hard": (
        {"margin": 0.3, "soft_margin": False},
        lambda x, y: _mean([_hinge(max(p) - min(n) + 0.3) for p, n in rows(x, y)]),
    ),
    "point_to_set_mean": (
        {"margin": 0.3, "soft_margin": False},
        lambda x, y: _mean([_hinge(_mean(p) - _mean(n) + 0.3) for p, n in rows(x, y)]),
    ),
    "batch_all": ({"margin": 0.3}, _batch_all),
}


def batch(shape: tuple[int, int], random: np.random.Generator, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of a dtype, exactly as that dtype holds them, and labels of which some may be -1."""
    import ml_dtypes

    n = shape[0]
    labels = random.integers(0, int(random.integers(1, n)), n).astype(np.int32)
    x = random.normal(size=shape) * 10.0 ** random.uniform(-2, 2) + random.normal() * float(
        random.integers(0, 2)
    )
    for _ in range(int(random.integers(0, 3))):
        x[random.integers(0, n)] = x[random.integers(0, n)]
    if random.integers(0, 3) == 0:
        ignored = random.random(n) < 0.2
        labels[ignored] = -1
        x[ignored] = np.nan if random.integers(0, 2) else 0.0
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return x.astype(kind), labels


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Without end: every loss that has an oracle here in whole and in tiles; of all others that value and gradient are
    finite, and alike in both.
    """
    import jax

    from hap2s_jax import losses

    del folder
    compiled = {}

    def value(name: str, path: str, x: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        if (name, path, x.shape) not in compiled:
            loss = losses.create(name, **(ORACLES[name][0] if name in ORACLES else {}))
            fixed: dict[str, Any] = {"key": jax.random.key(2)} if loss.draws else {}
            fixed |= {} if path == "whole" else {"block_size": 5}
            learnt = loss.init_params(jax.random.key(1), 32, x.shape[1])

            def both(x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
                return jax.value_and_grad(lambda x: loss(x, labels, params=learnt, **fixed))(x)

            compiled[name, path, x.shape] = jax.jit(both)
        found, gradient = compiled[name, path, x.shape](x, labels)
        return float(found), np.asarray(gradient, np.float64)

    def check(name: str, x: np.ndarray, labels: np.ndarray) -> None:
        whole, gradient = value(name, "whole", x, labels)
        exact, kept = np.asarray(x, np.float64), labels >= 0
        scale = max(float(np.abs(exact[kept]).max(initial=0.0)), 1.0)
        if not np.isfinite(whole) or not np.isfinite(gradient).all():
            raise WrongError(f"{name}: {whole}, gradient finite: {bool(np.isfinite(gradient).all())}")
        if np.abs(gradient[~kept]).max(initial=0.0) > 0:
            raise WrongError(f"{name}: what is ignored has a gradient")
        if name in ORACLES:
            expected = ORACLES[name][1](exact, labels)
            if abs(whole - expected) > TOLERANCE[str(x.dtype)] * max(scale, abs(expected)):
                raise WrongError(f"{name}: {whole}, by loops {expected}, of lengths up to {scale}")
        if losses.create(name).has_blocks and not losses.create(name).draws:
            tiled, _ = value(name, "tiles", x, labels)
            if abs(whole - tiled) > 1e-3 * max(scale, abs(whole)):
                raise WrongError(f"{name}: {whole} as a whole, {tiled} in tiles")

    names = [*ORACLES, *(name for name in losses.names() if name not in ORACLES)]
    number = 0
    while True:
        for name in names:
            for dtype in TOLERANCE:
                number += 1
                random = np.random.default_rng((seed, number))
                x, labels = batch(SHAPES[number % len(SHAPES)], random, dtype)
                yield Trial(name, lambda a=(name, x, labels): check(*a), seconds=120.0)
