"""The pure functions of a config, without data and devices: encoder, losses, optimiser and training step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from hap2s_jax import losses, models
from hap2s_jax.distributed.devices import AXIS
from hap2s_jax.errors import UserError, require
from hap2s_jax.run import applicable
from hap2s_jax.run.config import Config
from hap2s_jax.training import objective, optimizer, step
from hap2s_jax.training.state import TrainState, assemble_state

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Learner:
    """A config's pure functions and their parts.

    Attributes:
      config: the config, locked.
      encoder: the flax module.
      losses: the metric loss as "metric" and the second one, if any, as "auxiliary".
      objective: what is minimised, see `hap2s_jax.training.objective`.
      optimizer: the optax optimiser.
      schedule: step -> learning rate.
      train_step: ``(state, a device's batch) -> (state, metrics)``, over the axis `devices.AXIS`.
    """

    config: Config
    encoder: Any
    losses: dict[str, losses.Loss]
    objective: step.Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    train_step: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]]

    @classmethod
    def create(cls, config: Config) -> Learner:
        """Builds everything.

        Raises:
          UserError: naming the key that is wrong.
        """
        from hap2s_jax.run import schema  # not above: see `evaluator`

        schema.check(config)
        named = {"metric": _loss("loss", _without(config.loss, "memory_size"))}
        if config.auxiliary.name:
            require(config.auxiliary.weight >= 0, "auxiliary.weight", config.auxiliary.weight, "at least 0")
            named["auxiliary"] = _loss("auxiliary", _without(config.auxiliary, "weight"))
        _check_batch(config, named)
        bound = functools.partial(
            objective.objective,
            loss=named["metric"],
            schedule=losses.create_schedule(named["metric"], steps=config.steps, **config.loss_schedule),
            auxiliary=named.get("auxiliary"),
            auxiliary_weight=config.auxiliary.weight,
        )
        encoder = models.create(**config.encoder, axis_name=AXIS)
        is_frozen = getattr(encoder, "frozen", False)
        layers = tuple(f"encoder/{path}" for path in getattr(encoder, "layers", ()))
        applicable.check(config, is_frozen, has_layers=bool(layers))
        # A frozen trunk is no part of the state.
        of_encoder = () if is_frozen else encoder.frozen_parameters
        schedule = optimizer.create_schedule(
            learning_rate=config.optimizer.learning_rate, steps=config.steps, **config.schedule
        )
        transform = optimizer.create_optimizer(
            schedule=schedule,
            layers=layers,
            loss_rates={name: loss.rate for name, loss in named.items() if loss.rate != 1},
            **{
                **_without(config.optimizer, "learning_rate"),
                "frozen": (*config.optimizer.frozen, *(f"encoder/{p}" for p in of_encoder)),
            },
        )
        train_step = functools.partial(
            step.train_step,
            encoder=encoder,
            objective=bound,
            optimizer=transform,
            axis_name=AXIS,
            ema_decay=config.ema_decay or None,
            pieces=config.batch.pieces,
            seed=config.seed,
        )
        return cls(config, encoder, named, bound, transform, schedule, train_step)

    @property
    def batch_size(self) -> int:
        """Images in a global batch."""
        return self.config.batch.classes * self.config.batch.images_per_class

    @property
    def is_frozen(self) -> bool:
        """Whether the encoder's trunk is frozen: then the state holds the head alone, and the inputs are features."""
        return getattr(self.encoder, "frozen", False)

    @functools.cached_property
    def inputs(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of two inputs of the encoder: images, or where its trunk is frozen their features."""
        images = jax.ShapeDtypeStruct((2, *self.config.data.image_size, 3), np.uint8)
        if not self.is_frozen:
            return images
        init = functools.partial(self.encoder.init_with_output, method="pooled")
        return jax.eval_shape(init, jax.random.key(0), images)[0]

    @property
    def _examples(self) -> np.ndarray:
        return np.zeros(self.inputs.shape, self.inputs.dtype)

    def initial_state(self, num_classes: int) -> TrainState:
        """The state before the first update, for labels 0 to `num_classes` - 1, not yet placed on devices."""
        encoder_key, rest = self._beside_encoder(num_classes)
        variables = models.initialize(self.encoder, encoder_key, self._examples)
        return assemble_state(variables, self.optimizer, **rest)

    def whole_encoder(self) -> PyTree:
        """The first variables of the encoder, ``{"params", "batch_stats"}``, those of a frozen trunk included."""
        encoder_key, _ = jax.random.split(jax.random.key(self.config.seed))
        images = np.zeros((2, *self.config.data.image_size, 3), np.uint8)
        return models.initialize(self.encoder, encoder_key, images)

    def abstract_state(self, num_classes: int) -> TrainState:
        """Shapes and dtypes of `initial_state`, without computing it."""

        def draw() -> TrainState:
            key, rest = self._beside_encoder(num_classes)
            variables = self.encoder.init(key, self._examples, train=False)
            return assemble_state(variables, self.optimizer, **rest)

        return jax.eval_shape(draw)

    def _beside_encoder(self, num_classes: int) -> tuple[jax.Array, dict[str, Any]]:
        """The key of the encoder's weights, and the other arguments of `assemble_state`."""
        encoder_key, loss_key = jax.random.split(jax.random.key(self.config.seed))
        loss_params, size = {}, self.config.loss.get("memory_size", 0)

        @functools.cache
        def embedding() -> jax.ShapeDtypeStruct:
            init = functools.partial(self.encoder.init_with_output, train=False)
            return jax.eval_shape(init, encoder_key, self._examples)[0].embedding

        for name, loss in self.losses.items():
            if loss.has_params:
                # Two losses that draw arrays of the same shape must not draw the same values.
                key = jax.random.fold_in(loss_key, len(loss_params)) if loss_params else loss_key
                loss_params[name] = loss.init_params(key, num_classes, embedding().shape[-1])
        past = losses.memory.create(size, embedding().shape[-1], embedding().dtype) if size else None
        return encoder_key, {
            "loss_params": loss_params,
            "use_ema": bool(self.config.ema_decay),
            "memory": past,
        }


def _check_batch(config: Config, named: Mapping[str, losses.Loss]) -> None:
    """Raises UserError unless the losses can work with batches and a memory of these sizes."""
    batch, size, name = config.batch, config.loss.get("memory_size", 0), config.loss.name
    if size:
        least = batch.classes * batch.images_per_class
        require(size >= least, "loss.memory_size", size, f"at least a batch of {least}, or 0 for no memory")
        why = f"0: {name} compares a batch with itself, or with points of the classes"
        require(named["metric"].has_blocks, "loss.memory_size", size, why)
    if pairing := [loss.name for loss in named.values() if loss.needs_pairs]:
        for key in ("classes", "images_per_class"):
            why = f"at least 2: {pairing[0]} compares images of one class, and with those of others"
            require(batch[key] >= 2, f"batch.{key}", batch[key], why)


def _loss(key: str, settings: Mapping[str, Any]) -> losses.Loss:
    loss = losses.create(**settings)
    try:
        loss.check()
    except ValueError as e:
        raise UserError(f"{key} {loss.name}: {e}") from e
    return loss


def _without(config: Config, key: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != key}
