"""Losses whose terms join pairs of different anchors: MSML and quadruplet.

They see the whole global batch at once and share the engine's calling convention, not its blocks: memory
grows with the square of the batch.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hap2s_jax.distances import Distance, Rows, nan_unless_finite, pair_distances
from hap2s_jax.losses.checks import Axis, Reduction
from hap2s_jax.losses.classes import reduce_samples
from hap2s_jax.losses.engine import problem
from hap2s_jax.losses.rows import Anchors, Keys, relations
from hap2s_jax.losses.weightings import Scalar


def _pairs(vectors: jax.Array, anchors: Anchors, key_vectors: jax.Array, keys: Keys, distance: str) -> tuple:
    positive, negative = relations(anchors, keys)
    rows, others = Rows(vectors, anchors.origins), Rows(key_vectors, keys.origins)
    return pair_distances(rows, others, distance, positive), positive, negative


def _extreme(distances: jax.Array, mask: jax.Array, sign: int, axis: Any = None) -> jax.Array:
    """Largest (sign 1) or smallest (sign -1) masked distance; 0 where there is none."""
    best = sign * jnp.max(jnp.where(mask, sign * distances, -jnp.inf), axis=axis)
    return jnp.where(jnp.any(mask, axis=axis), best, 0)


def msml_loss(
    embeddings: Any,
    labels: Any,
    *,
    margin: Scalar = 0.3,
    distance: Distance = "euclidean",
    axis_name: Axis = None,
    ignore_label: int | None = -1,
    with_stats: bool = False,
) -> Any:
    """Margin sample mining loss (Xiao, Luo, Zhang, 2017): one pair of pairs for the whole batch.

    max(0, largest positive distance - smallest negative distance + margin) over the global batch, 0 where it
    has no positive or no negative pair. There is nothing to average.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        margin: in units of the distance.
        distance: kind of distance.
        axis_name: as in `mean_over_anchors`, and so are `ignore_label` and `with_stats`.
    """
    vectors, anchors, key_vectors, keys = problem(embeddings, labels, distance, axis_name, ignore_label)
    distances, positive, negative = _pairs(vectors, anchors, key_vectors, keys, distance)
    ends = jnp.stack(
        [
            jnp.max(jnp.where(positive, distances, -jnp.inf)),
            jnp.max(jnp.where(negative, -distances, -jnp.inf)),
        ]
    )
    if axis_name is not None:
        # pmax has no derivative; the largest of the gathered ones has.
        ends = jnp.max(lax.all_gather(ends, axis_name).reshape(-1, 2), axis=0)
    valid = jnp.all(ends > -jnp.inf)
    to_positive, to_negative = jnp.where(valid, ends, 0) * jnp.array([1, -1])
    value = jnp.where(valid, jax.nn.relu(to_positive - to_negative + margin), 0) + nan_unless_finite(
        key_vectors
    )
    if axis_name is not None:
        # Equal on every device already; the mean says so to shard_map's check_vma.
        value, to_positive, to_negative = lax.pmean((value, to_positive, to_negative), axis_name)
    if not with_stats:
        return value
    stats = {
        "active_fraction": value > 0,
        "hardest_positive_distance": to_positive,
        "hardest_negative_distance": to_negative,
        "valid_anchors": lax.psum(jnp.sum(anchors.valid), axis_name) if axis_name else jnp.sum(anchors.valid),
    }
    return value, {name: lax.stop_gradient(s.astype(jnp.float32)) for name, s in stats.items()}


def quadruplet_loss(
    embeddings: Any,
    labels: Any,
    *,
    margin: Scalar = 0.3,
    second_margin: Scalar = 0.15,
    distance: Distance = "euclidean",
    axis_name: Axis = None,
    ignore_label: int | None = -1,
    sample_weights: Any = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Any:
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
        axis_name: as in `mean_over_anchors`, and so are `ignore_label`, `sample_weights`, `reduction` and
            `with_stats`.
    """
    vectors, anchors, key_vectors, keys = problem(embeddings, labels, distance, axis_name, ignore_label)
    distances, positive, negative = _pairs(vectors, anchors, key_vectors, keys, distance)
    farthest, nearest = _extreme(distances, positive, 1, 1), _extreme(distances, negative, -1, 1)
    between, between_exists = _nearest_others(key_vectors, keys, distance, anchors.labels)
    valid = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    second = jnp.where(between_exists, jax.nn.relu(farthest - between + second_margin), 0)
    values = jax.nn.relu(farthest - nearest + margin) + second + nan_unless_finite(key_vectors)
    stats = {
        "active_fraction": values > 0,
        "hardest_positive_distance": farthest,
        "hardest_negative_distance": nearest,
    }
    settings = {"axis_name": axis_name, "sample_weights": sample_weights, "reduction": reduction}
    return reduce_samples(values, valid, stats, with_stats=with_stats, **settings)


def _nearest_others(
    key_vectors: jax.Array, keys: Keys, distance: str, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """For each label `[n]`, the smallest distance of two keys of different classes, neither of that label."""
    rows = Rows(key_vectors)
    distances = pair_distances(rows, rows, distance)
    other = (keys.labels[:, None] != keys.labels[None, :]) & keys.valid[:, None] & keys.valid[None, :]
    # A key's nearest key of another class, and its nearest of yet another: one of the two is not of the label
    # asked.
    apart = jnp.where(other, distances, jnp.inf)
    place = jnp.argmin(apart, axis=1)
    nearest, nearest_label = jnp.take_along_axis(apart, place[:, None], axis=1)[:, 0], keys.labels[place]
    rest = jnp.where(keys.labels[None, :] == nearest_label[:, None], jnp.inf, apart)
    second = jnp.min(rest, axis=1)
    ends = jnp.where(nearest_label[None, :] == labels[:, None], second[None, :], nearest[None, :])
    ends = jnp.where(keys.labels[None, :] == labels[:, None], jnp.inf, ends)
    best = jnp.min(ends, axis=1)
    return jnp.where(jnp.isfinite(best), best, 0), jnp.isfinite(best)
