"""Carries of the sweeps over tiles, named as in the derivation of `tiles`."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax

from hap2s_jax.losses.rows import Anchors
from hap2s_jax.losses.weightings import Structure, Weighting


class PointToSet(Protocol):
    """A loss that depends on an anchor's two weighted set distances only."""

    @property
    def with_anchor(self) -> bool:
        """Whether an anchor is in its own positive set."""
        ...

    @property
    def weighting(self) -> Weighting:
        """Log-weights of both sets, each from its own distance alone."""
        ...

    def penalty(self, to_positives: jax.Array, to_negatives: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The loss for given set distances, and the excess over which it is active."""
        ...


class Extra(NamedTuple):
    """Further carries for the statistics; computed only on request."""

    logs: jax.Array  # sum of exp(l - L) l
    plain: jax.Array  # sum of d
    hardest: jax.Array  # largest signed d


class Set(NamedTuple):
    """The sums of (1) per anchor, over the members seen so far."""

    L: jax.Array
    Z: jax.Array
    M: jax.Array
    extra: Extra | None = None


class Sets(NamedTuple):
    """Both sets of each anchor."""

    positive: Set
    negative: Set


class SortedBatch(NamedTuple):
    """The batch sorted by label in tiles `[k, t, ...]`, ignored samples and padding last."""

    vectors: jax.Array
    origins: jax.Array | None
    labels: jax.Array
    valid: jax.Array
    weight: jax.Array
    positives: jax.Array  # number of positives of each anchor
    negatives: jax.Array


class Static(NamedTuple):
    """Static arguments: they decide the compiled program."""

    structure: Structure  # of the loss
    distance: str
    tile: int
    with_stats: bool


class Fixed(NamedTuple):
    """Arrays without a gradient."""

    rough: list[jax.Array | None]
    anchors: Anchors


class Gradients(NamedTuple):
    """Derivatives of the total by the loss's numbers and by the vectors."""

    smooth: list[jax.Array]
    vectors: jax.Array
