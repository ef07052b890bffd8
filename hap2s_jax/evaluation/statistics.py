"""Statistics behind a mean: confidence intervals, tables by class or camera, the worst queries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

from hap2s_jax.evaluation.protocols import means

_RESAMPLES_AT_ONCE = 64


def confidence_intervals(
    values: Mapping[str, np.ndarray],
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap over queries (Efron, 1979) of each figure's mean.

    Args:
      values: figures by name, each `[q]`, NaN where a query does not count (`protocols.class_values`, ...).
      groups: `[q]` integers, or None. Queries of one class rise and fall together; with the class as group
        whole classes are drawn instead of single queries, and the interval is wider and more honest.
      level: share of resampled means within the interval.
      resamples: number of resampled means.
      seed: of the resampling.

    Returns:
      (low, high) by name; NaN where no query counts.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, but is {level}.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, but is {resamples}.")
    table = np.stack(list(values.values()), axis=1).astype(np.float64)
    known = ~np.isnan(table)
    sums, sizes = np.where(known, table, 0), known.astype(np.float64)
    if groups is not None:
        number = np.unique(np.asarray(groups), return_inverse=True)[1]
        if number.shape != (len(table),):
            raise ValueError(f"groups must have one entry for each of the {len(table)} queries.")
        sums, sizes = (_sum_by(number, part) for part in (sums, sizes))
    units = len(sums)
    random = np.random.default_rng(seed)
    drawn = []
    for begin in range(0, resamples, _RESAMPLES_AT_ONCE):
        times = random.multinomial(
            units, np.full(units, 1 / units), min(_RESAMPLES_AT_ONCE, resamples - begin)
        )
        size = times @ sizes
        drawn.append(np.where(size > 0, times @ sums / np.maximum(size, 1), np.nan))
    # A resample without any query that counts has no value.
    resampled = np.concatenate(drawn)
    tail = 100 * (1 - level) / 2
    out = {}
    for name, column in zip(values, resampled.T, strict=True):
        kept = column[~np.isnan(column)]
        low, high = np.percentile(kept, [tail, 100 - tail]) if kept.size else (np.nan, np.nan)
        out[name] = (float(low), float(high))
    return out


def by_group(values: Mapping[str, np.ndarray], groups: ArrayLike) -> dict[int, dict[str, float]]:
    """Figures of each class or camera: `{group: {"queries": n, name: mean, ...}}`, groups in sorted order.

    Args:
      values: figures by name, each `[q]`, NaN where a query does not count.
      groups: `[q]` integers, for example `labels[results.query]`.
    """
    number = np.asarray(groups)
    table = {}
    for group in np.unique(number):
        rows = number == group
        table[int(group)] = {"queries": float(rows.sum())} | means({k: v[rows] for k, v in values.items()})
    return table


def worst(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` lowest values of a figure `[q]`, lowest first; without queries that do not count."""
    order = np.argsort(values, kind="stable")
    return order[: min(count, int(np.sum(~np.isnan(values))))]


def _sum_by(number: np.ndarray, table: np.ndarray) -> np.ndarray:
    out = np.zeros((number.max() + 1, table.shape[1]))
    np.add.at(out, number, table)
    return out
