"""Losses over an anchor's pairs: contrastive, lifted structure, SupCon, NT-Xent, N-pair.

Each is a function of one anchor's row; `mean_over_anchors` does the rest. Similarities are cosines, 1 -
distance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.distances import Distance, mean_of
from hap2s_jax.losses.engine import mean_over_anchors
from hap2s_jax.losses.pytrees import register_dataclass
from hap2s_jax.losses.rows import AnchorRow, EngineCall, Result
from hap2s_jax.losses.weightings import Scalar, check_range


def log_sum_exp(values: jax.Array, mask: jax.Array, *, with_one: bool = False) -> jax.Array:
    """Logarithm of the masked sum of exponentials (plus 1 on request); a huge negative number for an empty
    set."""
    # A finite number instead of -inf: an empty set then has a zero gradient, not NaN.
    kept = jnp.where(mask, values, -1e30)
    top = lax.stop_gradient(jnp.max(kept, initial=0.0 if with_one else -1e30))
    total = jnp.sum(jnp.where(mask, jnp.exp(kept - top), 0)) + (jnp.exp(-top) if with_one else 0)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)) + top, -1e30)


def log_sums_apart(values: jax.Array, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`log_sum_exp` `[n]` over each of two disjoint masks of rows `[n, m]`, which share their exponentials."""
    tops = [
        lax.stop_gradient(jnp.max(jnp.where(mask, values, -1e30), axis=1, initial=-1e30))
        for mask in (first, second)
    ]
    shifted = values - jnp.where(first, tops[0][:, None], tops[1][:, None])
    terms = jnp.exp(jnp.where(first | second, shifted, 0))
    sums = []
    for mask, top in zip((first, second), tops, strict=True):
        total = jnp.sum(jnp.where(mask, terms, 0), axis=1)
        sums.append(jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)) + top, -1e30))
    return sums[0], sums[1]


def either(row: AnchorRow) -> jax.Array:
    """Whether the anchor has a pair of either kind."""
    return jnp.any(row.is_positive | row.is_negative)


def both(row: AnchorRow) -> jax.Array:
    """Whether the anchor has a positive and a negative."""
    return jnp.any(row.is_positive) & jnp.any(row.is_negative)


@register_dataclass
@dataclass(frozen=True)
class Contrastive:
    """Mean over positives of d^p / p plus mean over negatives of [margin - d]_+^p / p."""

    margin: Scalar
    power: int = field(metadata={"static": True})
    active_only: bool = field(default=False, metadata={"static": True})

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Loss and validity of one anchor; it counts with at least one pair of either kind."""
        pull = row.distances**self.power
        push = jax.nn.relu(self.margin - row.distances) ** self.power
        near = row.is_negative & (push > 0) if self.active_only else row.is_negative
        return (mean_of(pull, row.is_positive) + mean_of(push, near)) / self.power, either(row)


def contrastive_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: Scalar = 1.0,
    power: int = 2,
    active_only: bool = False,
    distance: Distance = "euclidean",
    **arguments: Unpack[EngineCall],
) -> Result:
    """Contrastive loss (Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping",
    2006).

    Per anchor, mean over positives of d^2 / 2 plus mean over negatives of max(0, margin - d)^2 / 2; then the
    mean over anchors with a pair of either kind. `power=1` takes d and max(0, margin - d) instead: with
    classes of equal size that is pytorch-metric-learning's ContrastiveLoss under its MeanReducer.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        margin: distance beyond which negatives are left alone.
        power: 2 as in the paper, or 1.
        active_only: take the mean over the anchor's negatives nearer than the margin instead of all, so that the
            few near ones of a large batch are not lost among the far.
        distance: "euclidean" in the paper.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("margin", margin, positive=None)
    check_range("power", power)
    loss = Contrastive(margin, power, active_only)
    return mean_over_anchors(loss, embeddings, labels, distance=distance, **arguments)


