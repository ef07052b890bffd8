"""The rows of a table, how much one is better than another, and what of that is established.

Seeds and families of look-alike test classes are both draws: the bootstrap resamples the two together, the same ones
for both rows. With few seeds its intervals are still somewhat narrow: no resampling makes up for seeds that never ran.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from study.cells import FIRST_METRICS, Setting, Study

RESAMPLES = 10_000
LEVEL = 0.05
BASELINE = "batch_hard"


@dataclasses.dataclass
class Row:
    """A line of a study's table: one setting on one data set over its seeds.

    Attributes:
      label: its name.
      setting: what was trained; None where its search has not finished.
      outcomes: seed -> the cell's outcome; seeds that failed or have not run are missing.
      wanted: the seeds asked for.
      families: of the test classes, in the order of the labels; None, or those of other
        classes, take every class for a family of its own.
    """

    label: str
    setting: Setting | None
    outcomes: dict[int, dict[str, Any]]
    wanted: tuple[int, ...]
    families: Sequence[str] | None = None
    _samples: dict[tuple[str, int], np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def diverged(self) -> list[int]:
        """Seeds whose training diverged."""
        return [seed for seed, outcome in self.outcomes.items() if "diverged" in outcome]

    def values(self, metric: str) -> list[float]:
        """A metric of every seed, none at all where one diverged: it must not be averaged away."""
        if self.diverged:
            return []
        return [o["metrics"][metric] for o in self.outcomes.values() if metric in o["metrics"]]

    def sample(self, metric: str, seed: int) -> np.ndarray:
        """The metric of a seed as it is, and then over resampled families: ``[1 + RESAMPLES]``."""
        if (metric, seed) not in self._samples:
            values = self.outcomes[seed]["by_class"][metric]
            classes = len(values["sums"])
            names = self.families if self.families and len(self.families) == classes else range(classes)
            which = np.unique(np.asarray(names), return_inverse=True)[1]
            draws = _family_draws(int(which.max()) + 1)
            sums, counts = (draws @ np.bincount(which, values[kind]) for kind in ("sums", "counts"))
            self._samples[metric, seed] = sums / counts
        return self._samples[metric, seed]


def collect(study: Study, label: str, setting: Setting | None, seeds: Sequence[int], **where: Any) -> Row:
    """Runs a setting's cells and makes a row of them."""
    found = {} if setting is None else {seed: study.run(setting, seed, **where) for seed in seeds}
    outcomes = {seed: outcome for seed, outcome in found.items() if outcome is not None}
    families = study.kept.families(where.get("dataset") or study.options.dataset)
    return Row(label, setting, outcomes, tuple(seeds), families)


def first_metric(rows: Iterable[Row]) -> str:
    """The metric of comparison, by which settings were chosen too: "mAP", or "map@r" where there is none."""
    rows = list(rows)
    return next((m for m in FIRST_METRICS if any(row.values(m) for row in rows)), FIRST_METRICS[0])


@dataclasses.dataclass
class Difference:
    """How much one row is better than another.

    Attributes:
      mean: over the seeds that both have.
      low: of the 95 % interval of a bootstrap over families and seeds.
      high: its other end.
      by_seed: the differences whose mean it is.
      p: two-sided, from the same bootstrap, by a normal distribution of its spread where no resample has another
        sign; `correct` raises it for the comparisons that stand beside it.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    p: float

    @property
    def established(self) -> bool:
        """Whether it is unlikely that there is no difference."""
        return self.p < LEVEL

    def __str__(self) -> str:
        mark = "" if self.established else " n.s."
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], n = {len(self.by_seed)}{mark}"


def difference(row: Row, other: Row, metric: str) -> Difference | None:
    """How much `row` is better than `other`; None without common seeds."""
    seeds = [s for s in row.outcomes if s in other.outcomes]
    if not seeds or row.diverged or other.diverged:
        return None
    if any(metric not in r.outcomes[s].get("by_class", {}) for s in seeds for r in (row, other)):
        return None
    gains = np.stack([row.sample(metric, s) - other.sample(metric, s) for s in seeds])
    drawn = _over_seeds(gains)
    low, high = np.percentile(drawn, [2.5, 97.5])
    beyond = int(min(np.sum(drawn <= 0), np.sum(drawn >= 0)))
    p = min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))
    if not beyond and (spread := float(drawn.std())):
        # Hundreds of comparisons stand beside each other, so p must fall below what the resamples can show.
        p = min(p, math.erfc(abs(float(drawn.mean())) / spread / math.sqrt(2)))
    by_seed = gains[:, 0]
    return Difference(float(by_seed.mean()), float(low), float(high), tuple(by_seed.tolist()), p)


def interval(row: Row, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a row's mean, from the same bootstrap; None where figures by class are missing."""
    if row.diverged or not all(metric in o.get("by_class", {}) for o in row.outcomes.values()):
        return None
    drawn = _over_seeds(np.stack([row.sample(metric, seed) for seed in row.outcomes]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _over_seeds(samples: np.ndarray) -> np.ndarray:
    """The mean over resampled seeds of ``[seeds, 1 + RESAMPLES]`` figures over resampled families."""
    return np.einsum("rs,sr->r", _draws(len(samples)) / len(samples), samples[:, 1:])


def correct(differences: Iterable[Difference | None]) -> None:
    """Raises the p of comparisons that are made together, by Holm's step-down correction (1979)."""
    ordered = sorted((d for d in differences if d is not None), key=lambda d: d.p)
    reached = 0.0
    for place, found in enumerate(ordered):
        reached = found.p = max(reached, min(1.0, (len(ordered) - place) * found.p))


@functools.cache
def _draws(count: int) -> np.ndarray:
    random = np.random.default_rng(count)
    return random.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


@functools.cache
def _family_draws(count: int) -> np.ndarray:
    return np.concatenate([np.ones((1, count)), _draws(count)])
