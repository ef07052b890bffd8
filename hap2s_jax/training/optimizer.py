"""Optimisers and learning rate schedules by name, all of them optax's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from hap2s_jax.errors import UserError, unknown_name

PyTree = Any


def _constant(peak: float, steps: int, **_: Any) -> optax.Schedule:
    return optax.constant_schedule(peak)


def _cosine(peak: float, steps: int, *, final_factor: float, **_: Any) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(steps, 1), alpha=final_factor)


def _exponential(
    peak: float, steps: int, *, final_factor: float, decay_from: float, **_: Any
) -> optax.Schedule:
    start = round(decay_from * steps)
    return optax.exponential_decay(
        peak,
        transition_steps=max(steps - start, 1),
        decay_rate=final_factor,
        transition_begin=start,
        end_value=peak * final_factor,
    )


def _step(
    peak: float, steps: int, *, boundaries: Sequence[float], step_factor: float, **_: Any
) -> optax.Schedule:
    return optax.piecewise_constant_schedule(peak, {round(b * steps): step_factor for b in boundaries})


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "exponential": _exponential,
    "step": _step,
}


def create_schedule(
    name: str,
    *,
    learning_rate: float,
    steps: int,
    warmup_steps: int = 0,
    final_factor: float = 0.001,
    decay_from: float = 0.6,
    boundaries: Sequence[float] = (0.33, 0.58),
    step_factor: float = 0.1,
) -> optax.Schedule:
    """Builds a schedule from steps to learning rates, preceded by a linear warm-up from 0.

    Args:
      name: ``constant``; ``cosine`` (to ``final_factor``); ``exponential`` (constant up to the fraction
        `decay_from` of the steps, then exponentially to ``final_factor``: TriNet, Hermans et al. 2017, is
        0.6 and 0.001); ``step`` (times `step_factor` at each of `boundaries`).
      learning_rate: the peak.
      steps: length of the whole schedule, warm-up included.
      warmup_steps: length of the warm-up.
      final_factor: last learning rate over the peak.
      decay_from: fraction of the steps after the warm-up.
      boundaries: increasing fractions of the steps after the warm-up.
      step_factor: what the rate is multiplied by at each boundary.

    Raises:
      UserError: for an unknown name or a value out of range.
    """
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    if not 0 <= warmup_steps <= steps:
        raise UserError(
            f"warmup_steps is {warmup_steps}; it must lie between 0 and the number of steps, {steps}"
        )
    main = SCHEDULES[name](
        learning_rate,
        steps - warmup_steps,
        final_factor=final_factor,
        decay_from=decay_from,
        boundaries=boundaries,
        step_factor=step_factor,
    )
    if not warmup_steps:
        return main
    # From rate/(n+1), not 0: a first step of rate 0 would be an update that does nothing.
    warmup = optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])


def _with_decay(transform: Callable[..., optax.GradientTransformation]) -> Callable[..., Any]:
    """An optimiser whose own update is followed by nothing: weight decay joins the gradient (L2)."""

    def build(schedule: optax.Schedule, weight_decay: float, mask: Any, **kwargs: Any) -> Any:
        decay = [optax.add_decayed_weights(weight_decay, mask)] if weight_decay else []
        return optax.chain(*decay, transform(schedule, **kwargs))

    return build


def _decoupled(transform: Callable[..., optax.GradientTransformation]) -> Callable[..., Any]:
    """An optimiser with a decoupled weight decay of its own."""

    def build(schedule: optax.Schedule, weight_decay: float, mask: Any, **kwargs: Any) -> Any:
        return transform(schedule, weight_decay=weight_decay, mask=mask, **kwargs)

    return build


OPTIMIZERS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    # name: (builder, which of b1, b2, momentum it takes)
    "adam": (_with_decay(optax.adam), ("b1", "b2")),
    "adamw": (_decoupled(optax.adamw), ("b1", "b2")),
    "nadamw": (_decoupled(optax.nadamw), ("b1", "b2")),
    "amsgrad": (_with_decay(optax.amsgrad), ("b1", "b2")),
    "lamb": (_decoupled(optax.lamb), ("b1", "b2")),
    "lion": (_decoupled(optax.lion), ("b1", "b2")),
    "rmsprop": (_with_decay(optax.rmsprop), ("momentum",)),
    "sgd": (_with_decay(optax.sgd), ("momentum",)),
}


def create_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    decay_biases: bool = False,
    clip_norm: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    momentum: float = 0.9,
) -> optax.GradientTransformation:
    """Builds an optimiser by name.

    Args:
      name: one of `OPTIMIZERS`. The decay of adamw, nadamw, lamb and lion is decoupled; for the others it is
        the gradient of an L2 penalty.
      schedule: step -> learning rate.
      weight_decay: its strength.
      decay_biases: whether it also holds for biases and the scales of normalisation layers.
      clip_norm: largest global norm of the gradient; None or 0 does not clip.
      b1: first moment's decay (Adam-like).
      b2: second moment's decay (Adam-like).
      momentum: of sgd and rmsprop.

    Raises:
      UserError: for an unknown name.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    build, takes = OPTIMIZERS[name]
    settings = {"b1": b1, "b2": b2, "momentum": momentum}
    mask = None if decay_biases else decays
    optimizer = build(schedule, weight_decay, mask, **{k: settings[k] for k in takes})
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


def decays(params: PyTree) -> PyTree:
    """Marks the arrays that weight decay is for: kernels, not biases or normalisation's scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)
