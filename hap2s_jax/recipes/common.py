"""A config with every key at its default, and the pieces that configs are made of; see `hap2s_jax.run.schema`.

The defaults are person re-identification with a ResNet-50 as most public recipes have it. `get_config` of this file is
not runnable: it names no data set.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from hap2s_jax import losses
from hap2s_jax.errors import UserError, unknown_name
from hap2s_jax.run import schema
from hap2s_jax.run.config import Config


def get_config() -> Config:
    """All keys at their defaults, with HAP2S_E as the loss."""
    config = schema.default_config()
    set_loss(config, "hap2s_e")
    return config


def set_loss(config: Config, name: str, **hyperparameters: object) -> None:
    """Chooses the loss, with all its hyperparameters at their defaults but those given, and no memory."""
    config.loss = _loss(name, hyperparameters)
    config.loss.memory_size = 0


def set_auxiliary(config: Config, name: str, weight: float, **hyperparameters: object) -> None:
    """Adds a second loss, such as "softmax" for HAP2S and identification together."""
    config.auxiliary = _loss(name, hyperparameters)
    config.auxiliary.weight = weight


def _loss(name: str, hyperparameters: dict[str, object]) -> Config:
    values = losses.hyperparameters(name)
    unknown = sorted(set(hyperparameters) - set(values))
    if unknown:
        raise unknown_name(f"hyperparameter of {name}", unknown[0], values)
    return ml_collections.ConfigDict({"name": name, **values, **hyperparameters})


def parse_arg(arg: str | None, **defaults: object) -> Config:
    """Reads the string after the colon of ``--config=FILE:ARG``, such as ``tiny,loss=hap2s_e``.

    Args:
      arg: comma-separated ``key=value``, or ``key`` alone for a boolean.
      **defaults: the known keys; a default's type is the value's type.

    Raises:
      UserError: for an unknown key or a value of the wrong type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, has_value, text = item.partition("=")
        if key not in defaults:
            raise unknown_name("config argument", key, defaults)
        default = defaults[key]
        try:
            if isinstance(default, bool):
                values[key] = {"": True, "true": True, "1": True, "false": False, "0": False}[text.lower()]
            elif not has_value:
                raise ValueError
            else:
                convert: Any = type(default)
                values[key] = convert(text)
        except (KeyError, ValueError):
            raise UserError(
                f"config argument {item!r}: {key} needs a {type(default).__name__}, as in {key}={default}"
            ) from None
    return ml_collections.ConfigDict(values)
