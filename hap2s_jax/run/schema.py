"""Every key of a config: its type, range, default and meaning.

`default_config` makes a config of the defaults, `check` holds any config against them; docs/config.md lists them.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any

from hap2s_jax.data.augment import Augmentation
from hap2s_jax.errors import require
from hap2s_jax.run.config import Config
from hap2s_jax.run.sections import Batch, Checkpoint, Data, Encoder, Evaluate, Log, LossSchedule, Pretrained
from hap2s_jax.settings import Settings, at_least, below, fields, is_section, optional_type
from hap2s_jax.training.optimizer import Optimizer, Schedule


@dataclasses.dataclass(frozen=True)
class Run(Settings):
    """A whole config."""

    name: Annotated[str, "Names the default working directory, runs/<name>."] = "common"
    seed: Annotated[
        int,
        "Seed of the initial weights, the order of the classes and all augmentation.",
        at_least(0),
    ] = 0
    steps: Annotated[int, "Number of steps (updates) in the whole run.", at_least(0)] = 20_000
    num_devices: Annotated[
        int | None,
        "Number of devices, which must divide the batch size; None uses all. On CPU that many virtual devices are "
        "created, by default one per core.",
        at_least(1),
    ] = None
    compilation_cache: Annotated[
        str | None,
        'Folder in which compiled programs are kept for later runs; None for ~/.cache/hap2s_jax, "" for none.',
    ] = None
    data: Data = dataclasses.field(default_factory=Data)
    batch: Batch = dataclasses.field(default_factory=Batch)
    augment: Augmentation = dataclasses.field(default_factory=Augmentation)
    encoder: Encoder = dataclasses.field(default_factory=Encoder)
    pretrained: Pretrained = dataclasses.field(default_factory=Pretrained)
    loss: Annotated[
        dict[str, Any],
        "Name and hyperparameters of the loss, set by `recipes.common.set_loss`. memory_size is the number of "
        "latest embeddings to use as further keys (cross-batch memory, Wang et al. 2020); 0 for none.",
    ] = dataclasses.field(default_factory=dict)
    loss_schedule: LossSchedule = dataclasses.field(default_factory=LossSchedule)
    auxiliary: Annotated[
        dict[str, Any],
        'A second loss to add, usually "softmax", with its weight; set by `set_auxiliary`.',
    ] = dataclasses.field(default_factory=lambda: {"name": "", "weight": 1.0})
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    ema_decay: Annotated[
        float,
        "Decay of a moving average of the weights, which evaluation then uses; 0 for none.",
        below(0, 1),
    ] = 0.0
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    log: Log = dataclasses.field(default_factory=Log)


def default_config(cls: Any = Run) -> Config:
    """A config with every key at its default, and no loss yet."""
    import ml_collections  # not above: the commands' help needs the base install only
    from ml_collections import config_dict

    config = ml_collections.ConfigDict()
    for field in fields(cls):
        if is_section(field.type):
            config[field.name] = default_config(field.type)
        elif field.default is None:  # a flag may replace it by a value of the type
            kind = optional_type(field)
            config[field.name] = config_dict.placeholder(typing.get_origin(kind) or kind)
        else:
            is_dict = isinstance(field.default, dict)
            config[field.name] = ml_collections.ConfigDict(field.default) if is_dict else field.default
    return config


def check(config: Config) -> Run:
    """Checks a config against the schema.

    Returns:
      It as dataclasses.

    Raises:
      UserError: an unknown key, a value of the wrong type or out of range, naming the key.
    """
    values = dict(config.items())
    encoder: Any = values.get("encoder")
    # The user's own encoder has its own options.
    if hasattr(encoder, "items") and ":" in str(encoder.get("name")):
        known = {field.name for field in fields(Encoder)}
        values["encoder"] = {key: value for key, value in encoder.items() if key in known}
    made = Run.read(values)
    size = made.loss.get("memory_size", 0)
    whole = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    require(whole, "loss.memory_size", repr(size), "a whole number of at least 0")
    return made
