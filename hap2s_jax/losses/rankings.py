"""Losses of an anchor's whole ranking, made smooth: Smooth-AP and the recall@k surrogate.

Both need, for every positive, how many keys stand before it. These are sums over all keys for each positive in turn:
time grows with the number of positives an anchor, memory is that of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.losses.engine import mean_over_anchors
from hap2s_jax.losses.pytrees import register_dataclass
from hap2s_jax.losses.rows import AnchorRow, EngineCall, LossTree, Result
from hap2s_jax.losses.weightings import Scalar, check_range

# (number of the positive, its score [n], where it stands [n, m], what was carried) -> what is carried on
# Any: the arrays that a loop carries, and those that its backward pass gets.
Body = Callable[[jax.Array, jax.Array, jax.Array, Any], Any]


def _over_positives(scores: jax.Array, positive: jax.Array, body: Body, start: Any) -> Any:
    """Takes each anchor's positives in turn, in the order of the batch."""
    width = scores.shape[1]
    places = jnp.arange(width, dtype=jnp.int32)[None, :]
    most = jnp.max(jnp.sum(positive, axis=1, dtype=jnp.int32))

    def step(carry: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
        number, last, rest = carry
        place = jnp.min(jnp.where(positive & (places > last[:, None]), places, width), axis=1)
        score = jnp.take_along_axis(scores, jnp.minimum(place, width - 1)[:, None], axis=1)[:, 0]
        return number + 1, place, body(number, score, places == place[:, None], rest)

    first = jnp.zeros_like(most), jnp.full_like(scores[:, 0], -1, jnp.int32), start
    return lax.while_loop(lambda carry: carry[0] < most, step, first)[2]


@jax.custom_vjp
def soft_ranks(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many positives and how many negatives score higher than each positive, softly.

    Args:
        scores: `[n, m]`.
        positive: bool `[n, m]`.
        negative: bool `[n, m]`.

    Returns:
        For the i-th positive of anchor a at `[a, i]` the sum of sigmoid(other score - its score), over the other
        positives and over the negatives, both `[n, m]`; beyond an anchor's last positive of no meaning. Only for
        reverse mode, once.
    """

    def body(number: jax.Array, score: jax.Array, is_it: jax.Array, ranks: Any) -> Any:
        before = jax.nn.sigmoid(scores - score[:, None])
        counts = [jnp.sum(jnp.where(mask, before, 0), axis=1) for mask in (positive & ~is_it, negative)]
        return tuple(
            lax.dynamic_update_slice_in_dim(rank, count[:, None], number, 1)
            for rank, count in zip(ranks, counts, strict=True)
        )

    zero = jnp.zeros_like(scores)
    return _over_positives(scores, positive, body, (zero, zero))


def _forward(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> tuple[Any, Any]:
    return soft_ranks(scores, positive, negative), (scores, positive, negative)


def _backward(given: Any, slopes: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None, None]:
    scores, positive, negative = given

    def body(number: jax.Array, score: jax.Array, is_it: jax.Array, gradient: jax.Array) -> jax.Array:
        by_positives, by_negatives = (lax.dynamic_slice_in_dim(slope, number, 1, 1) for slope in slopes)
        before = jax.nn.sigmoid(scores - score[:, None])
        slope = jnp.where(positive & ~is_it, by_positives, jnp.where(negative, by_negatives, 0))
        pushed = slope * before * (1 - before)
        return gradient + jnp.where(is_it, -jnp.sum(pushed, axis=1, keepdims=True), pushed)

    return _over_positives(scores, positive, body, jnp.zeros_like(scores)), None, None


soft_ranks.defvjp(_forward, _backward)


def _ranked(
    rows: AnchorRow, negative: jax.Array, temperature: Scalar
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """For rows of cosine distances: `soft_ranks`, which of their entries are valid, and how many `[n]`."""
    scores = (1 - rows.distances) / jnp.asarray(temperature, rows.distances.dtype)
    count = jnp.sum(rows.is_positive, axis=1)
    exists = jnp.arange(scores.shape[1], dtype=count.dtype)[None, :] < count[:, None]
    return *soft_ranks(scores, rows.is_positive, negative), exists, count


@register_dataclass
@dataclass(frozen=True)
class SmoothAP:
    """1 - the smoothed average precision."""

    temperature: Scalar
    with_anchor: bool = field(metadata={"static": True})

    def of_rows(self, rows: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Losses and validity of several anchors; one counts with a positive besides itself."""
        positives, negatives, exists, count = _ranked(rows, rows.is_negative, self.temperature)
        precision = jnp.where(exists, (1 + positives) / (1 + positives + negatives), 0)
        mean = jnp.sum(precision, axis=1) / jnp.maximum(count, 1).astype(precision.dtype)
        return 1 - mean, count > int(self.with_anchor)


def smooth_ap_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: Scalar = 0.01,
    with_anchor: bool = True,
    **arguments: Unpack[EngineCall],
) -> Result:
    """Smooth-AP (Brown et al., ECCV 2020), on cosine similarities s.

    Per anchor 1 - mean over positives i of (1 + sum_p G(s_p - s_i)) / (1 + sum_k G(s_k - s_i)), G(x) = 1 / (1 +
    exp(-x / t)), p over the other positives and k over all other keys: 1 - average precision, for G a step. Mean over
    anchors with a positive. Published: t = 0.01. The public code and pytorch-metric-learning's SmoothAPLoss (which is
    right only for as many classes as images of each, in order) leave the anchor in its ranking, as its own first
    positive; without it the loss is the paper's. Differentiable in reverse mode, once.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`.
        temperature: t.
        with_anchor: as in the public code; False as in the paper's text.
        **arguments: the engine's, see `mean_over_anchors`.
    """
    check_range("temperature", temperature)
    loss: LossTree = SmoothAP(temperature, bool(with_anchor))
    return mean_over_anchors(loss, embeddings, labels, distance="cosine", **arguments)


@register_dataclass
@dataclass(frozen=True)
class RecallAtK:
    """1 - the mean of the smoothed recalls at several k."""

    temperature: Scalar
    rank_temperature: Scalar
    ks: tuple[int, ...] = field(metadata={"static": True})
    anchor_ranks: bool = field(metadata={"static": True})

    def of_rows(self, rows: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Losses and validity of several anchors; one counts with a positive."""
        own = rows.index[:, None] == jnp.arange(rows.distances.shape[1], dtype=rows.index.dtype)[None, :]
        others = rows.is_negative | own if self.anchor_ranks else rows.is_negative
        positives, negatives, exists, count = _ranked(rows, others, self.temperature)
        rank = 1 + positives + negatives
        total = jnp.zeros_like(rank[:, 0])
        for k in self.ks:
            within = jax.nn.sigmoid((k - rank) / jnp.asarray(self.rank_temperature, rank.dtype))
            found = jnp.minimum(jnp.sum(jnp.where(exists, within, 0), axis=1), k)
            total = total + found / jnp.clip(count, 1, k).astype(rank.dtype)
        return 1 - total / len(self.ks), count > 0


def recall_at_k_surrogate_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    ks: str | tuple[int, ...] = "1,2,4,8,16",
    temperature: Scalar = 0.01,
    rank_temperature: Scalar = 1.0,
    with_anchor: bool = False,
    **arguments: Unpack[EngineCall],
) -> Result:
    """The recall@k surrogate (Patel et al., CVPR 2022), on cosine similarities s.

    Per anchor 1 - mean over k of min(k, sum_p S((k - r_p) / t2)) / min(k, number of positives), with soft ranks r_p = 1
    + sum_j S((s_j - s_p) / t1) over all other keys j but the anchor, S the sigmoid; mean over anchors with a positive.
    Published: k of 1, 2, 4, 8 and 16, t1 = 0.01, t2 = 1, batches of some 4,000. The public code leaves the anchor
    itself in the ranking, before all others, so that its ranks are one larger (`with_anchor`). Differentiable in
    reverse mode, once.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`.
        ks: the k, as numbers or in one string.
        temperature: t1.
        rank_temperature: t2.
        with_anchor: count the anchor itself in the ranks, as the public code does.
        **arguments: the engine's, see `mean_over_anchors`.

    Raises:
        ValueError: a k that is no whole number of at least 1.
    """
    check_range("temperature", temperature)
    check_range("rank_temperature", rank_temperature)
    try:
        numbers = tuple(int(k) for k in (ks.split(",") if isinstance(ks, str) else ks))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(f"ks is {ks!r}; it should be whole numbers of at least 1, such as '1,2,4'")
    loss: LossTree = RecallAtK(temperature, rank_temperature, numbers, bool(with_anchor))
    return mean_over_anchors(loss, embeddings, labels, distance="cosine", **arguments)
