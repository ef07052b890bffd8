"""Settles what a config leaves open before a run begins: from an existing run, the data, or the number of steps."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from hap2s_jax.data import advice, registry
from hap2s_jax.run import config as configs
from hap2s_jax.run.config import Config
from hap2s_jax.training.checkpoint import FOLDER


def settle(config: Config, workdir: pathlib.Path | None = None) -> list[str]:
    """Fills in, in place, keys that are None, and corrects keys that do not fit the number of steps.

    If `workdir` holds a run, its values are used; keys added since that run was written are filled in with the
    behaviour it had at the time. Otherwise the training data decide.

    Args:
      config: unlocked.
      workdir: of the run, or None without data and run (to rehearse): what large data would get.

    Returns:
      Lines that say what was chosen.

    Raises:
      UserError: the data are needed, and missing or malformed.
    """
    notes = [] if workdir is None else _as_begun(config, workdir)
    open_keys = [key for key in _CHOICES if _get(config, key) is None]
    if open_keys:
        sizes = _Sizes(math.inf, math.inf, math.inf) if workdir is None else _count(config)
        for key in open_keys:
            if _get(config, key) is None:
                _set(config, key, _CHOICES[key](config, sizes))
        chosen = ", ".join(f"{key}={_get(config, key)}" for key in open_keys)
        notes.append(f"chosen for these data: {chosen}; --config.KEY=VALUE chooses otherwise")
        notes += _about_validation(config, sizes, open_keys)
    return notes + _clamp(config)


class _Sizes(NamedTuple):
    """Classes and images to train on, validation classes, and whether the data name those themselves."""

    classes: float
    images: float
    held_out: float
    named: bool = False


_CHOICES: dict[str, Callable[[Config, _Sizes], Any]] = {
    "data.validation_fraction": lambda config, sizes: advice.VALIDATION,
    "batch.classes": lambda config, sizes: advice.batch_classes(sizes.classes),
    "steps": lambda config, sizes: advice.steps(
        sizes.images, config.batch.classes * config.batch.images_per_class
    ),
    "schedule.warmup_steps": lambda config, sizes: advice.warmup_steps(config.steps),
    "evaluate.every_steps": lambda config, sizes: advice.interval(config.steps),
    "checkpoint.every_steps": lambda config, sizes: advice.interval(config.steps),
    "evaluate.weights": lambda config, sizes: advice.weights(sizes.held_out),
}


def _about_validation(config: Config, sizes: _Sizes, chosen: Sequence[str]) -> Iterator[str]:
    """Notes on the validation classes: their cost, and whether they are enough to choose a checkpoint by."""
    if sizes.named:
        if "data.validation_fraction" not in chosen:
            yield "data.validation_fraction has no effect: the data name their own validation images"
    elif sizes.held_out and math.isfinite(sizes.held_out) and "data.validation_fraction" in chosen:
        yield (
            f"{sizes.held_out:,} of {sizes.classes + sizes.held_out:,} training classes are set aside for validation "
            "and not trained on; --config.data.validation_fraction=0 trains on all"
        )
    if "evaluate.weights" in chosen and config.evaluate.weights == "last":
        yield (
            f"the last checkpoint is reported, not the best: {sizes.held_out:,} validation classes are too few to "
            f"choose by, {advice.CHOICE} would do"
        )


def _count(config: Config) -> _Sizes:
    """Counts the data, after settling the share of the validation classes."""
    from hap2s_jax.data.splits import split_by_class
    from hap2s_jax.run.evaluator import load_dataset

    fraction, config.data.validation_fraction = config.data.validation_fraction, 0.0
    dataset = load_dataset(config)
    train, validation = dataset.train, dataset.validation
    named = validation is not None
    if not named:
        if fraction is None:
            fraction = advice.validation_fraction(registry.num_classes(train))
        train, validation = split_by_class(train, fraction, config.seed)
    config.data.validation_fraction = advice.VALIDATION if fraction is None else fraction
    held_out = 0 if validation is None else registry.num_classes(validation)
    return _Sizes(registry.num_classes(train), len(train), held_out, named)


def _as_begun(config: Config, workdir: pathlib.Path) -> list[str]:
    """For keys that are open here, or newer than the run, takes the values of the run that was begun."""
    if not any((workdir / FOLDER).glob("[0-9]*")):
        return []
    then: Any = configs.load(workdir)
    written = configs.flatten(json.loads((workdir / configs.FILE_NAME).read_text()))
    known, notes = configs.flatten(config), []
    for key, value in configs.flatten(then).items():
        if key in known and known[key] is None and key in _CHOICES:
            _set(config, key, value)
        elif key in known and key not in written and known[key] != value:
            _set(config, key, value)
            notes.append(f"note: this run began before {key} existed, and continues with {key}={value}")
    return notes


def _clamp(config: Config) -> list[str]:
    """Shortens periods that are longer than the run."""
    total = config.steps
    if not isinstance(total, int) or total < 1:
        return []
    shorter = {}
    if config.schedule.warmup_steps > total:
        shorter["schedule.warmup_steps"] = total // 10
    for key in ("evaluate.every_steps", "checkpoint.every_steps"):
        if _get(config, key) > total:
            shorter[key] = total
    if not shorter:
        return []
    changes = ", ".join(f"{key} from {_get(config, key)} to {value}" for key, value in shorter.items())
    for key, value in shorter.items():
        _set(config, key, value)
    return [f"note: with {total} steps, {changes}"]


def _get(config: Config, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


def _set(config: Config, key: str, value: Any) -> None:
    *folders, name = key.split(".")
    for folder in folders:
        config = config[folder]
    config[name] = value
