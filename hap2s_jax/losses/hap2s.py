"""The HAP2S loss: hard-aware point-to-set triplets (Yu et al., "Hard-Aware Point-to-Set Deep Metric for
Person Re-identification", ECCV 2018), and the losses that differ from it in their weights alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Unpack, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hap2s_jax.distances import Distance
from hap2s_jax.losses.engine import mean_over_anchors
from hap2s_jax.losses.pytrees import register_dataclass
from hap2s_jax.losses.rows import (
    AnchorRow,
    Batch,
    EngineArguments,
    EngineCall,
    Options,
    Result,
    RowLosses,
    SetStats,
    Stats,
)
from hap2s_jax.losses.selection import chosen_pairs
from hap2s_jax.losses.tiles import tiled_sums
from hap2s_jax.losses.weightings import (
    LogWeights,
    Scalar,
    Weighting,
    as_weighting,
    check_range,
    easy_positive,
    exponential,
    hardest,
    normalised,
    polynomial,
    ranked,
    uniform,
)

_HAP2S_E = exponential()


@register_dataclass
@dataclass(frozen=True)
class Hap2s:
    """The anchor loss [D(a, S+) - D(a, S-) + margin]_+, or its soft form log(1 + exp(.))."""

    weighting: Weighting
    margin: Scalar
    soft_margin: bool = field(default=False, metadata={"static": True})
    with_anchor: bool = field(default=False, metadata={"static": True})

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array, SetStats]:
        """Loss, validity and stats of one anchor; it counts with at least one positive and one negative."""
        distances, positive, negative = row.distances, row.is_positive, row.is_negative
        positive_weights, positive_logs = normalised(self.weighting.positive, distances, positive)
        negative_weights, negative_logs = normalised(self.weighting.negative, distances, negative)
        to_positives = jnp.sum(positive_weights * distances)  # D(a, S+)
        to_negatives = jnp.sum(negative_weights * distances)  # D(a, S-)
        loss, excess = self.penalty(to_positives, to_negatives)
        stats = SetStats(
            excess > 0,
            to_positives,
            to_negatives,
            jnp.max(jnp.where(positive, distances, -jnp.inf), initial=-jnp.inf),
            jnp.min(jnp.where(negative, distances, jnp.inf), initial=jnp.inf),
            jnp.exp(-jnp.sum(positive_weights * positive_logs)),
            jnp.exp(-jnp.sum(negative_weights * negative_logs)),
        )
        return loss, jnp.any(positive) & jnp.any(negative), stats

    def penalty(self, to_positives: jax.Array, to_negatives: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The loss for given set distances, and D+ - D- + margin itself."""
        excess = to_positives - to_negatives + jnp.asarray(self.margin, to_positives.dtype)
        return (jax.nn.softplus(excess) if self.soft_margin else jax.nn.relu(excess)), excess

    def chosen_losses(self, batch: Batch, options: Options) -> RowLosses:
        """The losses `[n]` of all anchors where one pair of each set decides."""
        signs = self.weighting.extremes or (1, -1)
        pairs = chosen_pairs(batch, options, signs)
        loss, excess = self.penalty(pairs.to_positive, pairs.to_negative)
        one = jnp.ones_like(loss)
        stats = {}
        if pairs.means is not None and pairs.farthest is not None:
            sets = SetStats(excess > 0, *pairs[1:3], pairs.farthest, pairs.to_negative, one, one)
            stats = {**pairs.means._asdict(), **sets._asdict()}
        return RowLosses(jnp.where(pairs.valid, loss, 0), pairs.valid.astype(loss.dtype), stats)

    # For elementwise log-weights, and a batch that is its own keys.
    tiled_sums = tiled_sums


class PenaltyArguments(EngineArguments, total=False):
    """Keyword arguments of all losses of this module."""

    margin: Scalar
    soft_margin: bool
    with_anchor: bool
    distance: Distance


class Hap2sArguments(PenaltyArguments, total=False):
    """Keyword arguments of `hap2s_loss`."""

    weighting: Weighting | tuple[LogWeights, LogWeights] | None


class RelativeCall(PenaltyArguments, total=False):
    """`PenaltyArguments` and `with_stats`, for functions without overloads."""

    with_stats: bool


@overload
def hap2s_loss(  # pyright: ignore[reportOverlappingOverload] - a bool may be either
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    with_stats: Literal[True],
    **arguments: Unpack[Hap2sArguments],
) -> tuple[jax.Array, Stats]: ...
@overload
def hap2s_loss(
    embeddings: ArrayLike, labels: ArrayLike, *, with_stats: bool = False, **arguments: Unpack[Hap2sArguments]
) -> jax.Array: ...


