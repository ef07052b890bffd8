"""Weightings: how much each member of a set counts in a point-to-set distance.

A weighting is a pair of functions `(distances [m], mask [m]) -> log_weights [m]`, one for the positive set
and one for the negative set. Working with logarithms is what keeps exp(d / 0.01) and (1 + d)^1000 finite. Its
parameters are leaves of a pytree, so they can be traced, annealed, mapped over and differentiated, and two
weightings made with equal structure share one compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from hap2s_jax.losses.checks import check_range
from hap2s_jax.losses.pytrees import as_pytree, register_dataclass

LogWeights = Callable[[jax.Array, jax.Array], jax.Array]
Scalar = float | jax.Array


@register_dataclass
@dataclass(frozen=True)
class Weighting:
    """Log-weights of the positive set and of the negative set.

    Attributes:
        positive: `(distances [m], mask [m]) -> log_weights [m]`; only masked entries are used, up to a
            constant.
        negative: likewise for the negative set.
        elementwise: whether each log-weight depends on its own distance only, as exp(d / sigma) does and
            "the largest" does not; such weightings can be summed over tiles of keys.
    """

    positive: LogWeights
    negative: LogWeights
    elementwise: bool = field(default=False, metadata={"static": True})


def exponential(sigma: Scalar = 0.5) -> Weighting:
    """HAP2S_E: exp(d / sigma) for positives, exp(-d / sigma) for negatives (Yu et al., ECCV 2018).

    Args:
        sigma: temperature, in units of the distance; towards 0 the hardest sample takes all the weight,
            towards infinity all samples weigh the same.

    Raises:
        ValueError: `sigma` is a number and not positive.
    """
    check_range("sigma", sigma)
    return Weighting(Partial(_growing, sigma), Partial(_decaying, sigma), elementwise=True)


def polynomial(alpha: Scalar = 10.0) -> Weighting:
    """HAP2S_P: (1 + d)^alpha for positives, (1 + d)^(-2 alpha) for negatives (Yu et al., ECCV 2018).

    Args:
        alpha: power; 0 weighs all samples the same, towards infinity the hardest takes all the weight.

    Raises:
        ValueError: `alpha` is a number and negative.
    """
    check_range("alpha", alpha, positive=False)
    return Weighting(Partial(_growing_power, alpha), Partial(_decaying_power, alpha), elementwise=True)


def uniform() -> Weighting:
    """Every member counts the same: the distance to a set is the mean distance to its members."""
    return Weighting(Partial(_constant), Partial(_constant), elementwise=True)


def hardest(count: int = 1) -> Weighting:
    """Only the hardest of each set count, all alike; the one hardest by default: batch-hard (Hermans et al., 2017).

    Members that tie share the weight.

    Args:
        count: how many. What ties with the last of them counts too; a set with fewer members counts whole.

    Raises:
        ValueError: `count` is not at least 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it should be at least 1")
    if count == 1:
        return Weighting(Partial(_farthest), Partial(_nearest))
    return Weighting(Partial(_first, count), Partial(_opposite, Partial(_first, count)))


def ranked(ratio: Scalar = 0.5) -> Weighting:
    """The hardest counts 1, the second hardest `ratio`, the third its square: HAP2S by rank, whatever the distances.

    It needs no parameter in units of the distance. Members that tie have the same weight.

    Args:
        ratio: towards 0 the hardest takes all the weight, at 1 all weigh the same.

    Raises:
        ValueError: `ratio` is a number and not positive.
    """
    check_range("ratio", ratio)
    return Weighting(Partial(_by_rank, ratio), Partial(_opposite, Partial(_by_rank, ratio)))


def easy_positive() -> Weighting:
    """Only the nearest positive and the nearest negative count (Xuan et al., WACV 2020)."""
    return Weighting(Partial(_nearest), Partial(_nearest))


def detached(weighting: Weighting) -> Weighting:
    """The same weights with no gradient through them, so that easy positives are not pushed away (an
    ablation)."""
    weighting = as_weighting(weighting)
    positive, negative = Partial(_detached, weighting.positive), Partial(_detached, weighting.negative)
    return Weighting(positive, negative, weighting.elementwise)


