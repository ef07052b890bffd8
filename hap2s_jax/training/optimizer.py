"""Optimisers and learning rate schedules by name, all of them optax's."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import optax

from hap2s_jax.errors import UserError, require, unknown_name

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


def _polynomial(peak: float, steps: int, *, final_factor: float, power: float, **_: Any) -> optax.Schedule:
    return optax.polynomial_schedule(peak, peak * final_factor, power, max(steps, 1))


def _step(
    peak: float, steps: int, *, boundaries: Sequence[float], step_factor: float, **_: Any
) -> optax.Schedule:
    return optax.piecewise_constant_schedule(peak, {round(b * steps): step_factor for b in boundaries})


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "exponential": _exponential,
    "polynomial": _polynomial,
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
    power: float = 1.0,
) -> optax.Schedule:
    """Builds a schedule from steps to learning rates, preceded by a linear warm-up.

    Args:
      name: ``constant``; ``cosine`` (to ``final_factor``); ``exponential`` (constant up to the fraction
        `decay_from` of the steps, then exponentially to ``final_factor``: TriNet, Hermans et al. 2017, is
        0.6 and 0.001); ``polynomial`` (to ``final_factor``, `power` 1 being a straight line); ``step`` (times
        `step_factor` at each of `boundaries`).
      learning_rate: the peak.
      steps: length of the whole schedule, warm-up included.
      warmup_steps: length of the warm-up.
      final_factor: last learning rate over the peak.
      decay_from: fraction of the steps after the warm-up.
      boundaries: increasing fractions of the steps after the warm-up.
      step_factor: what the rate is multiplied by at each boundary.
      power: of the polynomial.

    Raises:
      UserError: for an unknown name or a value out of range.
    """
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    in_run = f"between 0 and the number of steps, {steps}"
    require(0 <= warmup_steps <= steps, "schedule.warmup_steps", warmup_steps, in_run)
    require(0 <= learning_rate < math.inf, "optimizer.learning_rate", learning_rate, "at least 0 and finite")
    require(0 <= decay_from <= 1, "schedule.decay_from", decay_from, "a part of the run, 0 to 1")
    for key, factor in (("final_factor", final_factor), ("step_factor", step_factor), ("power", power)):
        require(0 <= factor < math.inf, f"schedule.{key}", factor, "at least 0 and finite")
    edges = (0.0, *boundaries, 1.0)
    rising = all(a < b for a, b in itertools.pairwise(edges))
    require(rising, "schedule.boundaries", tuple(boundaries), "rising parts of the run between 0 and 1")
    # Of a decay to nothing no ratio can be taken.
    wanted = "above 0 for an exponential decay"
    require(final_factor > 0 or name != "exponential", "schedule.final_factor", final_factor, wanted)
    main = SCHEDULES[name](
        learning_rate,
        steps - warmup_steps,
        final_factor=final_factor,
        decay_from=decay_from,
        boundaries=boundaries,
        step_factor=step_factor,
        power=power,
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


def _lars(schedule: optax.Schedule, weight_decay: float, mask: Any, **kwargs: Any) -> Any:
    # Its trust ratio is for kernels: a bias that starts at 0 would never leave it.
    return optax.lars(
        schedule,
        weight_decay=weight_decay,
        weight_decay_mask=True if mask is None else mask,
        trust_ratio_mask=decays,
        **kwargs,
    )


_MOMENTS, _MOMENTUM = ("b1", "b2"), ("momentum", "nesterov")

OPTIMIZERS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    # name: (builder, which of b1, b2, momentum, nesterov it takes)
    "adabelief": (_with_decay(optax.adabelief), _MOMENTS),
    "adagrad": (_with_decay(optax.adagrad), ()),
    "adam": (_with_decay(optax.adam), _MOMENTS),
    "adamw": (_decoupled(optax.adamw), _MOMENTS),
    "amsgrad": (_with_decay(optax.amsgrad), _MOMENTS),
    "lamb": (_decoupled(optax.lamb), _MOMENTS),
    "lars": (_lars, _MOMENTUM),
    "lion": (_decoupled(optax.lion), _MOMENTS),
    "nadam": (_with_decay(optax.nadam), _MOMENTS),
    "nadamw": (_decoupled(optax.nadamw), _MOMENTS),
    "radam": (_with_decay(optax.radam), _MOMENTS),
    "rmsprop": (_with_decay(optax.rmsprop), _MOMENTUM),
    "sgd": (_with_decay(optax.sgd), _MOMENTUM),
    "yogi": (_with_decay(optax.yogi), _MOMENTS),
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
    nesterov: bool = False,
    trunk_factor: float = 1.0,
    loss_factor: float = 1.0,
    frozen: Iterable[str] = (),
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
      momentum: of sgd, rmsprop and lars.
      nesterov: whether that momentum is Nesterov's.
      trunk_factor: learning rate of the encoder's trunk over that of its head; 0 keeps the trunk's parameters (not
        its batch statistics, which no optimiser sees). The trunk is what stands under a module called "trunk".
      loss_factor: learning rate of the loss's own arrays, such as a classifier or proxies, over the head's.
      frozen: parameters that stay as they are, bit for bit, whatever the gradient, the decay and the optimiser:
        regular expressions of whole paths or of what they begin with, such as "encoder/trunk/stem_conv1" or
        "encoder/trunk/stage[12].*".

    Raises:
      UserError: for an unknown name or a value out of range; and from the optimiser's ``init``, when a factor or an
        entry of `frozen` fits no parameter.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    not_negative = {"trunk_factor": trunk_factor, "loss_factor": loss_factor, "weight_decay": weight_decay}
    for key, value in not_negative.items():
        require(0 <= value < math.inf, f"optimizer.{key}", value, "at least 0 and finite")
    require((clip_norm or 0.0) >= 0, "optimizer.clip_norm", clip_norm, "at least 0")
    for key, value in (("b1", b1), ("b2", b2), ("momentum", momentum)):
        require(0 <= value < 1, f"optimizer.{key}", value, "at least 0 and below 1")
    build, takes = OPTIMIZERS[name]
    settings = {"b1": b1, "b2": b2, "momentum": momentum, "nesterov": nesterov}
    mask = None if decay_biases else decays
    optimizer = build(schedule, weight_decay, mask, **{k: settings[k] for k in takes})
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)

    factors = {TRUNK: trunk_factor, LOSS: loss_factor}
    stays = [*frozen, *(pattern for pattern, factor in factors.items() if not factor)]
    if stays:
        labels = {True: "frozen", False: "trained"}
        optimizer = optax.partition(
            {"trained": optimizer, "frozen": optax.set_to_zero()},
            lambda params: jax.tree.map(lambda is_frozen: labels[is_frozen], matches(params, stays)),
        )
    scales = {pattern: factor for pattern, factor in factors.items() if factor not in (0, 1)}
    # Every optimiser here ends by multiplying with the learning rate, so that a factor may come after it.
    return optax.chain(optimizer, _scaled(scales)) if scales else optimizer


# Whose learning rate can be another.
TRUNK = r"encoder/(?:.*/)?trunk"
LOSS = r"loss"


def _scaled(factors: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters that a pattern fits."""

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        del params
        for pattern, factor in factors.items():
            chosen = matches(updates, [pattern])
            updates = jax.tree.map(lambda u, is_chosen, f=factor: u * f if is_chosen else u, updates, chosen)
        return updates

    return optax.stateless(scale)


