"""What training minimises, as a function of the encoder's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax

PyTree = Any


class MetricLoss(Protocol):
    """A loss of `hap2s_jax.losses`, its hyperparameters bound."""

    def __call__(
        self,
        embeddings: jax.Array,
        labels: jax.Array,
        *,
        axis_name: str | None = None,
        with_stats: bool = False,
    ) -> Any:
        """Returns the loss, or with `with_stats` the loss and its statistics."""
        ...


def metric_objective(
    output: Any,
    labels: jax.Array,
    loss_params: PyTree,
    axis_name: str,
    *,
    loss: MetricLoss,
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """The metric loss of the global batch's embeddings.

    Args:
      output: the encoder's output, with ``embedding [b, d]``.
      labels: ``[b]``.
      loss_params: learnable arrays of the loss, an empty dict for the losses that have none.
      axis_name: the axis that the global batch is split over.
      loss: the loss.
    """
    learnable = {"params": loss_params} if loss_params else {}
    return loss(output.embedding, labels, axis_name=axis_name, with_stats=True, **learnable)
