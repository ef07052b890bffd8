"""Losses that weigh an anchor's pairs by their cosine similarities: multi-similarity, circle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.losses.engine import mean_over_anchors
from hap2s_jax.losses.pairs import both, either, log_sum_exp
from hap2s_jax.losses.pytrees import register_dataclass
from hap2s_jax.losses.rows import AnchorRow, EngineCall, Result
from hap2s_jax.losses.weightings import Scalar, check_range


@register_dataclass
@dataclass(frozen=True)
class MultiSimilarity:
    """Soft pair losses around a base similarity, on pairs that are harder than the anchor's best opposite."""

    alpha: Scalar
    beta: Scalar
    base: Scalar
    epsilon: Scalar
    mining: bool = field(metadata={"static": True})

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Loss and validity of one anchor; it counts with a pair of either kind."""
        similarity = 1 - row.distances
        positive, negative = row.is_positive, row.is_negative
        if self.mining:
            worst_positive = jnp.min(jnp.where(positive, similarity, jnp.inf))
            best_negative = jnp.max(jnp.where(negative, similarity, -jnp.inf))
            positive = positive & (similarity - self.epsilon < best_negative)
            negative = negative & (similarity + self.epsilon > worst_positive)
        shifted = similarity - self.base
        pull = log_sum_exp(-self.alpha * shifted, positive, with_one=True) / self.alpha
        push = log_sum_exp(self.beta * shifted, negative, with_one=True) / self.beta
        return pull + push, either(row)


def multi_similarity_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: Scalar = 2.0,
    beta: Scalar = 50.0,
    base: Scalar = 0.5,
    epsilon: Scalar = 0.1,
    mining: bool = True,
    **arguments: Unpack[EngineCall],
) -> Result:
    """Multi-similarity loss (Wang et al., CVPR 2019), on cosine similarities s.

    Per anchor log(1 + sum_p exp(-alpha (s - base))) / alpha + log(1 + sum_n exp(beta (s - base))) / beta over
    pairs that pass the mining, mean over anchors with a pair of either kind. pytorch-metric-learning's
    MultiSimilarityLoss, with `mining` its MultiSimilarityMiner, under MeanReducer.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`.
        alpha: steepness for positives.
        beta: steepness for negatives.
        base: similarity about which both turn.
        epsilon: slack of the mining.
        mining: keep only negatives above the worst positive less `epsilon`, and positives below the best
            negative plus `epsilon`.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("alpha", alpha)
    check_range("beta", beta)
    check_range("base", base, positive=None)
    check_range("epsilon", epsilon, positive=None)
    loss = MultiSimilarity(alpha, beta, base, epsilon, mining)
    return mean_over_anchors(loss, embeddings, labels, distance="cosine", **arguments)


@register_dataclass
@dataclass(frozen=True)
class Circle:
    """Each similarity weighted by its own distance from its optimum."""

    margin: Scalar
    gamma: Scalar

    def __call__(self, row: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Loss and validity of one anchor; it counts with a positive and a negative."""
        similarity = 1 - row.distances
        pull_weight = lax.stop_gradient(jax.nn.relu(1 + self.margin - similarity))
        push_weight = lax.stop_gradient(jax.nn.relu(similarity + self.margin))
        pull = log_sum_exp(-self.gamma * pull_weight * (similarity - 1 + self.margin), row.is_positive)
        push = log_sum_exp(self.gamma * push_weight * (similarity - self.margin), row.is_negative)
        valid = both(row)
        return jax.nn.softplus(jnp.where(valid, pull + push, 0)), valid


def circle_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: Scalar = 0.25,
    gamma: Scalar = 128.0,
    **arguments: Unpack[EngineCall],
) -> Result:
    """Circle loss (Sun et al., CVPR 2020), on cosine similarities; the defaults are its re-identification
    ones.

    Per anchor log(1 + sum_n exp(gamma a_n (s - margin)) sum_p exp(-gamma a_p (s - 1 + margin))) with weights
    a_n = [s + margin]_+ and a_p = [1 + margin - s]_+ that carry no gradient; mean over anchors with a positive and
    a negative. pytorch-metric-learning's CircleLoss (which averages over losses that are not exactly 0).

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`.
        margin: relaxation of the optima.
        gamma: scale.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("margin", margin, positive=None)
    check_range("gamma", gamma)
    return mean_over_anchors(Circle(margin, gamma), embeddings, labels, distance="cosine", **arguments)
