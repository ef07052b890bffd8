"""Losses of the batch's classes as wholes: AdaSP and the centroid triplet."""

from __future__ import annotations

from typing import Literal, Unpack, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.distances import Distance, clean_rows, distances_of_pairs
from hap2s_jax.losses.batchwise import prepared
from hap2s_jax.losses.classes import everyones, over_devices
from hap2s_jax.losses.engine import anchor_rows, reduced
from hap2s_jax.losses.pairs import log_sums_apart
from hap2s_jax.losses.places import places_among
from hap2s_jax.losses.rows import Anchors, Batch, Keys, Result, RowLosses, SampleCall
from hap2s_jax.losses.selection import chosen_pairs
from hap2s_jax.losses.weightings import Scalar, check_range, split

Form = Literal["adasp", "sp_h", "sp_lh"]
# A block's similarities stay in the processor's cache.
_CACHED_PAIRS = 2**18
_KEPT_PAIRS = 2**22


def _groups(labels: jax.Array, among: jax.Array) -> jax.Array:
    """For each label `[n]` the number of its class: where it first stands in the ascending order of labels `[m]`."""
    return places_among(jnp.sort(among), labels)


def _group_sums(values: jax.Array, valid: jax.Array, groups: jax.Array) -> jax.Array:
    """Sums `[m, ...]` of the valid values of each class."""
    mask = valid.reshape(-1, *[1] * (values.ndim - 1))
    return jax.ops.segment_sum(jnp.where(mask, values, 0), groups, len(groups))


def _group_log_sums(values: jax.Array, valid: jax.Array, groups: jax.Array) -> jax.Array:
    """Logarithms `[m]` of the sums of exponentials of each class's valid values; 0 for classes without any."""
    kept = jnp.where(valid, values, -1e30)
    top = jnp.maximum(jax.ops.segment_max(lax.stop_gradient(kept), groups, len(groups)), -1e30)
    total = _group_sums(jnp.exp(kept - top[groups]), valid, groups)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)) + top, 0)


def adasp_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: Scalar = 0.04,
    form: Form = "adasp",
    **call: Unpack[SampleCall],
) -> Result:
    """AdaSP and the sparse pairwise losses SP-H and SP-LH (Zhou et al., CVPR 2023), on cosine similarities s.

    Each class has one soft positive pair and one soft negative one. Over its samples i and j, and samples n of others,

        S_n  =  t log sum_i sum_n exp(s_in / t)            its hardest negative
        S_h  = -t log sum_i sum_j exp(-s_ij / t)           its hardest positive (`form` "sp_h")
        S_lh =  t log sum_i 1 / sum_j exp(-s_ij / t)       the least hard of its samples' hardest ones ("sp_lh")
        S_p  =  a S_h + (1 - a) S_lh,   a = 2 S_h S_lh / (S_h + S_lh) where S_h >= 0, else 0 ("adasp")

    and the loss log(1 + exp((S_n - S_p) / t)); a carries no gradient, and i = j is among the positive pairs, as in the
    public code. Mean over classes with two samples, in a batch with a sample of another. It is every sample's loss, so
    that sample weights change nothing. Published: t = 0.04 at a weight of 0.1 beside softmax, 8 images a class.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`.
        temperature: t.
        form: "adasp", "sp_h" or "sp_lh".
        **call: `axis_name`, `ignore_label`, `sample_weights`, `reduction`, `with_stats`, as in `mean_over_anchors`.

    Raises:
        ValueError: another form.
    """
    check_range("temperature", temperature)
    if form not in get_args(Form):
        raise ValueError(f"form is {form!r}; it should be one of {', '.join(get_args(Form))}")
    batch, options = prepared(embeddings, labels, "cosine", call)
    anchors, dtype = batch.anchors, batch.vectors.dtype
    temperature = jnp.asarray(temperature, dtype)
    near, far = _log_sums(batch, temperature)
    gathered = (near, far, anchors.labels, anchors.valid)
    near, far, labels, valid = (over_devices(part, options.axis_name) for part in gathered)
    groups = _groups(labels, labels)
    negative = _group_log_sums(far, valid, groups)
    hard, least_hard = -_group_log_sums(near, valid, groups), _group_log_sums(-near, valid, groups)
    if form == "adasp":
        of_hard, of_least = lax.stop_gradient((temperature * hard, temperature * least_hard))
        both = of_hard + of_least
        share = jnp.where(of_hard > 0, 2 * of_hard * of_least / jnp.where(both > 0, both, 1), 0)
        positive = share * hard + (1 - share) * least_hard
    else:
        positive = hard if form == "sp_h" else least_hard
    members = _group_sums(valid.astype(jnp.int32), valid, groups)
    counted = (members > 1) & (members < jnp.sum(valid, dtype=members.dtype))
    terms = jnp.where(counted, jax.nn.softplus(jnp.where(counted, negative - positive, 0)), 0)
    value = jnp.sum(terms) / jnp.maximum(jnp.sum(counted), 1).astype(dtype)
    stats = {"active_fraction": jnp.ones_like(near[: len(anchors.labels)])}
    some = anchors.valid & jnp.any(counted)
    return reduced(everyones(value, some, stats), anchors.weight, options)