def matches(params: PyTree, patterns: Iterable[str]) -> PyTree:
    """Marks the parameters whose path, as "encoder/head/embedding/kernel", one of `patterns` fits or begins.

    Raises:
      UserError: a pattern is no regular expression or fits nothing.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names = ["/".join(_key(key) for key in path) for path, _ in leaves]
    chosen = [False] * len(names)
    for pattern in patterns:
        try:
            expression = re.compile(rf"(?:{pattern})(?:/.*)?")
        except re.error as e:
            raise UserError(f"{pattern!r} is no regular expression of parameters: {e}") from e
        found = [expression.fullmatch(name) is not None for name in names]
        if not any(found):
            some = ", ".join(names[:: max(1, len(names) // 4)][:5])
            raise UserError(
                f"no parameter is called {pattern!r}, nor anything that begins so; there are {some}"
            )
        chosen = [a or b for a, b in zip(chosen, found, strict=True)]
    return jax.tree.unflatten(structure, chosen)


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def decays(params: PyTree) -> PyTree:
    """Marks the arrays that weight decay is for: kernels, not biases, normalisation's scales or the centres of classes.

    A centre is where its class is; decay would draw those that are absent from a batch to the origin.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, p: p.ndim > 1 and _key(path[-1]) != "centres", params
    )
