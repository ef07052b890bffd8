"""Hyperparameters that change during training: sigma, alpha or the margin annealed over the steps.

A schedule's value is an array computed from the step inside the compiled update, so nothing compiles again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from hap2s_jax.errors import UserError, did_you_mean, unknown_name
from hap2s_jax.losses.registry import Loss, create

Schedule = Callable[[jax.Array], dict[str, jax.Array]]

# Name -> function from the share of the time to the share of the way from first to last value.
_WAYS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.zeros_like,
    "linear": lambda part: part,
    "cosine": lambda part: (1 - jnp.cos(math.pi * part)) / 2,
    "exponential": lambda part: part,
}


def create_schedule(
    loss: Loss,
    *,
    steps: int,
    hyperparameter: str = "",
    name: str = "linear",
    final: float = 1.0,
    begin: float = 0.0,
    end: float = 1.0,
) -> Schedule | None:
    """A schedule of one of a loss's hyperparameters, from its configured value to `final`.

    Args:
        loss: made by `losses.create`; its own value of the hyperparameter is the first one.
        steps: updates in the whole run.
        hyperparameter: which one, such as "sigma"; "" for none.
        name: "constant" (stays at the first value), "linear", "cosine" (slow at both ends), "exponential" (equal
            ratios: right for sigma and alpha, which act by their order of magnitude).
        final: the last value, in the hyperparameter's own unit.
        begin: part of the run after which it begins to change.
        end: part of the run after which it has its last value.

    Returns:
        `step -> {hyperparameter: value}`, float32 scalars to be given to the loss's call, or None without a
        hyperparameter.

    Raises:
        UserError: unknown names, a hyperparameter that is no number, values out of range.
    """
    if not hyperparameter:
        return None
    if name not in _WAYS:
        raise unknown_name("loss_schedule.name", name, _WAYS)
    known = [key for key, value in loss.hyperparameters.items() if isinstance(value, float)]
    if hyperparameter not in known:
        raise UserError(
            f"loss_schedule.hyperparameter is {hyperparameter!r}{did_you_mean(hyperparameter, known, cutoff=0.5)}; "
            f"of loss {loss.name!r} these can change: {', '.join(known) or 'none'}"
        )
    if not 0 <= begin < end <= 1:
        raise UserError(
            f"loss_schedule: begin is {begin} and end is {end}; they should be rising parts of the run in [0, 1]"
        )
    first, last = loss.hyperparameters[hyperparameter], float(final)
    try:
        create(loss.name, **{**loss.hyperparameters, hyperparameter: last}).check()
    except ValueError as e:
        raise UserError(f"loss_schedule.final: {e}") from e
    geometric = name == "exponential"
    if geometric and not (first > 0 and last > 0):
        raise UserError(
            f"loss_schedule: {hyperparameter} from {first} to {last} cannot change exponentially, which needs "
            "values above 0; choose linear or cosine"
        )
    if geometric:
        first, last = math.log(first), math.log(last)

    def schedule(step: jax.Array) -> dict[str, jax.Array]:
        part = jnp.clip((jnp.asarray(step, jnp.float32) / max(steps, 1) - begin) / (end - begin), 0, 1)
        value = first + (last - first) * _WAYS[name](part)
        return {hyperparameter: jnp.exp(value) if geometric else value}

    return schedule