def hap2s_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    weighting: Weighting | tuple[LogWeights, LogWeights] | None = None,
    margin: Scalar = 0.3,
    soft_margin: bool = False,
    with_anchor: bool = False,
    distance: Distance = "euclidean",
    with_stats: bool = False,
    **engine: Unpack[EngineArguments],
) -> Result:
    """HAP2S: each anchor's weighted distance to its positives must undercut that to its negatives by a
    margin.

        D(a, S) = sum_i w_i d(a, i) / sum_i w_i
        loss(a) = max(0, D(a, S+) - D(a, S-) + margin)

    averaged over anchors with at least one positive and one negative. Harder samples weigh more: see
    `exponential` (the default, sigma 0.5) and `polynomial`. The default margin is this project's, not the
    paper's.

    Args:
        embeddings: `[n, d]`, floating point. Normalise them, or choose sigma in units of their distances.
        labels: `[n]`, integers.
        weighting: `exponential(sigma)`, `polynomial(alpha)`, `ranked(ratio)`, `uniform()`, `hardest(count)`, or a pair
            of functions `(distances [m], mask [m]) -> log_weights [m]` for positives and negatives.
        margin: in units of the distance; it shifts the soft margin too (give 0 for plain log(1 + exp(D+ -
            D-))).
        soft_margin: log(1 + exp(x)) in place of max(0, x).
        with_anchor: count the anchor among its own positives; it then needs a negative only. See
            `weighted_regularised_triplet_loss`.
        distance: "euclidean", "squared_euclidean", "cosine" or "negative_dot".
        with_stats: return `(value, stats)`, a dict of float32 scalars averaged over valid anchors.
        **engine: `axis_name`, `keys`, `key_labels`, `ignore_label`, `sample_weights`, `block_size`, `reduction`: these,
            the result and the errors are those of `mean_over_anchors`.

    Classes a thousand times tighter than the batch are measured to float32's precision, close pairs of different
    classes to that of the batch's radius (`pairwise_distances`).

    Example:
        >>> import jax.numpy as jnp
        >>> embeddings = jnp.array([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 1.0]])
        >>> float(hap2s_loss(embeddings, jnp.array([0, 0, 1, 1]), margin=3.0).round(4))
        0.9319
    """
    check_range("margin", margin, positive=None)
    weighting = _HAP2S_E if weighting is None else as_weighting(weighting)
    if weighting.nonnegative and distance == "negative_dot":
        raise ValueError(
            "polynomial weights need distances of at least 0; choose another distance than negative_dot"
        )
    if with_anchor:  # the search for the deciding pair leaves the anchor out
        weighting = replace(weighting, extremes=None)
    loss = Hap2s(weighting, margin, bool(soft_margin), bool(with_anchor))
    return mean_over_anchors(loss, embeddings, labels, distance=distance, with_stats=with_stats, **engine)


def hap2s_e_loss(
    embeddings: ArrayLike, labels: ArrayLike, *, sigma: Scalar = 0.5, **arguments: Unpack[RelativeCall]
) -> Result:
    """`hap2s_loss` with `exponential(sigma)` weights."""
    return hap2s_loss(embeddings, labels, weighting=exponential(sigma), **arguments)


def hap2s_p_loss(
    embeddings: ArrayLike, labels: ArrayLike, *, alpha: Scalar = 10.0, **arguments: Unpack[RelativeCall]
) -> Result:
    """`hap2s_loss` with `polynomial(alpha)` weights."""
    return hap2s_loss(embeddings, labels, weighting=polynomial(alpha), **arguments)


def hap2s_ranked_loss(
    embeddings: ArrayLike, labels: ArrayLike, *, ratio: Scalar = 0.5, **arguments: Unpack[RelativeCall]
) -> Result:
    """`hap2s_loss` with `ranked(ratio)` weights, this project's own."""
    return hap2s_loss(embeddings, labels, weighting=ranked(ratio), **arguments)


def hap2s_hardest_loss(
    embeddings: ArrayLike, labels: ArrayLike, *, count: int = 3, **arguments: Unpack[RelativeCall]
) -> Result:
    """`hap2s_loss` with `hardest(count)` weights, between batch-hard and the mean."""
    return hap2s_loss(embeddings, labels, weighting=hardest(count), **arguments)


def weighted_regularised_triplet_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    distance: Distance = "euclidean",
    **arguments: Unpack[EngineCall],
) -> Result:
    """AGW's weighted regularised triplet (Ye et al., "Deep Learning for Person Re-identification: A Survey and
    Outlook", TPAMI 2021): `hap2s_e_loss` of sigma 1 with log(1 + exp(D+ - D-)), the anchor among its own positives.

    The public code adds 1e-6 to each sum of weights. That is nothing for normalised embeddings, but where all negatives
    are farther than about 10 it takes their weights away; here they keep them. There an anchor without a negative
    counts, too.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        distance: "euclidean" in the paper.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    settings = RelativeCall(margin=0.0, soft_margin=True, with_anchor=True, distance=distance, **arguments)
    return hap2s_e_loss(embeddings, labels, sigma=1.0, **settings)


def batch_hard_loss(embeddings: ArrayLike, labels: ArrayLike, **arguments: Unpack[RelativeCall]) -> Result:
    """Triplets of the farthest positive and nearest negative (Hermans et al., "In Defense of the Triplet
    Loss", 2017): `hap2s_loss` with `hardest()` weights."""
    return hap2s_loss(embeddings, labels, weighting=hardest(), **arguments)


def point_to_set_mean_loss(
    embeddings: ArrayLike, labels: ArrayLike, **arguments: Unpack[RelativeCall]
) -> Result:
    """The unweighted point-to-set loss, the family's other end: `hap2s_loss` with `uniform()` weights."""
    return hap2s_loss(embeddings, labels, weighting=uniform(), **arguments)


def easy_positive_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: Scalar = 0.0,
    soft_margin: bool = True,
    distance: Distance = "cosine",
    **arguments: Unpack[EngineCall],
) -> Result:
    """Triplets of the nearest positive and nearest negative (Xuan et al., "Improved Embeddings with Easy
    Positive Triplet Mining", WACV 2020), which leaves a class free to have several modes."""
    settings = RelativeCall(margin=margin, soft_margin=soft_margin, distance=distance, **arguments)
    return hap2s_loss(embeddings, labels, weighting=easy_positive(), **settings)
