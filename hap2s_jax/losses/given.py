"""Losses of distances that the caller has computed."""

from __future__ import annotations

import functools
from typing import Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.distances import COMPUTED_IN, FLOAT32, whole
from hap2s_jax.losses.engine import apply_rows, check_options, reduced
from hap2s_jax.losses.hap2s import Hap2s
from hap2s_jax.losses.pytrees import as_pytree, with_numbers_in
from hap2s_jax.losses.rows import AnchorLoss, AnchorRow, Axis, LossTree, Options, Reduction, Result, Stats
from hap2s_jax.losses.weightings import LogWeights, Scalar, Weighting, as_weighting, check_range, exponential


def mean_over_rows(
    loss: AnchorLoss,
    distances: jax.Array,
    is_positive: jax.Array,
    is_negative: jax.Array,
    *,
    axis_name: Axis = None,
    sample_weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Result:
    """Mean of `loss` over anchors whose rows `[n, m]` are given; for losses that ask for no labels.

    Distances of pairs that are neither positive nor negative may be NaN.
    """
    sample_weights = check_options(reduction, "never", sample_weights, len(distances))
    options = Options("given", axis_name, None, "never", reduction, with_stats)
    return _evaluate_rows(as_pytree(loss), distances, is_positive, is_negative, sample_weights, options)


@functools.partial(jax.jit, static_argnames="options")
def _evaluate_rows(
    loss: LossTree,
    distances: jax.Array,
    is_positive: jax.Array,
    is_negative: jax.Array,
    sample_weights: jax.Array | None,
    options: Options,
) -> Result:
    count, dtype = distances.shape[0], COMPUTED_IN.get(distances.dtype, FLOAT32)
    loss = with_numbers_in(loss, dtype)
    distances = jnp.where(is_positive | is_negative, distances.astype(dtype), 0)
    index = jnp.arange(count, dtype=jnp.int32)
    if options.axis_name is not None:
        index = index + lax.axis_index(options.axis_name) * count
    nothing = jnp.zeros(distances.shape[1], jnp.int32)
    rows = AnchorRow(distances, is_positive, is_negative, jnp.zeros(count, jnp.int32), nothing, index)
    results = apply_rows(loss, rows, jnp.ones(count, bool))
    weight = jnp.ones(count, dtype) if sample_weights is None else sample_weights.astype(dtype)
    weight = jnp.where(jnp.any(jnp.isnan(distances), axis=1), jnp.nan, weight)
    return reduced(results, weight, options)


class GivenArguments(TypedDict, total=False):
    """Keyword arguments of `hap2s_from_distances`, all but `with_stats`."""

    weighting: Weighting | tuple[LogWeights, LogWeights] | None
    margin: Scalar
    soft_margin: bool
    axis_name: Axis
    sample_weights: ArrayLike | None
    reduction: Reduction


@overload
def hap2s_from_distances(  # pyright: ignore[reportOverlappingOverload] - a bool may be either
    distances: ArrayLike,
    is_positive: ArrayLike,
    is_negative: ArrayLike,
    *,
    with_stats: Literal[True],
    **arguments: Unpack[GivenArguments],
) -> tuple[jax.Array, Stats]: ...
@overload
def hap2s_from_distances(
    distances: ArrayLike,
    is_positive: ArrayLike,
    is_negative: ArrayLike,
    *,
    with_stats: bool = False,
    **arguments: Unpack[GivenArguments],
) -> jax.Array: ...


def hap2s_from_distances(
    distances: ArrayLike,
    is_positive: ArrayLike,
    is_negative: ArrayLike,
    *,
    weighting: Weighting | tuple[LogWeights, LogWeights] | None = None,
    margin: Scalar = 0.3,
    soft_margin: bool = False,
    axis_name: Axis = None,
    sample_weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Result:
    """HAP2S from distances of any kind and any supervision: pairs, several labels, soft sets cut by the
    caller.

    Args:
        distances: `[n, m]`, from n anchors to m keys, floating point.
        is_positive: bool `[n, m]`; leave an anchor's pair with itself out.
        is_negative: bool `[n, m]`.

    The other arguments and the result are those of `hap2s_loss`; an anchor without positives or without
    negatives is not counted. Distances of pairs in neither set may be NaN.

    Raises:
        ValueError: shapes that differ.
        TypeError: distances that are not floating point.
    """
    distances, positive, negative = (whole(jnp.asarray(x)) for x in (distances, is_positive, is_negative))
    if not jnp.issubdtype(distances.dtype, jnp.floating):
        raise TypeError(f"distances are {distances.dtype}; they should be floating point")
    if distances.ndim != 2 or not distances.shape == positive.shape == negative.shape:
        raise ValueError(
            f"distances {distances.shape}, is_positive {positive.shape} and is_negative {negative.shape} "
            "should have one shape [n, m]"
        )
    check_range("margin", margin, positive=None)
    return mean_over_rows(
        Hap2s(exponential() if weighting is None else as_weighting(weighting), margin, bool(soft_margin)),
        distances,
        positive.astype(bool),
        negative.astype(bool),
        axis_name=axis_name,
        sample_weights=sample_weights,
        reduction=reduction,
        with_stats=with_stats,
    )
