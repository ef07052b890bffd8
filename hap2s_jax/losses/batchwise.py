"""Losses whose terms join pairs of different anchors: MSML and quadruplet.

They need one or two pairs of each anchor, which `selection` finds a block of anchors at a time.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hap2s_jax.distances import Distance, check_distance, check_embeddings
from hap2s_jax.losses.classes import call_options, everyones, over_devices
from hap2s_jax.losses.engine import prepare, reduced
from hap2s_jax.losses.rows import Axis, Batch, Options, Result, RowLosses, SampleCall
from hap2s_jax.losses.selection import Pairs, chosen_pairs
from hap2s_jax.losses.weightings import Scalar, check_range


def prepared(
    embeddings: ArrayLike, labels: ArrayLike, distance: str, call: SampleCall
) -> tuple[Batch, Options]:
    """The batch and the call's options."""
    vectors, labels = check_embeddings("embeddings", embeddings, "labels", labels)
    options, weights = call_options(call, len(labels), check_distance(distance))
    return prepare(vectors, labels, None, weights, options), options


def _pairs(
    embeddings: ArrayLike, labels: ArrayLike, distance: str, other: bool, call: SampleCall
) -> tuple[Batch, Pairs, Options]:
    """The batch, its deciding pairs, and the call's options."""
    batch, options = prepared(embeddings, labels, distance, call)
    # The stats of these losses need no other pairs.
    return batch, chosen_pairs(batch, options._replace(with_stats=False), (1, -1), other=other), options


def msml_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: Scalar = 0.3,
    distance: Distance = "euclidean",
    **call: Unpack[SampleCall],
) -> Result:
    """Margin sample mining loss (Xiao, Luo, Zhang, 2017): one pair of pairs for the whole batch.

    max(0, largest positive distance - smallest negative distance + margin) over the global batch, 0 where it
    has no positive or no negative pair. It is every sample's loss, so that there is nothing to average.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        margin: in units of the distance.
        distance: kind of distance.
        **call: `axis_name`, `ignore_label`, `sample_weights`, `reduction`, `with_stats`, as in `mean_over_anchors`.
    """
    check_range("margin", margin, positive=None)
    batch, pairs, options = _pairs(embeddings, labels, distance, False, call)
    far = jnp.where(pairs.has_positive, pairs.to_positive, -jnp.inf)
    near = jnp.where(pairs.has_negative, pairs.to_negative, jnp.inf)
    # pmax has no derivative; the largest of the gathered ones has.
    to_positive = jnp.max(over_devices(far, options.axis_name))
    to_negative = jnp.min(over_devices(near, options.axis_name))
    both = (to_positive > -jnp.inf) & (to_negative < jnp.inf)
    to_positive, to_negative = jnp.where(both, to_positive, 0), jnp.where(both, to_negative, 0)
    value = jax.nn.relu(to_positive - to_negative + jnp.asarray(margin, far.dtype))
    valid = batch.anchors.valid & both
    stats = {
        "active_fraction": value > 0,
        "hardest_positive_distance": to_positive,
        "hardest_negative_distance": to_negative,
    }
    return reduced(everyones(value, valid, stats), batch.anchors.weight, options)


def quadruplet_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: Scalar = 0.3,
    second_margin: Scalar = 0.15,
    distance: Distance = "euclidean",
    **call: Unpack[SampleCall],
) -> Result:
    """Quadruplet loss (Chen et al., "Beyond Triplet Loss", CVPR 2017) with the hardest of each kind.

    max(0, d(a, p) - d(a, n) + margin) + max(0, d(a, p) - d(n1, n2) + second_margin), p the farthest positive,
    n the nearest negative, n1 and n2 the nearest two samples of different classes, neither the anchor's; mean
    over anchors with a positive and a negative. Without a third class there is no second term. The margins
    are ours; the paper sets them from the batch and asks for the second to be the smaller.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        margin: of the first term, in units of the distance.
        second_margin: of the second.
        distance: kind of distance.
        **call: `axis_name`, `ignore_label`, `sample_weights`, `reduction`, `with_stats`, as in `mean_over_anchors`.
    """
    check_range("margin", margin, positive=None)
    check_range("second_margin", second_margin, positive=None)
    batch, pairs, options = _pairs(embeddings, labels, distance, True, call)
    farthest, dtype = pairs.to_positive, pairs.to_positive.dtype
    between = _nearest_others(pairs, batch.anchors.labels, options.axis_name)
    first = jax.nn.relu(farthest - pairs.to_negative + jnp.asarray(margin, dtype))
    exists = jnp.isfinite(between)
    second = jax.nn.relu(farthest - jnp.where(exists, between, 0) + jnp.asarray(second_margin, dtype))
    values = jnp.where(pairs.valid, first + jnp.where(exists, second, 0), 0)
    stats = {
        "active_fraction": values > 0,
        "hardest_positive_distance": farthest,
        "hardest_negative_distance": pairs.to_negative,
    }
    return reduced(RowLosses(values, pairs.valid.astype(dtype), stats), batch.anchors.weight, options)


def _nearest_others(pairs: Pairs, labels: jax.Array, axis_name: Axis) -> jax.Array:
    """For each label `[n]`, the smallest distance between two keys of two other classes; infinite if there are none.

    Each key has offered its nearest key of another class and its nearest of yet another. The nearest pair of all serves
    every label but its own two, and for each of these the nearest pair without it.
    """
    nearest = over_devices(jnp.where(pairs.has_negative, pairs.to_negative, jnp.inf), axis_name)
    other = over_devices(pairs.to_other, axis_name)
    own, partner = over_devices(labels, axis_name), over_devices(pairs.negative_label, axis_name)

    def without(label: jax.Array) -> jax.Array:
        offered = jnp.where(own == label, jnp.inf, jnp.where(partner == label, other, nearest))
        return offered[jnp.argmin(offered)]

    place = jnp.argmin(nearest)
    of_key, of_partner = without(own[place]), without(partner[place])
    best = jnp.where(labels == partner[place], of_partner, nearest[place])
    return jnp.where(labels == own[place], of_key, best)
