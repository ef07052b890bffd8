"""Triplet losses over all, chosen or drawn triplets of an anchor, and the margin loss with its sampling.

All take O(m log m) per anchor and no [m, m] matrix: negatives are sorted once, and a positive finds its
place. Draws are made from (key, the anchor's number in the global batch), so they do not depend on devices or
blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.distances import COMPUTED_IN, FLOAT32, Distance, check_embeddings, clean_rows
from hap2s_jax.losses.by_positives import by_positives
from hap2s_jax.losses.engine import counted, mean_over_anchors
from hap2s_jax.losses.pytrees import register_dataclass
from hap2s_jax.losses.rows import AnchorRow, EngineCall, Result
from hap2s_jax.losses.selection import first_largest
from hap2s_jax.losses.weightings import Scalar, check_range


def _sorted_negatives(row: AnchorRow) -> tuple[jax.Array, jax.Array]:
    """Distances of the negatives ascending, then infinities, `[m]`; and how many there are."""
    return jnp.sort(jnp.where(row.is_negative, row.distances, jnp.inf)), jnp.sum(row.is_negative)


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
        # A positive is active against the negatives nearer than its reach: so many, of such a total distance.
        active = jnp.searchsorted(negatives, reach, side="left")
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
        place = jnp.searchsorted(negatives, row.distances, side="right")
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

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Loss and validity of one anchor; it counts with a positive and a negative."""
        draws = jax.random.uniform(jax.random.fold_in(self.key, row.index), (2, *row.distances.shape))
        positive = row.distances[jnp.argmax(jnp.where(row.is_positive, draws[0], -1))]
        negative = row.distances[jnp.argmax(jnp.where(row.is_negative, draws[1], -1))]
        valid = jnp.any(row.is_positive) & jnp.any(row.is_negative)
        return jax.nn.relu(positive - negative + jnp.asarray(self.margin, positive.dtype)), valid


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
    loss = RandomTriplet(margin, _key_data(key))
    return mean_over_anchors(loss, embeddings, labels, distance=distance, **arguments)


def _key_data(key: jax.Array | None) -> jax.Array:
    # Raw key data: an integer leaf passes through custom rules and every mapping like any other array.
    key = jax.random.key(0) if key is None else key
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


@register_dataclass
@dataclass(frozen=True)
class Margin:
    """Pairs on either side of a learnt boundary; each positive brings a negative drawn evenly over
    distances."""

    beta: jax.Array  # [c], or [] for one boundary
    alpha: Scalar
    nu: Scalar
    cutoff: Scalar
    key: jax.Array
    dimensions: int = field(metadata={"static": True})

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Loss of one anchor and its number of active pairs."""
        beta = self.beta if self.beta.ndim == 0 else self.beta[row.label]
        chosen = row.distances[self.draw(row)]
        both = row.is_positive & jnp.any(row.is_negative)
        pull = jnp.where(both, jax.nn.relu(row.distances - beta + self.alpha), 0)
        push = jnp.where(both, jax.nn.relu(beta - chosen + self.alpha), 0)
        active = jnp.sum(pull > 0) + jnp.sum(push > 0)
        return jnp.sum(pull + push) + self.nu * beta * jnp.sum(both).astype(beta.dtype), active

    def draw(self, row: AnchorRow) -> jax.Array:
        """For every key the index of a drawn negative `[m]`, uniform in distance on the unit sphere up to
        1.4."""
        distances = lax.stop_gradient(row.distances)
        near = jnp.clip(distances, self.cutoff, 1.99)
        log_density = (self.dimensions - 2) * jnp.log(near) + (self.dimensions - 3) / 2 * jnp.log1p(
            -(near**2) / 4
        )
        # The paper's code leaves out negatives beyond 1.4; where there are no others, all may be drawn.
        candidates = row.is_negative & (distances < 1.4)
        candidates = jnp.where(jnp.any(candidates), candidates, row.is_negative)
        logits = jnp.where(candidates, -log_density, -jnp.inf)
        top = jnp.max(logits)
        shares = jnp.where(candidates, jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0)), 0)
        steps = jnp.cumsum(shares)
        draws = jax.random.uniform(jax.random.fold_in(self.key, row.index), distances.shape, distances.dtype)
        place = jnp.searchsorted(steps, draws * steps[-1], side="right")
        # Rounding may place a draw at the very end of the sum: that is the last candidate's.
        last = distances.shape[0] - 1 - jnp.argmax(candidates[::-1])
        return jnp.minimum(place, last)


def margin_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    params: Mapping[str, ArrayLike] | None = None,
    alpha: Scalar = 0.2,
    nu: Scalar = 0.0,
    cutoff: Scalar = 0.5,
    key: jax.Array | None = None,
    **arguments: Unpack[EngineCall],
) -> Result:
    """Margin loss with distance-weighted sampling (Wu et al., "Sampling Matters", ICCV 2017).

    For each positive pair max(0, d_p - beta + alpha), and for a negative drawn with probability inverse to
    the density of distances on the sphere, max(0, beta - d_n + alpha); summed and divided by the number of
    pairs above 0. pytorch-metric-learning's MarginLoss divides in the same way.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`, 0 to c - 1 where beta is per class.
        params: {"beta": `[c]` or `[]`}, the boundaries, to be learnt; 1.2 where not given.
        alpha: half the width of the boundary.
        nu: weight of the penalty on beta.
        cutoff: distances below it are drawn as if they were it.
        key: random key for this step, see `random_triplet_loss`.
        **arguments: the engine's, see `mean_over_anchors`; further `keys` are normalised here too.
    """
    check_range("alpha", alpha, positive=None)
    check_range("nu", nu, positive=False)
    check_range("cutoff", cutoff)
    beta = jnp.asarray(1.2 if params is None else params["beta"])
    ignore_label = arguments.get("ignore_label", -1)
    vectors, labels = check_embeddings("embeddings", embeddings, "labels", labels)
    given, given_labels = arguments.get("keys"), arguments.get("key_labels")
    if given is not None or given_labels is not None:
        keys, key_labels = check_embeddings("keys", given, "key_labels", given_labels)
        arguments["keys"] = _unit_rows(keys, key_labels, ignore_label)
    loss = Margin(beta, alpha, nu, cutoff, _key_data(key), vectors.shape[-1])
    return mean_over_anchors(loss, _unit_rows(vectors, labels, ignore_label), labels, **arguments)


def init_margin_params(key: jax.Array, num_classes: int, embedding_dim: int) -> dict[str, jax.Array]:
    """The boundaries of `margin_loss`, one per class, at the paper's 1.2."""
    del key, embedding_dim
    return {"beta": jnp.full(num_classes, 1.2)}


def _unit_rows(embeddings: jax.Array, labels: jax.Array, ignore_label: int | None) -> jax.Array:
    """Rows `[n, d]` of unit length; ignored ones are zero, so that a NaN there reaches no gradient."""
    vectors = embeddings.astype(COMPUTED_IN.get(embeddings.dtype, FLOAT32))
    return clean_rows(vectors, counted(labels, ignore_label), "cosine", None)
