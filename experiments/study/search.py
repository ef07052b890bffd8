"""Searches for a loss's setting, on held-out training classes: a short one, and one in stages.

Every value is tried at the best of what was found before. Where the best value of a grid is its first or last, the
search goes on beyond it, at most twice, for learning rates and for a loss's own parameters alike.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hap2s_jax import losses
from study.cells import Study, primary
from study.settings import Setting

RATES = (0.25, 0.5, 1.0, 2.0)  # factors of the config's learning rate
BEYOND = 2
FINALISTS = 2
SEEDS = (0, 1)  # of the search in stages


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values of one of a loss's own parameters to try.

    Attributes:
      name: a hyperparameter, a field of `Setting` ("rate", "identification"), or a dotted config key.
      values: beside the setting's own.
      below: what no value may reach; grids go on by the ratio of the last two values, but not as far as this.
    """

    name: str
    values: tuple[float, ...]
    below: float = math.inf

    def of(self, setting: Setting) -> float:
        """The value that a setting has."""
        if self.name in ("rate", "identification"):
            return getattr(setting, self.name)
        if "." in self.name:
            return setting.overrides.get(self.name, 1.0)
        return setting.hyperparameters.get(self.name, losses.hyperparameters(setting.loss).get(self.name))

    def put(self, setting: Setting, value: float) -> Setting:
        """The setting with this value."""
        if value == self.of(setting):
            return setting
        if self.name in ("rate", "identification"):
            return dataclasses.replace(setting, **{self.name: value})
        return setting.changed({self.name: value})

    def beyond(self, edge: float, next_to_it: float) -> float | None:
        """The value to try beyond the first or the last one, or None where there is none."""
        value = edge * edge / next_to_it
        value = round(value) if isinstance(edge, int) else float(f"{value:.3g}")
        return value if 0 < value < self.below and value != edge else None


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the trials of a search are.

    Attributes:
      seeds: a setting is judged by the mean over them.
      dataset: config that is trained on; None for the options'.
      overrides: further config keys of all trials.
    """

    seeds: Sequence[int] = SEEDS
    dataset: str | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def scores(self, study: Study, settings: Iterable[Setting]) -> list[float] | None:
        """The mean figure of each setting, or None where a cell has not finished; runs those that it can."""
        found = []
        for setting in settings:
            setting = setting.but(overrides=self.overrides)
            outcomes = [study.run(setting, s, dataset=self.dataset, part="search") for s in self.seeds]
            found.append(None if None in outcomes else statistics.fmean(primary(o) for o in outcomes if o))
        return None if None in found else [score for score in found if score is not None]


Tried = list[tuple[float, Setting]]


def along(study: Study, base: Setting, axis: Axis, budget: Budget, *, beyond: int = BEYOND) -> Tried | None:
    """What was tried along an axis, with its score; None while cells are missing."""
    values = sorted({*axis.values, axis.of(base)})
    settings, scores = [], []
    for left in range(beyond, -1, -1):
        settings = [axis.put(base, value) for value in values]
        scores = budget.scores(study, settings)
        if scores is None:
            return None
        best = scores.index(max(scores))
        outer, inner = (values[0], values[1:2]) if best == 0 else (values[-1], values[-2:-1])
        further = axis.beyond(outer, inner[0]) if inner and left and best in (0, len(values) - 1) else None
        if further is None:
            break
        values = sorted([*values, further])
    return list(zip(scores, settings, strict=True))


def best_of(tried: Tried) -> Setting:
    """The first of those with the highest score."""
    return max(tried, key=lambda entry: entry[0])[1]


def search(study: Study, base: Setting, alternatives: Iterable[Mapping[str, Any]]) -> Setting | None:
    """The short search: the best of the learning rates, then of some hyperparameters at that rate, with seed 0.

    Args:
      study: runs the cells.
      base: the loss with its defaults.
      alternatives: hyperparameters, and config keys, to try in turn; every loss has equally many.

    Returns:
      The setting, or None where a cell failed or another process is at it.
    """
    budget, tiny = Budget(seeds=(0,)), study.options.tiny
    rates = along(study, base, _rates(base, tiny), budget, beyond=0 if tiny else BEYOND)
    if rates is None:
        return None
    best = best_of(rates)
    tried = [best, *(best.changed(changes) for changes in list(alternatives)[: 1 if tiny else None])]
    scores = budget.scores(study, tried)
    return None if scores is None else best_of(list(zip(scores, tried, strict=True)))


def staged(
    study: Study,
    base: Setting,
    axes: Sequence[Axis],
    budget: Budget,
    *,
    others: Sequence[Mapping[str, Any]] = (),
    longer: Mapping[str, Any] | None = None,
    rates: Sequence[float] = RATES,
) -> Setting | None:
    """The search in stages: the rate, each own parameter in turn, then the best settings of all once more.

    Args:
      study: runs the cells.
      base: the loss as the search begins with it.
      axes: its own parameters.
      budget: of the trials.
      others: hyperparameters, and config keys, to try at the best of these.
      longer: config keys of the last stage, such as more steps; without it the best of the trials is chosen.
      rates: factors of the setting's learning rate to try.

    Returns:
      The setting, `longer` included, or None while cells are missing.
    """
    tiny = study.options.tiny
    tried: dict[str, tuple[float, Setting]] = {}
    best = base
    for axis in (_rates(base, tiny, rates), *axes[: 1 if tiny else None]):
        if tiny:
            axis = dataclasses.replace(axis, values=axis.values[:1])
        found = along(study, best, axis, budget, beyond=0 if tiny else BEYOND)
        if found is None:
            return None
        tried |= {repr(setting): (score, setting) for score, setting in found}
        best = best_of(found)
    for changes in others:
        setting = best.changed(changes)
        if (scores := budget.scores(study, [setting])) is None:
            return None
        tried[repr(setting)] = scores[0], setting
    if longer is None:
        return best_of([*tried.values()])
    ranked = sorted(tried.values(), key=lambda entry: -entry[0])[: 1 if tiny else FINALISTS]
    finalists = [setting.but(overrides=longer) for _, setting in ranked]
    scores = budget.scores(study, finalists)
    return None if scores is None else best_of(list(zip(scores, finalists, strict=True)))


def _rates(base: Setting, tiny: bool, factors: Sequence[float] = RATES) -> Axis:
    return Axis("rate", tuple(base.rate * factor for factor in ((1.0,) if tiny else factors)))
