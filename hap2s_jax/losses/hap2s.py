"""The HAP2S loss: hard-aware point-to-set triplets (Yu et al., "Hard-Aware Point-to-Set Deep Metric for
Person Re-identification", ECCV 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from hap2s_jax.distances import Distance
from hap2s_jax.losses.engine import Axis, BlockSize, Reduction, mean_over_anchors
from hap2s_jax.losses.rows import AnchorRow
from hap2s_jax.losses.weightings import (
    Scalar,
    Weighting,
    as_weighting,
    exponential,
    hardest,
    normalised,
    polynomial,
    uniform,
)


@jax.tree_util.register_dataclass
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
        weighting: `exponential(sigma)`, `polynomial(alpha)`, `uniform()`, `hardest()`, or a pair of functions
            `(distances [m], mask [m]) -> log_weights [m]` for positives and negatives.
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
