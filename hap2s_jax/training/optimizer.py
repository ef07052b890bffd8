"""Optimisers and learning rate schedules by name, all of them optax's."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from hap2s_jax.errors import require
from hap2s_jax.settings import Rule, Settings, at_least, below, between, one_of
from hap2s_jax.training.parts import LOSS, TRUNK, matches, name_of, scaled

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


@dataclasses.dataclass(frozen=True)
class Schedule(Settings):
    """How the learning rate changes over a run. TriNet's (Hermans et al. 2017) is "exponential" from 0.6 to 0.001."""

    section = "schedule"
    name: Annotated[str, one_of(*SCHEDULES)] = "cosine"
    warmup_steps: Annotated[
        int,
        "Steps over which the rate rises linearly to its peak, starting at 1 / (warmup_steps + 1) of it.",
        at_least(0),
    ] = 0
    final_factor: Annotated[
        float, "Last rate over the peak (cosine, exponential, polynomial).", at_least(0)
    ] = 0.001
    decay_from: Annotated[
        float, "Share of the steps after the warm-up at which the exponential decay begins.", between(0, 1)
    ] = 0.6
    boundaries: Annotated[
        tuple[float, ...],
        "Shares of the steps after the warm-up at which the rate is multiplied by step_factor (step). If a tenth "
        "of the run is warm-up, (2/9, 5/9) are at 30% and 60% of the run.",
    ] = (0.33, 0.58)
    step_factor: Annotated[float, "The factor at each boundary (step).", at_least(0)] = 0.1
    power: Annotated[float, "Exponent of the polynomial schedule; 1 is linear.", at_least(0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in itertools.pairwise((0.0, *self.boundaries, 1.0)))
        wanted = "rising parts of the run between 0 and 1"
        require(rising, "schedule.boundaries", tuple(self.boundaries), wanted)
        # An exponential decay to 0 has no ratio.
        wanted = "above 0 for an exponential decay"
        above = self.final_factor > 0 or self.name != "exponential"
        require(above, "schedule.final_factor", self.final_factor, wanted)


def create_schedule(name: str, *, learning_rate: float, steps: int, **settings: Any) -> optax.Schedule:
    """Builds a schedule from steps to learning rates, preceded by a linear warm-up.

    Args:
      name: one of `SCHEDULES`.
      learning_rate: the peak.
      steps: length of the whole schedule, warm-up included.
      **settings: the other fields of `Schedule`.

    Raises:
      UserError: for an unknown name or a value out of range.
    """
    chosen = Schedule(name, **settings)
    in_run = f"between 0 and the number of steps, {steps}"
    require(chosen.warmup_steps <= steps, "schedule.warmup_steps", chosen.warmup_steps, in_run)
    require(0 <= learning_rate < math.inf, "optimizer.learning_rate", learning_rate, "at least 0 and finite")
    shape = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)[2:]}
    main = SCHEDULES[name](learning_rate, steps - chosen.warmup_steps, **shape)
    if not chosen.warmup_steps:
        return main
    # From rate/(n+1), not 0: a first step of rate 0 would be an update that does nothing.
    first = learning_rate / (chosen.warmup_steps + 1)
    warmup = optax.linear_schedule(first, learning_rate, chosen.warmup_steps)
    return optax.join_schedules([warmup, main], [chosen.warmup_steps])


def _with_decay(transform: Callable[..., optax.GradientTransformation]) -> Callable[..., Any]:
    """Builder of an optimiser without weight decay of its own: the decay is added to the gradient (L2)."""

    def build(schedule: optax.Schedule, weight_decay: float, mask: Any, **kwargs: Any) -> Any:
        decay = [optax.add_decayed_weights(weight_decay, mask)] if weight_decay else []
        return optax.chain(*decay, transform(schedule, **kwargs))

    return build


def _decoupled(transform: Callable[..., optax.GradientTransformation]) -> Callable[..., Any]:
    """Builder of an optimiser with its own decoupled weight decay."""

    def build(schedule: optax.Schedule, weight_decay: float, mask: Any, **kwargs: Any) -> Any:
        return transform(schedule, weight_decay=weight_decay, mask=mask, **kwargs)

    return build


def _lars(schedule: optax.Schedule, weight_decay: float, mask: Any, **kwargs: Any) -> Any:
    # The trust ratio is for kernels: with it a bias that starts at 0 would stay there.
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


