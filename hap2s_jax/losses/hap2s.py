"""The HAP2S loss: hard-aware point-to-set triplets (Yu et al., "Hard-Aware Point-to-Set Deep Metric for
Person Re-identification", ECCV 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from hap2s_jax.distances import Distance
from hap2s_jax.losses.checks import Axis, BlockSize, Reduction
from hap2s_jax.losses.engine import mean_over_anchors, mean_over_rows
from hap2s_jax.losses.pytrees import register_dataclass
from hap2s_jax.losses.rows import AnchorRow, Anchors, Sums
from hap2s_jax.losses.tiles import tiled_sums
from hap2s_jax.losses.weightings import (
    Scalar,
    Weighting,
    as_weighting,
    easy_positive,
    exponential,
    hardest,
    normalised,
    polynomial,
    ranked,
    uniform,
)


@register_dataclass
@dataclass(frozen=True)
class Hap2s:
    """The anchor loss [D(a, S+) - D(a, S-) + margin]_+, or its soft form log(1 + exp(.))."""

    weighting: Weighting
    margin: Scalar
    soft_margin: bool = field(default=False, metadata={"static": True})

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Loss, validity and stats of one anchor; it counts with at least one positive and one negative."""
        distances, positive, negative = row.distances, row.is_positive, row.is_negative
        positive_weights, positive_logs = normalised(self.weighting.positive, distances, positive)
        negative_weights, negative_logs = normalised(self.weighting.negative, distances, negative)
        to_positives = jnp.sum(positive_weights * distances)
        to_negatives = jnp.sum(negative_weights * distances)
        loss, excess = self.penalty(to_positives, to_negatives)
        stats = {
            "active_fraction": excess > 0,
            "point_to_positives": to_positives,
            "point_to_negatives": to_negatives,
            "hardest_positive_distance": jnp.max(jnp.where(positive, distances, 0), initial=0),
            "hardest_negative_distance": jnp.min(jnp.where(negative, distances, jnp.inf), initial=jnp.inf),
            "effective_positives": jnp.exp(-jnp.sum(positive_weights * positive_logs)),
            "effective_negatives": jnp.exp(-jnp.sum(negative_weights * negative_logs)),
        }
        valid = jnp.any(positive) & jnp.any(negative)
        return loss, valid, {name: jnp.where(valid, value, 0) for name, value in stats.items()}

    @property
    def can_tile(self) -> bool:
        """Whether sums over tiles of keys suffice, as they do when each log-weight needs its own distance
        only."""
        return self.weighting.elementwise

    def tiled_sums(
        self, vectors: jax.Array, anchors: Anchors, distance: str, tile: int, with_stats: bool
    ) -> Sums:
        """The engine's sums for a batch that is its own keys."""
        return tiled_sums(self, vectors, anchors, distance, tile, with_stats)

    def penalty(self, to_positives: jax.Array, to_negatives: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The loss for given set distances, and D+ - D- + margin itself."""
        excess = to_positives - to_negatives + self.margin
        return (jax.nn.softplus(excess) if self.soft_margin else jax.nn.relu(excess)), excess


def hap2s_loss(
    embeddings: Any,
    labels: Any,
    *,
    weighting: Any = None,
    margin: Scalar = 0.3,
    soft_margin: bool = False,
    distance: Distance = "euclidean",
    axis_name: Axis = None,
    keys: Any = None,
    key_labels: Any = None,
    ignore_label: int | None = -1,
    sample_weights: Any = None,
    block_size: BlockSize = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Any:
    """HAP2S: each anchor's weighted distance to its positives must undercut that to its negatives by a
    margin.

        D(a, S) = sum_i w_i d(a, i) / sum_i w_i
        loss(a) = max(0, D(a, S+) - D(a, S-) + margin)

    averaged over anchors with at least one positive and one negative. Harder samples weigh more: see
    `exponential` (the default, sigma 0.5) and `polynomial`. The default margin is this project's, not the
    paper's.

    Args:
        embeddings: `[n, d]`, floating point.
        labels: `[n]`, integers.
        weighting: `exponential(sigma)`, `polynomial(alpha)`, `ranked(ratio)`, `uniform()`, `hardest(count)`, or a pair
            of functions `(distances [m], mask [m]) -> log_weights [m]` for positives and negatives.
        margin: in units of the distance; it shifts the soft margin too (give 0 for plain log(1 + exp(D+ -
            D-))).
        soft_margin: log(1 + exp(x)) in place of max(0, x).
        distance: "euclidean", "squared_euclidean" or "cosine".

    The other arguments, the result and the errors are those of `mean_over_anchors`. Classes a thousand times
    tighter than the batch are measured to float32's precision, close pairs of different classes to that of
    the batch's radius (`pairwise_distances`).

    Example:
        >>> import jax.numpy as jnp
        >>> embeddings = jnp.array([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 1.0]])
        >>> float(hap2s_loss(embeddings, jnp.array([0, 0, 1, 1]), margin=3.0).round(4))
        0.9319
    """
    weighting = exponential() if weighting is None else as_weighting(weighting)
    return mean_over_anchors(
        Hap2s(weighting, margin, soft_margin),
        embeddings,
        labels,
        distance=distance,
        axis_name=axis_name,
        keys=keys,
        key_labels=key_labels,
        ignore_label=ignore_label,
        sample_weights=sample_weights,
        block_size=block_size,
        reduction=reduction,
        with_stats=with_stats,
    )


def hap2s_e_loss(
    embeddings: Any,
    labels: Any,
    *,
    sigma: Scalar = 0.5,
    margin: Scalar = 0.3,
    soft_margin: bool = False,
    distance: Distance = "euclidean",
    **arguments: Any,
) -> Any:
    """`hap2s_loss` with `exponential(sigma)` weights; `arguments` are the engine's."""
    settings = {"margin": margin, "soft_margin": soft_margin, "distance": distance}
    return hap2s_loss(embeddings, labels, weighting=exponential(sigma), **settings, **arguments)


