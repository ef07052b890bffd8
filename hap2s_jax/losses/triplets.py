"""Triplet losses over all, chosen or drawn triplets of an anchor, in no more than O(m log m) and without an [m, m]
matrix: where many positives ask, negatives are sorted once, and each positive finds its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.distances import Distance
from hap2s_jax.losses.by_positives import by_positives
from hap2s_jax.losses.draws import drawn, key_data, uniforms
from hap2s_jax.losses.engine import mean_over_anchors
from hap2s_jax.losses.places import places_among
from hap2s_jax.losses.pytrees import register_dataclass
from hap2s_jax.losses.rows import AnchorRow, EngineCall, LossTree, Result
from hap2s_jax.losses.selection import first_largest
from hap2s_jax.losses.weightings import Scalar, check_range


def _sorted_negatives(row: AnchorRow) -> tuple[jax.Array, jax.Array]:
    """Distances of the negatives ascending, then infinities, `[m]`; and how many there are."""
    return jnp.sort(jnp.where(row.is_negative, row.distances, jnp.inf)), jnp.sum(
        row.is_negative, dtype=jnp.int32
    )


@register_dataclass
@dataclass(frozen=True)
class BatchAll:
    """Sum of [d_p - d_n + margin]_+ over all triplets of the anchor, and the number of those above 0."""

    margin: Scalar

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Loss of one anchor and its number of active triplets."""
        negatives, _ = _sorted_negatives(row)
        margin = jnp.asarray(self.margin, negatives.dtype)
        reach = jnp.where(row.is_positive, row.distances + margin, -jnp.inf)
        # A positive is active against all negatives nearer than its distance plus the margin: their number, and the sum
        # of their distances.
        active = places_among(negatives, reach)
        totals = jnp.concatenate([jnp.zeros(1, negatives.dtype), jnp.cumsum(_finite(negatives))])
        reached = active.astype(negatives.dtype) * (row.distances + margin) - totals[active]
        return jnp.sum(jnp.where(row.is_positive, reached, 0)), jnp.sum(active)

    def of_rows(self, rows: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """The same of several anchors."""

        def counts(gap: jax.Array, rows: AnchorRow) -> tuple[jax.Array, jax.Array]:
            reach = jnp.where(
                gap < jnp.inf, gap + jnp.asarray(lax.stop_gradient(self.margin), gap.dtype), -jnp.inf
            )
            active = (rows.is_negative & (rows.distances < reach[:, None])).astype(gap.dtype)
            return jnp.sum(active, axis=1), active

        return by_positives(rows, self.margin, counts, self)


def _finite(values: jax.Array) -> jax.Array:
    return jnp.where(jnp.isinf(values), 0, values)


def batch_all_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: Scalar = 0.3,
    distance: Distance = "euclidean",
    **arguments: Unpack[EngineCall],
) -> Result:
    """Triplet loss over all triplets (Hermans et al. 2017, "batch all", its mean over active triplets).

    Sum of max(0, d_p - d_n + margin) over the triplets of the batch, divided by the number of those above 0:
    pytorch-metric-learning's TripletMarginLoss with its default AvgNonZeroReducer.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        margin: in units of the distance.
        distance: kind of distance.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("margin", margin, positive=None)
    return mean_over_anchors(BatchAll(margin), embeddings, labels, distance=distance, **arguments)


@register_dataclass
@dataclass(frozen=True)
class SemiHard:
    """For each positive, the nearest negative that is farther than it (the farthest if none is)."""

    margin: Scalar

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Loss of one anchor and its number of positives; it counts with a positive and a negative."""
        negatives, count = _sorted_negatives(row)
        place = places_among(negatives, row.distances, "right")
        chosen = _finite(negatives)[jnp.clip(place, 0, jnp.maximum(count - 1, 0))]
        losses = jax.nn.relu(row.distances - chosen + jnp.asarray(self.margin, chosen.dtype))
        return jnp.sum(jnp.where(row.is_positive, losses, 0)), jnp.where(
            count > 0, jnp.sum(row.is_positive), 0
        )

    def of_rows(self, rows: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """The same of several anchors."""
        far = jnp.where(rows.is_negative, lax.stop_gradient(rows.distances), -jnp.inf)
        farthest = jnp.max(far, axis=1)

        def counts(gap: jax.Array, rows: AnchorRow) -> tuple[jax.Array, jax.Array]:
            beyond = jnp.min(jnp.where(far > gap[:, None], far, jnp.inf), axis=1)
            chosen = jnp.where(beyond < jnp.inf, beyond, farthest)
            place, exists = first_largest(-jnp.abs(far - chosen[:, None]), rows.is_negative)
            excess = gap - chosen + jnp.asarray(lax.stop_gradient(self.margin), gap.dtype)
            active = (exists & (gap < jnp.inf) & (excess > 0)).astype(gap.dtype)
            places = jnp.arange(far.shape[1], dtype=place.dtype)[None, :]
            return active, jnp.where(places == place[:, None], active[:, None], 0)

        loss, _ = by_positives(rows, self.margin, counts, self)
        return loss, jnp.where(jnp.any(rows.is_negative, axis=1), jnp.sum(rows.is_positive, axis=1), 0)


def semi_hard_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: Scalar = 0.2,
    distance: Distance = "squared_euclidean",
    **arguments: Unpack[EngineCall],
) -> Result:
    """Triplet loss with semi-hard negatives (Schroff et al., FaceNet, CVPR 2015).

    For each positive pair max(0, d_p - d_n + margin) with the nearest negative that is farther than the
    positive, or the farthest negative where none is; mean over positive pairs. FaceNet's embeddings are
    normalised and its distances squared. (pytorch-metric-learning's semi-hard miner keeps all such negatives
    instead.)

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        margin: in units of the distance.
        distance: "squared_euclidean" in the paper.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("margin", margin, positive=None)
    return mean_over_anchors(SemiHard(margin), embeddings, labels, distance=distance, **arguments)


@register_dataclass
@dataclass(frozen=True)
class RandomTriplet:
    """One positive and one negative drawn at random."""

    margin: Scalar
    key: jax.Array

    def of_rows(self, rows: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Losses of anchors `[n]`, and which count: those with a positive and a negative."""
        distances = rows.distances
        draws = uniforms(self.key, rows.index, 2, distances.dtype)
        gaps = []
        for number, mask in enumerate((rows.is_positive, rows.is_negative)):
            place = drawn(mask.astype(distances.dtype), draws[:, number : number + 1])
            gaps.append(jnp.take_along_axis(distances, place, axis=1)[:, 0])
        valid = jnp.any(rows.is_positive, axis=1) & jnp.any(rows.is_negative, axis=1)
        return jax.nn.relu(gaps[0] - gaps[1] + jnp.asarray(self.margin, distances.dtype)), valid


def random_triplet_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: Scalar = 0.3,
    distance: Distance = "euclidean",
    key: jax.Array | None = None,
    **arguments: Unpack[EngineCall],
) -> Result:
    """Triplet loss with one positive and one negative per anchor, drawn uniformly.

    Mean of max(0, d_p - d_n + margin) over anchors with both.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        margin: in units of the distance.
        distance: kind of distance.
        key: random key for this step; without one, the same places of the batch are drawn each time, which is
            still random where batches are.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("margin", margin, positive=None)
    loss: LossTree = RandomTriplet(margin, key_data(key))
    return mean_over_anchors(loss, embeddings, labels, distance=distance, **arguments)