@dataclasses.dataclass(frozen=True)
class Optimizer(Settings):
    """The optimiser, except for how its learning rate changes, which is `Schedule`'s."""

    section = "optimizer"
    name: Annotated[str, one_of(*OPTIMIZERS)] = "adam"
    learning_rate: Annotated[float, "Peak learning rate of the head.", at_least(0)] = 3e-4
    weight_decay: Annotated[
        float,
        "Decoupled for adamw, nadamw, lamb and lion, within the trust ratio for lars, an L2 penalty for the others.",
        at_least(0),
    ] = 0.0
    decay_biases: Annotated[bool, "Apply weight decay to biases and normalisation layers too."] = False
    clip_norm: Annotated[float, "Largest global norm of the gradient; 0 for no clipping.", at_least(0)] = 0.0
    b1: Annotated[float, "Decay of the first moment (Adam and the like).", below(0, 1)] = 0.9
    b2: Annotated[float, "Decay of the second moment (Adam and the like).", below(0, 1)] = 0.999
    momentum: Annotated[float, "Momentum of sgd, rmsprop and lars.", below(0, 1)] = 0.9
    nesterov: Annotated[bool, "Use Nesterov momentum."] = False
    trunk_factor: Annotated[
        float,
        "Learning rate of the backbone (trunk) over that of the head, such as 0.1 for a pretrained one. 0 keeps the "
        "backbone fixed (its batch statistics too with encoder.freeze_bn_stats).",
        at_least(0),
    ] = 1.0
    layer_decay: Annotated[
        float,
        "Learning rate of a transformer's block over that of the next block. All before the first block counts as "
        "one more; the final normalisation has the backbone's rate (Bao et al., BEiT, 2022).",
        Rule(lambda value: 0 < value <= 1, "above 0 and up to 1"),
    ] = 1.0
    head_steps: Annotated[
        int,
        "Steps at the start that train the head alone, so that a random head does not spoil the backbone.",
        at_least(0),
    ] = 0
    loss_factor: Annotated[
        float,
        "Multiplies the learning rate of the loss's own parameters (a classifier, proxies). At 1, those of "
        "proxy_anchor and soft_triple already learn 100 times as fast as the head, as in their papers.",
        at_least(0),
    ] = 1.0
    frozen: Annotated[
        tuple[str, ...],
        "Regular expressions of parameters to keep fixed, bit for bit, matched from the start of their paths: "
        '"encoder/trunk/stem_.*" or "encoder/trunk/stage1.*".',
    ] = ()


def create_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    layers: Sequence[str] = (),
    loss_rates: Mapping[str, float] | None = None,
    **settings: Any,
) -> optax.GradientTransformation:
    """Builds an optimiser by name.

    Args:
      name: one of `OPTIMIZERS`.
      schedule: step -> learning rate.
      layers: patterns of the layers that `layer_decay` tells apart, the first to see an image first.
      loss_rates: by the names under "loss", learning rates over that of the head before `loss_factor`.
      **settings: the other fields of `Optimizer`.

    Raises:
      UserError: for an unknown name or a value out of range; and from the optimiser's ``init``, when a factor or an
        entry of `frozen` matches no parameter.
    """
    chosen = Optimizer(name, **settings)
    build, takes = OPTIMIZERS[name]
    mask = None if chosen.decay_biases else decays
    optimizer = build(schedule, chosen.weight_decay, mask, **{k: getattr(chosen, k) for k in takes})
    if chosen.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(chosen.clip_norm), optimizer)

    factors = {TRUNK: chosen.trunk_factor, LOSS: chosen.loss_factor}
    factors |= {f"{LOSS}/{name}": rate for name, rate in (loss_rates or {}).items()}
    stays = [*chosen.frozen, *(pattern for pattern, factor in factors.items() if not factor)]
    if stays:
        labels = {True: "frozen", False: "trained"}
        optimizer = optax.partition(
            {"trained": optimizer, "frozen": optax.set_to_zero()},
            lambda params: jax.tree.map(lambda is_frozen: labels[is_frozen], matches(params, stays)),
        )
    # Every optimiser here ends by multiplying with the learning rate, so that a factor may come after it.
    scales = {pattern: factor for pattern, factor in factors.items() if factor not in (0, 1)}
    if chosen.layer_decay != 1:
        scales |= {layer: chosen.layer_decay ** (len(layers) - n) for n, layer in enumerate(layers)}
    after = [scaled(scales)] if scales else []
    if chosen.head_steps:
        begun = optax.scale_by_schedule(
            lambda count: jnp.where(jnp.asarray(count) >= chosen.head_steps, 1.0, 0.0)
        )
        after.append(optax.masked(begun, lambda params: matches(params, [TRUNK])))
    return optax.chain(optimizer, *after) if after else optimizer


def decays(params: PyTree) -> PyTree:
    """Marks the arrays that weight decay is for: kernels, not biases, normalisation's scales or the centres of classes.

    A centre is where its class is; decay would draw the centres of classes absent from a batch to the origin.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, p: p.ndim > 1 and name_of(path[-1]) != "centres", params
    )