def as_weighting(weighting: Any) -> Weighting:
    """A Weighting from a Weighting or a pair of functions; plain functions become pytrees without leaves.

    Raises:
        TypeError: neither.
    """
    if isinstance(weighting, tuple) and len(weighting) == 2:
        weighting = Weighting(*weighting)
    if not isinstance(weighting, Weighting) or not (
        callable(weighting.positive) and callable(weighting.negative)
    ):
        raise TypeError(
            f"weighting is {weighting!r}; it should be exponential(sigma), polynomial(alpha), uniform(), "
            "hardest(), ranked() or a pair of functions (distances, mask) -> log_weights"
        )
    return Weighting(as_pytree(weighting.positive), as_pytree(weighting.negative), weighting.elementwise)


def harmless(distances: jax.Array, mask: jax.Array) -> jax.Array:
    """Distances with 1 wherever not masked: there a log-weight's slope at 0 must not make the gradient NaN."""
    return jnp.where(mask, distances, 1)


def normalised(log_weights: LogWeights, distances: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights `[m]` that add up to 1 over a non-empty `mask` `[m]`, and their logarithms where masked (else
    0).

    If all log-weights of the set are -inf, its members weigh the same; an empty set has weights 0.
    """
    raw = jnp.where(mask, log_weights(harmless(distances, mask), mask), -jnp.inf)
    silent = jnp.all(raw == -jnp.inf)
    kept = mask & (silent | (raw > -jnp.inf))
    # Masking on both sides keeps -inf - -inf out of the backward pass.
    raw = jnp.where(kept & ~silent, raw, 0)
    raw = raw - lax.stop_gradient(jnp.max(jnp.where(kept, raw, -jnp.inf), initial=jnp.finfo(raw.dtype).min))
    weights = jnp.where(kept, jnp.exp(jnp.where(kept, raw, 0)), 0)
    total = jnp.sum(weights)
    total = jnp.where(total > 0, total, 1)
    return weights / total, jnp.where(kept, raw - jnp.log(total), 0)


def _growing(sigma: Scalar, distances: jax.Array, mask: jax.Array) -> jax.Array:
    del mask
    return distances / sigma


def _decaying(sigma: Scalar, distances: jax.Array, mask: jax.Array) -> jax.Array:
    del mask
    return -distances / sigma


def _growing_power(alpha: Scalar, distances: jax.Array, mask: jax.Array) -> jax.Array:
    del mask
    return alpha * jnp.log1p(distances)


def _decaying_power(alpha: Scalar, distances: jax.Array, mask: jax.Array) -> jax.Array:
    del mask
    return -2 * alpha * jnp.log1p(distances)


def _constant(distances: jax.Array, mask: jax.Array) -> jax.Array:
    del mask
    return jnp.zeros_like(distances)


def _farthest(distances: jax.Array, mask: jax.Array) -> jax.Array:
    kept = jnp.where(mask, distances, -jnp.inf)
    return jnp.where(kept == jnp.max(kept), 0.0, -jnp.inf).astype(distances.dtype)


def _opposite(function: LogWeights, distances: jax.Array, mask: jax.Array) -> jax.Array:
    return function(-distances, mask)


def _nearest(distances: jax.Array, mask: jax.Array) -> jax.Array:
    return _farthest(-distances, mask)


def _harder(hardness: jax.Array, mask: jax.Array) -> jax.Array:
    """How many of the set are harder, int32 `[m]`."""
    kept = jnp.where(mask, lax.stop_gradient(hardness), -jnp.inf)
    return kept.shape[0] - jnp.searchsorted(jnp.sort(kept), kept, side="right")


def _first(count: int, distances: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(_harder(distances, mask) < count, 0.0, -jnp.inf).astype(distances.dtype)


def _by_rank(ratio: Scalar, distances: jax.Array, mask: jax.Array) -> jax.Array:
    # A ratio that underflows would make NaN of the hardest, 0 * -inf.
    ratio = jnp.maximum(jnp.asarray(ratio, distances.dtype), jnp.finfo(distances.dtype).tiny)
    return _harder(distances, mask) * jnp.log(ratio)


def _detached(inner: LogWeights, distances: jax.Array, mask: jax.Array) -> jax.Array:
    return lax.stop_gradient(inner(lax.stop_gradient(distances), mask))