@register_dataclass
@dataclass(frozen=True)
class LiftedStructure:
    """[log sum_p exp(d) + log sum_n exp(margin - d)]_+."""

    margin: Scalar

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Loss and validity of one anchor; it counts with a positive and a negative."""
        pull = log_sum_exp(row.distances, row.is_positive)
        push = log_sum_exp(self.margin - row.distances, row.is_negative)
        return jax.nn.relu(pull + push), both(row)


def lifted_structure_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: Scalar = 1.0,
    distance: Distance = "euclidean",
    **arguments: Unpack[EngineCall],
) -> Result:
    """Generalised lifted structure (Hermans et al. 2017, after Oh Song et al., CVPR 2016).

    Per anchor max(0, log sum_p exp(d) + log sum_n exp(margin - d)), mean over anchors with a positive and a
    negative: pytorch-metric-learning's GeneralizedLiftedStructureLoss under MeanReducer if all anchors have both.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        margin: in units of the distance.
        distance: "euclidean" in the paper.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("margin", margin, positive=None)
    return mean_over_anchors(LiftedStructure(margin), embeddings, labels, distance=distance, **arguments)


@register_dataclass
@dataclass(frozen=True)
class SupervisedContrastive:
    """Mean over positives of -log of the positive's share among all keys."""

    temperature: Scalar

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Loss and validity of one anchor; it counts with at least one positive."""
        logits = (1 - row.distances) / self.temperature
        total = log_sum_exp(logits, row.is_positive | row.is_negative)
        return total - mean_of(logits, row.is_positive), jnp.any(row.is_positive)


def supervised_contrastive_loss(
    embeddings: ArrayLike, labels: ArrayLike, *, temperature: Scalar = 0.1, **arguments: Unpack[EngineCall]
) -> Result:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020; the sum outside the logarithm), on cosines.

    Per anchor the mean over positives p of -log(exp(s_p / t) / sum_k exp(s_k / t)), k over all keys but the
    anchor; mean over anchors with a positive. pytorch-metric-learning's SupConLoss.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`.
        temperature: t.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("temperature", temperature)
    loss = SupervisedContrastive(temperature)
    return mean_over_anchors(loss, embeddings, labels, distance="cosine", **arguments)


@register_dataclass
@dataclass(frozen=True)
class PositiveAgainstNegatives:
    """Sum over positives of log(1 + sum_n exp((d_p - d_n) / temperature)); the mean is over positive
    pairs."""

    temperature: Scalar

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Loss of one anchor and its number of terms; it counts with a positive and a negative."""
        logits = -row.distances / self.temperature
        against = log_sum_exp(logits, row.is_negative)
        terms = jax.nn.softplus(jnp.where(row.is_positive, against - logits, 0))
        return jnp.sum(jnp.where(row.is_positive, terms, 0)), jnp.where(
            both(row), jnp.sum(row.is_positive), 0
        )


def nt_xent_loss(
    embeddings: ArrayLike, labels: ArrayLike, *, temperature: Scalar = 0.1, **arguments: Unpack[EngineCall]
) -> Result:
    """NT-Xent (Sohn 2016; Chen et al., SimCLR, ICML 2020) with labels, on cosine similarities.

    For each positive pair -log(exp(s_p / t) / (exp(s_p / t) + sum_n exp(s_n / t))), mean over positive pairs.
    pytorch-metric-learning's NTXentLoss.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`.
        temperature: t.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("temperature", temperature)
    loss = PositiveAgainstNegatives(temperature)
    return mean_over_anchors(loss, embeddings, labels, distance="cosine", **arguments)


def n_pair_loss(
    embeddings: ArrayLike, labels: ArrayLike, *, temperature: Scalar = 1.0, **arguments: Unpack[EngineCall]
) -> Result:
    """N-pair loss in its all-pairs form (Sohn, NIPS 2016): log(1 + sum_n exp(a.n - a.p)) on inner products.

    Mean over positive pairs. The paper takes one pair of each class (then this is its multi-class form) and
    adds a penalty on the embeddings' norms, which is left to weight decay. pytorch-metric-learning's
    NTXentLoss with DotProductSimilarity(normalize_embeddings=False).

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        temperature: divides the inner products; 1 in the paper.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("temperature", temperature)
    loss = PositiveAgainstNegatives(temperature)
    return mean_over_anchors(loss, embeddings, labels, distance="negative_dot", **arguments)
