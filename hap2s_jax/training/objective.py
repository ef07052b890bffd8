"""The objective that training minimises, as a function of the encoder's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from hap2s_jax.losses.memory import Memory

PyTree = Any


def objective(
    output: Any,
    labels: jax.Array,
    loss_params: Mapping[str, PyTree],
    axis_name: str,
    step: jax.Array | int = 0,
    past: Memory | None = None,
    *,
    loss: Callable[..., Any],
    schedule: Callable[[Any], Mapping[str, jax.Array]] | None = None,
    auxiliary: Callable[..., Any] | None = None,
    auxiliary_weight: float = 1.0,
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """The metric loss of the global batch's embeddings, plus a second loss if there is one.

    The second is most often the identification loss: trained together with it, HAP2S does better than either
    alone (Yu et al. 2018). It sees the neck of encoders that have one (BNNeck, Luo et al. 2019), else
    the embedding.

    Args:
      output: the encoder's output, with ``embedding [b, d]`` and perhaps ``neck [b, d]``.
      labels: ``[b]``.
      loss_params: the learnable arrays, ``{"metric": ..., "auxiliary": ...}``; losses without any have no entry.
      axis_name: the axis that the global batch is split over.
      step: completed updates, for `schedule` and the key of losses that draw at random.
      past: embeddings of past batches, further keys of the metric loss.
      loss: the metric loss, of `hap2s_jax.losses`.
      schedule: ``step -> {hyperparameter: value}`` of the metric loss, or None.
      auxiliary: the second loss.
      auxiliary_weight: factor of the second loss.

    Returns:
      The sum, and the statistics of both, those of the second under ``auxiliary_`` names, scheduled
      hyperparameters under ``loss_`` names.
    """
    scheduled = {} if schedule is None else schedule(step)
    further = {} if past is None else {"keys": past.embeddings, "key_labels": past.labels}
    arguments = {**_arguments(loss, loss_params.get("metric"), axis_name, step), **scheduled, **further}
    value, stats = loss(output.embedding, labels, **arguments)
    stats = {**stats, **{f"loss_{name}": current for name, current in scheduled.items()}}
    if auxiliary is None:
        return value, stats
    neck = getattr(output, "neck", None)
    arguments = _arguments(auxiliary, loss_params.get("auxiliary"), axis_name, step)
    second, second_stats = auxiliary(output.embedding if neck is None else neck, labels, **arguments)
    renamed = {f"auxiliary_{name}": s for name, s in second_stats.items()}
    return value + auxiliary_weight * second, {
        **stats,
        "metric_loss": value,
        "auxiliary_loss": second,
        **renamed,
    }


def _arguments(loss: Any, params: PyTree, axis_name: str, step: jax.Array | int) -> dict[str, Any]:
    """The keyword arguments of a loss: those of every loss, and those that only this one takes."""
    arguments: dict[str, Any] = {"axis_name": axis_name, "with_stats": True}
    if params is not None:
        arguments["params"] = params
    if getattr(loss, "draws", False):
        # Equal on all devices and after a restart; the draws of two losses of one step need not differ.
        arguments["key"] = jax.random.fold_in(jax.random.key(0), step)
    return arguments
