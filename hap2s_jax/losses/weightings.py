"""Weightings: how much each member of a set counts in a point-to-set distance.

A weighting is a pair of functions `(distances [m], mask [m]) -> log_weights [m]`, one for the positive set
and one for the negative set. Working with logarithms is what keeps exp(d / 0.01) and (1 + d)^1000 finite. Its
parameters are leaves of a pytree, so they can be traced, annealed, mapped over and differentiated, and two
weightings made with equal structure share one compilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from hap2s_jax.losses.places import places_among
from hap2s_jax.losses.pytrees import as_pytree, register_dataclass

Tree = Any  # of arrays, in any structure
Structure = Any  # of a tree; to type checkers, JAX's class is unknown
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
        extremes: for weightings that look at one key of each set, which: 1 the farthest, -1 the nearest. Their losses
            need the distances of those two pairs alone.
        nonnegative: whether the log-weights are defined for distances of at least 0 only.
    """

    positive: LogWeights
    negative: LogWeights
    elementwise: bool = field(default=False, metadata={"static": True})
    extremes: tuple[int, int] | None = field(default=None, metadata={"static": True})
    nonnegative: bool = field(default=False, metadata={"static": True})


def check_range(name: str, value: Any, *, positive: bool | None = True, below: float = math.inf) -> None:
    """Raises an error unless `value` is one number, positive (False: at least 0; None: of any sign), less than `below`.

    `value` may be anything, hence Any. A traced value is not known yet and passes.

    Raises:
        TypeError: not a number.
        ValueError: out of range, or several numbers.
    """
    if getattr(value, "ndim", 0):
        raise ValueError(f"{name} has shape {value.shape}; a loss's own numbers should be single numbers")
    if isinstance(value, jax.Array):
        return
    if isinstance(value, bool | str) or not isinstance(value, int | float | np.number | np.ndarray):
        hint = "; the soft margin is soft_margin=True" if name == "margin" else ""
        raise TypeError(f"{name} is {value!r}; it should be a number, such as 0.5{hint}")
    if (positive is not None and not (value > 0 if positive else value >= 0)) or not value < below:
        limit = "" if below == math.inf else f" and less than {below:g}"
        kind = "finite" if positive is None else "positive" if positive else "at least 0"
        raise ValueError(f"{name} is {value}; it should be {kind}{limit}")


def exponential(sigma: Scalar = 0.5) -> Weighting:
    """HAP2S_E: exp(d / sigma) for positives, exp(-d / sigma) for negatives (Yu et al., ECCV 2018).

    Args:
        sigma: temperature, in units of the distance; towards 0 the hardest sample takes all the weight,
            towards infinity all samples weigh the same.

    Raises:
        ValueError: `sigma` is a number and not positive.
    """
    check_range("sigma", sigma)
    return Weighting(Partial(_over, sigma), Partial(_over, -sigma), elementwise=True)


def polynomial(alpha: Scalar = 10.0) -> Weighting:
    """HAP2S_P: (1 + d)^alpha for positives, (1 + d)^(-2 alpha) for negatives (Yu et al., ECCV 2018).

    Args:
        alpha: power; 0 weighs all samples the same, towards infinity the hardest takes all the weight.

    Raises:
        ValueError: `alpha` is a number and negative.
    """
    check_range("alpha", alpha, positive=False)
    return Weighting(Partial(_power, alpha), Partial(_power, -2 * alpha), elementwise=True, nonnegative=True)


def uniform() -> Weighting:
    """Every member counts the same: the distance to a set is the mean distance to its members."""
    return Weighting(Partial(_constant), Partial(_constant), elementwise=True)


def hardest(count: int = 1) -> Weighting:
    """Only the `count` hardest of each set count, all alike. One is batch-hard (Hermans et al., 2017).

    Of members that tie for the one hardest, the first in the batch has all the weight, as in torch.

    Args:
        count: how many. Members that tie with the last of several count too; of a smaller set all members count.

    Raises:
        ValueError: `count` is not a whole number of at least 1.
    """
    # A caller may pass anything.
    if isinstance(count, bool) or not isinstance(count, int | np.integer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"count is {count!r}; it should be a whole number, such as 3")
    if count < 1:
        raise ValueError(f"count is {count}; it should be at least 1")
    if count == 1:
        return Weighting(Partial(_farthest), Partial(_nearest), extremes=(1, -1))
    return Weighting(Partial(_first, count), Partial(_opposite, Partial(_first, count)))


def ranked(ratio: Scalar = 0.5) -> Weighting:
    """The hardest counts 1, the second hardest `ratio`, the third its square: HAP2S by rank, whatever the distances.

    It needs no parameter in units of the distance. Members that tie have the same weight.

    Args:
        ratio: towards 0 the hardest takes all the weight, at 1 all weigh the same.

    Raises:
        ValueError: `ratio` is a number outside (0, 1].
    """
    check_range("ratio", ratio)
    if not isinstance(ratio, jax.Array) and ratio > 1:
        raise ValueError(f"ratio is {ratio}; it should be at most 1: above it the easiest would count most")
    return Weighting(Partial(_by_rank, ratio), Partial(_opposite, Partial(_by_rank, ratio)))


def easy_positive() -> Weighting:
    """Only the nearest positive and the nearest negative count (Xuan et al., WACV 2020)."""
    return Weighting(Partial(_nearest), Partial(_nearest), extremes=(-1, -1))


