"""A cell's setting, and the config that it resolves to."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from hap2s_jax.errors import UserError, unknown_name
from hap2s_jax.recipes import common
from hap2s_jax.run.config import Config, flatten

# The CPU-sized study's own values, by data set, of what tuning configs/emoji.py is likely to change, so that finished
# cells stay; other configs run as they are.
_SMALL = {
    "steps": 600,
    "schedule.warmup_steps": 50,
    "optimizer.learning_rate": 0.016,
    "optimizer.weight_decay": 0.2,
    "encoder.embedding_dim": 256,
    "evaluate.zooms": False,
}
SIZES: dict[str, dict[str, Any]] = {"emoji": _SMALL, "glyphs": _SMALL}
TINY = {
    "steps": 3,
    "schedule.warmup_steps": 1,
    "encoder.width": 4,
    "batch.classes": 4,
    "batch.images_per_class": 4,
}
TINY |= {"num_devices": 1, "data.image_size": (32, 32), "encoder.stem": "small32", "pretrained.source": ""}
# What a study chooses for every cell, so that --set cannot.
_CHOSEN = ("loss", "auxiliary", "seed")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting: a loss, and all other differences to the data set's config.

    Attributes:
      label: its name in tables.
      loss: name in `hap2s_jax.losses`.
      hyperparameters: of the loss, those that differ from its defaults.
      identification: weight of an identification loss beside it, 0 for none.
      rate: factor of the config's learning rate.
      overrides: further config keys, dotted, and their values.
    """

    label: str
    loss: str
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    identification: float = 0.0
    rate: float = 1.0
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def but(self, **changes: Any) -> Setting:
        """The same with other fields, hyperparameters and overrides added to its own."""
        for name in ("hyperparameters", "overrides"):
            changes[name] = {**getattr(self, name), **changes.get(name, {})}
        return dataclasses.replace(self, **changes)

    def changed(self, changes: Mapping[str, Any]) -> Setting:
        """The same with other hyperparameters and, by their dotted names, other config keys."""
        keys = {name: value for name, value in changes.items() if "." in name}
        own = {name: value for name, value in changes.items() if name not in keys}
        return self.but(hyperparameters=own, overrides=keys)

    def describe(self) -> str:
        """Its hyperparameters and rate in one line."""
        parts = [f"{name} {value}" for name, value in self.hyperparameters.items()]
        factor = self.overrides.get("optimizer.loss_factor", 1.0)
        parts += [f"class weights' rate x {factor:g}"] if factor != 1.0 else []
        return ", ".join([*parts, f"rate x {self.rate:g}"])


def resolve(options: argparse.Namespace, setting: Setting, seed: int, dataset: str) -> Config:
    """The config of a cell, locked.

    Args:
      options: `set` and `tiny` of the study's command line.
      setting: what to train.
      seed: of the weights and the batches.
      dataset: a config's name, with its argument after a colon.

    Raises:
      UserError: there is no such config, or `set` names no key of it, a value of another type, or what a study
        chooses itself.
    """
    name, _, argument = dataset.partition(":")
    try:
        module = importlib.import_module(f"configs.{name}")
    except ModuleNotFoundError as e:
        raise UserError(f"--dataset {name!r}: there is no configs/{name}.py") from e
    config = module.get_config(argument or None)
    config.auxiliary = {"name": "", "weight": 1.0}
    # All training classes are for training: the search has a split of its own.
    config.data.validation_fraction = 0.0
    # Margins, scales and temperatures are tried in the units of embeddings of length 1.
    config.encoder.normalize = True
    common.set_loss(config, setting.loss, **setting.hyperparameters)
    if setting.identification:
        common.set_auxiliary(config, "arcface", weight=setting.identification, margin=0.0, scale=16.0)
    config.update_from_flattened_dict({} if argument else SIZES.get(name, {}))
    if options.tiny:
        config.update_from_flattened_dict(TINY)
    for item in options.set:
        _set(config, item)
    config.optimizer.learning_rate *= setting.rate
    config.update_from_flattened_dict(setting.overrides)
    config.seed = seed
    return config.lock()


def _set(config: Config, item: str) -> None:
    key, given, text = item.partition("=")
    if below(key, _CHOSEN):
        raise UserError(
            f"--set {item}: {key} is what the study chooses; set another key, or change the study"
        )
    known = flatten(config)
    if key not in known:
        raise unknown_name("config key in --set", key, known)
    if not given:
        raise UserError(f"--set {item}: has no value; give --set {key}=VALUE, as in {key}={known[key]}")
    try:
        config.update_from_flattened_dict({key: _literal(text)})
    except (TypeError, ValueError) as e:
        raise UserError(
            f"--set {item}: {text} is not of the type of {known[key]!r}, the value of {key}"
        ) from e


def below(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of `names` or stands in a section of that name."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