def _log_sums(batch: Batch, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For every anchor `[n]`: log sum exp(-s / t) over its class with itself, log sum exp(s / t) over others."""
    vectors, anchors, key_vectors, keys = batch
    block = min(max(16, _CACHED_PAIRS // len(key_vectors)), len(vectors))

    def of_block(part: tuple[jax.Array, Anchors]) -> tuple[jax.Array, jax.Array]:
        rows = anchor_rows(Batch(*part, key_vectors, keys), "cosine", with_anchor=True)
        logits = (1 - rows.distances) / temperature
        logits = jnp.where(rows.is_positive, -logits, logits)
        return log_sums_apart(logits, rows.is_positive, rows.is_negative)

    # In a large batch's backward pass a block's similarities are formed again, so that memory is linear.
    if len(vectors) * len(key_vectors) > _KEPT_PAIRS:
        of_block = jax.checkpoint(of_block)
    near, far = lax.map(of_block, split((vectors, anchors), block))
    return near.reshape(-1)[: len(vectors)], far.reshape(-1)[: len(vectors)]


def centroid_triplet_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: Scalar = 0.5,
    distance: Distance = "squared_euclidean",
    **call: Unpack[SampleCall],
) -> Result:
    """Centroid triplet loss (Wieczorek et al., "On the Unreasonable Effectiveness of Centroids in Image Retrieval",
    2021): the anchor to the mean of its class's other samples, against the nearest mean of another class.

    max(0, d(a, c_p) - d(a, c_n) + margin), mean over anchors with a positive and a negative. The paper's distance is
    squared, its public code's is not, with a margin of 0.5 beside a triplet, a softmax and a centre loss. That code
    takes one sample of each class for an anchor at a time, leaves these out of all means, and takes means for anchors,
    too.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`.
        margin: in units of the distance.
        distance: kind of distance.
        **call: `axis_name`, `ignore_label`, `sample_weights`, `reduction`, `with_stats`, as in `mean_over_anchors`.
    """
    check_range("margin", margin, positive=None)
    batch, options = prepared(embeddings, labels, distance, call)
    vectors, anchors, key_vectors, keys = batch
    dtype = vectors.dtype
    groups = _groups(keys.labels, keys.labels)
    sums = _group_sums(key_vectors, keys.valid, groups)
    members = _group_sums(keys.valid.astype(jnp.int32), keys.valid, groups)

    def mean(total: jax.Array, count: jax.Array) -> jax.Array:
        centroids = total / jnp.maximum(count, 1).astype(dtype)[:, None]
        return clean_rows(centroids, count > 0, "cosine", None) if distance == "cosine" else centroids

    means = Keys(None, jnp.sort(keys.labels), members > 0)
    candidates = Batch(vectors, anchors._replace(origins=None), mean(sums, members), means)
    nearest = chosen_pairs(candidates, options._replace(with_stats=False), (1, -1))
    own = _groups(anchors.labels, keys.labels)
    others = members[own] - 1
    to_positive = distances_of_pairs(vectors, mean(sums[own] - vectors, others), distance)
    valid = anchors.valid & (others > 0) & nearest.has_negative
    excess = jnp.where(valid, to_positive - nearest.to_negative + jnp.asarray(margin, dtype), 0)
    values = jax.nn.relu(excess)
    stats = {
        "active_fraction": values > 0,
        "to_own_centroid": to_positive,
        "to_nearest_centroid": nearest.to_negative,
    }
    return reduced(RowLosses(values, valid.astype(dtype), stats), anchors.weight, options)
