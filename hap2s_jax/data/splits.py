"""Splits by class: retrieval is judged on classes that training never saw."""

from __future__ import annotations

import math

import numpy as np

from hap2s_jax.data.draws import permutation
from hap2s_jax.data.source import Source, Subset
from hap2s_jax.errors import UserError


def validation_classes(num_classes: int, fraction: float, seed: int) -> np.ndarray:
    """Draws the training classes by which the best checkpoint is chosen.

    Args:
      num_classes: C, the training classes.
      fraction: the share to draw, in [0, 1); at least two classes unless it is 0 (one class alone cannot be
        retrieved wrongly).
      seed: any integer; the draw depends on it and on C alone.

    Returns:
      int64 `[V]` class numbers in rising order; empty when `fraction` is 0.

    Raises:
      UserError: `fraction` is out of range, or leaves fewer than two classes to train on.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"validation_fraction: must lie in [0, 1), found {fraction}")
    if fraction == 0:
        return np.empty(0, np.int64)
    count = max(2, math.floor(num_classes * fraction + 0.5))
    if num_classes - count < 2:
        raise UserError(
            f"validation_fraction: {fraction} of {num_classes} training classes leaves {num_classes - count} "
            "to train on; at least 2 are needed, so lower it or set it to 0"
        )
    return np.sort(permutation(num_classes, seed)[:count])


def split_by_class(source: Source, fraction: float, seed: int) -> tuple[Source, Source | None]:
    """Takes validation classes out of a training source.

    Args:
      source: labelled images.
      fraction: the share of classes to take, see `validation_classes`.
      seed: any integer.

    Returns:
      (train, validation), both relabelled from 0, with no class in common; validation is None and train is
      `source` itself when `fraction` is 0.

    Raises:
      UserError: see `validation_classes`.
    """
    chosen = validation_classes(len(source.class_names), fraction, seed)
    if not len(chosen):
        return source, None
    held_out = np.isin(source.labels, chosen)
    train = Subset(
        source, np.flatnonzero(~held_out & (source.labels >= 0)), name=f"{source.name} (train part)"
    )
    return train, Subset(source, np.flatnonzero(held_out), name=f"{source.name} (validation classes)")