def detached(weighting: Weighting) -> Weighting:
    """The same weights with no gradient through them, so that easy positives are not pushed away (an
    ablation)."""
    weighting = as_weighting(weighting)
    positive, negative = Partial(_detached, weighting.positive), Partial(_detached, weighting.negative)
    return replace(weighting, positive=positive, negative=negative)


def as_weighting(weighting: Any) -> Weighting:
    """A Weighting from a Weighting or a pair of functions; plain functions become pytrees without leaves.

    `weighting` may be anything, hence Any.

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
    return replace(weighting, positive=as_pytree(weighting.positive), negative=as_pytree(weighting.negative))


def normalised(log_weights: LogWeights, distances: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights `[m]` that add up to 1 over a non-empty `mask` `[m]`, and their logarithms where masked (else
    0).

    If all log-weights of the set are -inf, its members weigh the same; an empty set has weights 0.
    """
    # Masked-out distances are 1 instead. A weighting whose derivative is infinite at 0 would otherwise put NaN into the
    # gradient through `where`.
    raw = jnp.where(mask, log_weights(jnp.where(mask, distances, 1), mask), -jnp.inf)
    silent = jnp.all(raw == -jnp.inf)
    kept = mask & (silent | (raw != -jnp.inf))  # NaN is kept, to be seen in the loss
    # Masking on both sides keeps -inf - -inf out of the backward pass.
    raw = jnp.where(kept & ~silent, raw, 0)
    raw = raw - lax.stop_gradient(jnp.max(jnp.where(kept, raw, -jnp.inf), initial=jnp.finfo(raw.dtype).min))
    weights = jnp.where(kept, jnp.exp(jnp.where(kept, raw, 0)), 0)
    total = jnp.sum(weights)
    total = jnp.where(total > 0, total, 1)
    return weights / total, jnp.where(kept, raw - jnp.log(total), 0)


def _over(sigma: Scalar, distances: jax.Array, mask: jax.Array) -> jax.Array:
    del mask
    return distances / jnp.asarray(sigma, distances.dtype)


def _power(alpha: Scalar, distances: jax.Array, mask: jax.Array) -> jax.Array:
    del mask
    return jnp.asarray(alpha, distances.dtype) * jnp.log1p(distances)


def _constant(distances: jax.Array, mask: jax.Array) -> jax.Array:
    del mask
    return jnp.zeros_like(distances)


def _farthest(distances: jax.Array, mask: jax.Array) -> jax.Array:
    first = jnp.argmax(jnp.where(mask, distances, -jnp.inf))
    return jnp.where(jnp.arange(mask.shape[0]) == first, 0.0, -jnp.inf).astype(distances.dtype)


def _opposite(function: LogWeights, distances: jax.Array, mask: jax.Array) -> jax.Array:
    return function(-distances, mask)


def _nearest(distances: jax.Array, mask: jax.Array) -> jax.Array:
    return _farthest(-distances, mask)


def _harder(hardness: jax.Array, mask: jax.Array) -> jax.Array:
    """The number of harder members of the set, int32 `[m]`."""
    kept = jnp.where(mask, lax.stop_gradient(hardness), -jnp.inf)
    return kept.shape[0] - places_among(jnp.sort(kept), kept, "right")


def _first(count: int, distances: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(_harder(distances, mask) < count, 0.0, -jnp.inf).astype(distances.dtype)


def _by_rank(ratio: Scalar, distances: jax.Array, mask: jax.Array) -> jax.Array:
    # If the ratio underflowed, the hardest would become NaN: 0 * -inf.
    ratio = jnp.maximum(jnp.asarray(ratio, distances.dtype), jnp.finfo(distances.dtype).tiny)
    return _harder(distances, mask).astype(ratio.dtype) * jnp.log(ratio)


def _detached(inner: LogWeights, distances: jax.Array, mask: jax.Array) -> jax.Array:
    return lax.stop_gradient(inner(lax.stop_gradient(distances), mask))


def separate(loss: Tree, like: jax.Array) -> tuple[Structure, list[jax.Array], list[jax.Array | None]]:
    """A loss's structure, its differentiable leaves, and the others (None in the differentiable ones' places)."""
    leaves, structure = jax.tree_util.tree_flatten(loss)
    # Every leaf must vary over the same mesh axes as the vectors: under shard_map's check_vma a loop's carry
    # and a custom rule's cotangents may not change that on the way. Adding this zero says so in every version.
    zero = jnp.zeros_like(like).sum()
    smooth, rough = [], []
    for leaf in map(jnp.asarray, leaves):
        is_smooth = jnp.issubdtype(leaf.dtype, jnp.inexact)
        rough.append(None if is_smooth else leaf)
        if is_smooth:
            smooth.append(leaf + zero.astype(leaf.dtype))
    return structure, smooth, rough


def merge(structure: Structure, smooth: list[jax.Array], rough: list[jax.Array | None]) -> Tree:
    """Undoes `separate`."""
    rest = iter(smooth)
    leaves = []
    for leaf in rough:
        leaves.append(next(rest) if leaf is None else leaf)
    return jax.tree_util.tree_unflatten(structure, leaves)


def split(tree: Tree, block: int) -> Tree:
    """Arrays `[n, ...]` as `[blocks, block, ...]`, the last one filled up with zeros."""
    leaves, structure = jax.tree.flatten(tree)
    parts = []
    for leaf in leaves:
        blocks = math.ceil(leaf.shape[0] / block)
        padding = [(0, blocks * block - leaf.shape[0])] + [(0, 0)] * (leaf.ndim - 1)
        parts.append(jnp.pad(leaf, padding).reshape(blocks, block, *leaf.shape[1:]))
    return jax.tree.unflatten(structure, parts)
