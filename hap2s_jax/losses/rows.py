"""Types of the engine: the input of a loss, its result, and the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypedDict

import jax
from jax.typing import ArrayLike

from hap2s_jax.distances import Distance

Reduction = Literal["mean", "sum", "none"]
BlockSize = int | Literal["never"] | None
Axis = str | tuple[str, ...] | None
Stats = dict[str, jax.Array]
# The value, or (value, stats) under `with_stats`. Any, so that callers need not tell the two apart; the functions that
# most people call have overloads that do.
Result = Any


class SampleArguments(TypedDict, total=False):
    """Keyword arguments of every loss, see `mean_over_anchors`."""

    axis_name: Axis
    ignore_label: int | None
    sample_weights: ArrayLike | None
    reduction: Reduction


class EngineArguments(SampleArguments, total=False):
    """Further keyword arguments of the losses over an anchor's row."""

    keys: ArrayLike | None
    key_labels: ArrayLike | None
    block_size: BlockSize


class AnchorArguments(EngineArguments, total=False):
    """Keyword arguments of `mean_over_anchors`."""

    distance: Distance


class SampleCall(SampleArguments, total=False):
    """`SampleArguments` and `with_stats`, for functions without overloads."""

    with_stats: bool


class EngineCall(EngineArguments, total=False):
    """`EngineArguments` and `with_stats`, for functions without overloads."""

    with_stats: bool


class AnchorRow(NamedTuple):
    """The input of a loss for one anchor; for several with another axis in front, `[n, m]` and `[n]`.

    Attributes:
        distances: `[m]`, from the anchor to every key.
        is_positive: bool `[m]`, keys of the anchor's label, the anchor itself left out unless the loss has an
            attribute `with_anchor` that is true.
        is_negative: bool `[m]`, keys of other labels. Ignored keys are neither.
        label: `[]`, the anchor's label.
        key_labels: `[m]`, for several anchors too.
        index: `[]`, the anchor's number in the global batch, for a random draw of its own.
    """

    distances: jax.Array
    is_positive: jax.Array
    is_negative: jax.Array
    label: jax.Array
    key_labels: jax.Array
    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - nobody asks a tuple for it


# (row) -> (loss, is_valid) or (loss, is_valid, stats), all scalars; in place of is_valid, the number of terms
# summed. An anchor that is not valid counts neither in the sum nor in the mean; stats (a dict or a named tuple) are
# averaged over valid anchors.
AnchorLoss = Callable[[AnchorRow], tuple[Any, ...]]
# The same as a pytree, see `as_pytree`. Any, since the engine asks what more it has by its attributes: `of_rows`,
# `of_batch`, `weighting`, `with_anchor`.
LossTree = Any


class PairStats(NamedTuple):
    """Statistics of each anchor's row; the field names are the logged names."""

    active_fraction: jax.Array
    mean_positive_distance: jax.Array
    mean_negative_distance: jax.Array


class SetStats(NamedTuple):
    """Statistics of an anchor's two sets; the field names are the logged names."""

    active_fraction: jax.Array
    point_to_positives: jax.Array
    point_to_negatives: jax.Array
    hardest_positive_distance: jax.Array
    hardest_negative_distance: jax.Array
    effective_positives: jax.Array
    effective_negatives: jax.Array


class Anchors(NamedTuple):
    """The anchors, without their vectors; `weight` is 0 where an anchor is ignored."""

    origins: jax.Array | None  # [n, d]
    labels: jax.Array  # [n]
    index: jax.Array  # [n]  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: jax.Array  # [n]
    valid: jax.Array  # [n]


class Keys(NamedTuple):
    """The keys, without their vectors."""

    origins: jax.Array | None  # [m, d]
    labels: jax.Array  # [m]
    valid: jax.Array  # [m]


class Batch(NamedTuple):
    """Cleaned anchors, and the keys."""

    vectors: jax.Array  # [n, d]
    anchors: Anchors
    key_vectors: jax.Array  # [m, d]
    keys: Keys


class RowLosses(NamedTuple):
    """Per anchor or sample `[n]`: the loss (0 where not valid), the number of terms it sums, and stats."""

    loss: jax.Array
    terms: jax.Array
    stats: Mapping[str, jax.Array]


class Sums(NamedTuple):
    """Sums over anchors: the weighted loss, the weights, the valid anchors, and each of the stats."""

    loss: jax.Array
    weight: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    stats: Stats


class Options(NamedTuple):
    """The call's arguments that decide the program; hashable."""

    distance: str = "euclidean"
    axis_name: Axis = None
    ignore_label: int | None = -1
    block_size: BlockSize = None
    reduction: str = "mean"
    with_stats: bool = False