def hap2s_p_loss(
    embeddings: Any,
    labels: Any,
    *,
    alpha: Scalar = 10.0,
    margin: Scalar = 0.3,
    soft_margin: bool = False,
    distance: Distance = "euclidean",
    **arguments: Any,
) -> Any:
    """`hap2s_loss` with `polynomial(alpha)` weights; `arguments` are the engine's."""
    settings = {"margin": margin, "soft_margin": soft_margin, "distance": distance}
    return hap2s_loss(embeddings, labels, weighting=polynomial(alpha), **settings, **arguments)


def hap2s_ranked_loss(
    embeddings: Any,
    labels: Any,
    *,
    ratio: Scalar = 0.5,
    margin: Scalar = 0.3,
    soft_margin: bool = False,
    distance: Distance = "euclidean",
    **arguments: Any,
) -> Any:
    """`hap2s_loss` with `ranked(ratio)` weights, this project's own; `arguments` are the engine's."""
    settings = {"margin": margin, "soft_margin": soft_margin, "distance": distance}
    return hap2s_loss(embeddings, labels, weighting=ranked(ratio), **settings, **arguments)


def hap2s_hardest_loss(
    embeddings: Any,
    labels: Any,
    *,
    count: int = 3,
    margin: Scalar = 0.3,
    soft_margin: bool = False,
    distance: Distance = "euclidean",
    **arguments: Any,
) -> Any:
    """`hap2s_loss` with `hardest(count)` weights, between batch-hard and the mean; `arguments` are the engine's."""
    settings = {"margin": margin, "soft_margin": soft_margin, "distance": distance}
    return hap2s_loss(embeddings, labels, weighting=hardest(count), **settings, **arguments)


def batch_hard_loss(
    embeddings: Any,
    labels: Any,
    *,
    margin: Scalar = 0.3,
    soft_margin: bool = False,
    distance: Distance = "euclidean",
    **arguments: Any,
) -> Any:
    """Triplets of the farthest positive and nearest negative (Hermans et al., "In Defense of the Triplet
    Loss", 2017): `hap2s_loss` with `hardest()` weights."""
    settings = {"margin": margin, "soft_margin": soft_margin, "distance": distance}
    return hap2s_loss(embeddings, labels, weighting=hardest(), **settings, **arguments)


def point_to_set_mean_loss(
    embeddings: Any,
    labels: Any,
    *,
    margin: Scalar = 0.3,
    soft_margin: bool = False,
    distance: Distance = "euclidean",
    **arguments: Any,
) -> Any:
    """The unweighted point-to-set loss, the family's other end: `hap2s_loss` with `uniform()` weights."""
    settings = {"margin": margin, "soft_margin": soft_margin, "distance": distance}
    return hap2s_loss(embeddings, labels, weighting=uniform(), **settings, **arguments)


def easy_positive_loss(
    embeddings: Any,
    labels: Any,
    *,
    margin: Scalar = 0.0,
    soft_margin: bool = True,
    distance: Distance = "cosine",
    **arguments: Any,
) -> Any:
    """Triplets of the nearest positive and nearest negative (Xuan et al., "Improved Embeddings with Easy
    Positive Triplet Mining", WACV 2020), which leaves a class free to have several modes."""
    settings = {"margin": margin, "soft_margin": soft_margin, "distance": distance}
    return hap2s_loss(embeddings, labels, weighting=easy_positive(), **settings, **arguments)


def hap2s_from_distances(
    distances: Any,
    is_positive: Any,
    is_negative: Any,
    *,
    weighting: Any = None,
    margin: Scalar = 0.3,
    soft_margin: bool = False,
    axis_name: Axis = None,
    sample_weights: Any = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Any:
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
    distances, is_positive, is_negative = (jnp.asarray(x) for x in (distances, is_positive, is_negative))
    if not jnp.issubdtype(distances.dtype, jnp.floating):
        raise TypeError(f"distances are {distances.dtype}; they should be floating point")
    if distances.ndim != 2 or not distances.shape == is_positive.shape == is_negative.shape:
        raise ValueError(
            f"distances {distances.shape}, is_positive {is_positive.shape} and is_negative {is_negative.shape} "
            "should have one shape [n, m]"
        )
    weighting = exponential() if weighting is None else as_weighting(weighting)
    return mean_over_rows(
        Hap2s(weighting, margin, soft_margin),
        distances,
        is_positive.astype(bool),
        is_negative.astype(bool),
        axis_name=axis_name,
        sample_weights=sample_weights,
        reduction=reduction,
        with_stats=with_stats,
    )
