"""Losses against learnt points of the classes: softmax, ArcFace, Proxy-NCA, centre loss.

Not functions of an anchor's row, so not through the engine, but with its calling convention. The learnt
arrays are an argument, `params`; `losses.create(name).init_params(key, num_classes, embedding_dim)` makes the
first ones. Every sample whose label is not ignored counts, and the mean over them is global under
`axis_name`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hap2s_jax.distances import compute_dtype, products, safe_sqrt, squares
from hap2s_jax.losses.checks import (
    Axis,
    Reduction,
    check_embeddings,
    check_range,
    check_reduction,
    check_sample_weights,
)
from hap2s_jax.losses.triplets import unit_rows
from hap2s_jax.losses.weightings import Scalar


def _inputs(
    embeddings: Any, labels: Any, points: Any, classes: int, ignore_label: int | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Checked embeddings (ignored rows zero), labels fit for indexing, the classes' points, and who
    counts."""
    embeddings, labels = check_embeddings("embeddings", embeddings, "labels", labels)
    points = jnp.asarray(points)
    if points.shape[1 - classes] != embeddings.shape[1]:
        raise ValueError(
            f"params {points.shape} do not fit embeddings {embeddings.shape}: widths should agree"
        )
    valid = jnp.ones(labels.shape, bool) if ignore_label is None else labels != ignore_label
    embeddings = jnp.where(valid[:, None], embeddings.astype(compute_dtype(embeddings.dtype)), 0)
    # An index out of range would be clamped in silence and train the wrong class.
    inside = (labels >= 0) & (labels < points.shape[classes])
    embeddings = jnp.where((valid & ~inside)[:, None], jnp.nan, embeddings)
    return embeddings, jnp.where(valid & inside, labels, 0), points.astype(embeddings.dtype), valid


def reduce_samples(
    values: jax.Array,
    valid: jax.Array,
    stats: dict[str, jax.Array],
    *,
    axis_name: Axis,
    sample_weights: Any,
    reduction: Reduction,
    with_stats: bool,
) -> Any:
    """Mean, sum or none of per-sample values `[n]` over those that are valid, global under `axis_name`."""
    check_reduction(reduction)
    sample_weights = check_sample_weights(sample_weights, len(values))
    values = jnp.where(valid, values, 0)
    counted = valid.astype(values.dtype)
    weight = counted
    if sample_weights is not None:
        weight = weight * sample_weights.astype(values.dtype)
    sums = (jnp.sum(values * weight), jnp.sum(weight), jnp.sum(counted))
    totals = {name: jnp.sum(jnp.where(valid, s, 0).astype(values.dtype)) for name, s in stats.items()}
    if axis_name is not None:
        sums, totals = lax.psum((sums, totals), axis_name)
    value = values * weight if reduction == "none" else sums[0]
    if reduction == "mean":
        value = value / jnp.where(sums[1] == 0, 1, sums[1])
    if not with_stats:
        return value
    report = {name: total / jnp.maximum(sums[2], 1) for name, total in totals.items()}
    report["valid_anchors"] = sums[2]
    return value, jax.tree.map(lambda s: lax.stop_gradient(s.astype(jnp.float32)), report)


def _cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: Scalar) -> tuple[jax.Array, dict]:
    logs = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(logs, labels[:, None], axis=1)[:, 0]
    loss = -(1 - smoothing) * own - smoothing * jnp.mean(logs, axis=1)
    return loss, {"accuracy": jnp.argmax(logits, axis=1) == labels}


def softmax_loss(
    embeddings: Any,
    labels: Any,
    *,
    params: Any,
    label_smoothing: Scalar = 0.1,
    use_bias: bool = True,
    axis_name: Axis = None,
    ignore_label: int | None = -1,
    sample_weights: Any = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Any:
    """Cross-entropy of a linear classifier, with smoothed labels (Szegedy et al., CVPR 2016).

    The target is 1 - s for the own class plus s / c for every class; mean over samples.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"kernel": `[d, c]`, "bias": `[c]`}.
        label_smoothing: s, 0.1 in the paper.
        use_bias: False leaves the bias out, as after BNNeck (Luo et al. 2019), whose features lie about the origin.
        axis_name: as in `mean_over_anchors`, and so are `ignore_label`, `sample_weights`, `reduction` and
            `with_stats` (here: accuracy).
    """
    check_range("label_smoothing", label_smoothing, positive=False, below=1)
    embeddings, labels, kernel, valid = _inputs(embeddings, labels, params["kernel"], 1, ignore_label)
    logits = products(embeddings, kernel.T)
    if use_bias:
        logits = logits + params["bias"]
    values, stats = _cross_entropy(logits, labels, label_smoothing)
    settings = {"axis_name": axis_name, "sample_weights": sample_weights, "reduction": reduction}
    return reduce_samples(values, valid, stats, with_stats=with_stats, **settings)


def arcface_loss(
    embeddings: Any,
    labels: Any,
    *,
    params: Any,
    margin: Scalar = 0.5,
    scale: Scalar = 64.0,
    axis_name: Axis = None,
    ignore_label: int | None = -1,
    sample_weights: Any = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Any:
    """ArcFace (Deng et al., CVPR 2019): softmax of scaled cosines, the own class's angle enlarged by a
    margin.

    The logit of the own class is scale cos(theta + margin), or scale (cos(theta) - margin sin(margin)) beyond
    theta = pi - margin, where the cosine would rise again. pytorch-metric-learning's ArcFaceLoss lacks that
    continuation and states its margin in degrees.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"kernel": `[d, c]`}, normalised here.
        margin: radians.
        scale: inverse temperature.
        axis_name: as in `mean_over_anchors`, and so are `ignore_label`, `sample_weights`, `reduction` and
            `with_stats` (here: accuracy).
    """
    check_range("scale", scale)
    embeddings, labels, kernel, valid = _inputs(embeddings, labels, params["kernel"], 1, ignore_label)
    # The lengths divide the products: dividing the kernel, far larger, took three times as long.
    lengths = safe_sqrt(squares(kernel.T))
    cosines = products(unit_rows(embeddings, labels, None), kernel.T) / jnp.where(lengths > 0, lengths, 1)
    own = jnp.take_along_axis(cosines, labels[:, None], axis=1)
    # The sine's slope is infinite at cosine 1, which rounding can pass.
    sine = jnp.sqrt(jnp.maximum(1 - own**2, 1e-6))
    turned = own * jnp.cos(margin) - sine * jnp.sin(margin)
    turned = jnp.where(own > -jnp.cos(margin), turned, own - margin * jnp.sin(margin))
    is_own = jnp.arange(cosines.shape[1])[None, :] == labels[:, None]
    values, stats = _cross_entropy(scale * jnp.where(is_own, turned, cosines), labels, 0.0)
    stats["accuracy"] = jnp.argmax(cosines, axis=1) == labels
    settings = {"axis_name": axis_name, "sample_weights": sample_weights, "reduction": reduction}
    return reduce_samples(values, valid, stats, with_stats=with_stats, **settings)


def proxy_nca_loss(
    embeddings: Any,
    labels: Any,
    *,
    params: Any,
    scale: Scalar = 3.0,
    include_own: bool = False,
    axis_name: Axis = None,
    ignore_label: int | None = -1,
    sample_weights: Any = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Any:
    """Proxy-NCA (Movshovitz-Attias et al., ICCV 2017): each class is one learnt proxy on the sphere.

    -log(exp(-d(x, own)) / sum_z exp(-d(x, z))), d the squared distance of the vectors scaled to length
    `scale`, z over the other classes' proxies (over all of them with `include_own`, as in Teh et al., ECCV
    2020, and in pytorch-metric-learning's ProxyNCALoss, whose softmax_scale is our `scale` squared); mean
    over samples.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"proxies": `[c, d]`}, normalised here.
        scale: length of the vectors.
        include_own: count the own proxy among the sum's.
        axis_name: as in `mean_over_anchors`, and so are `ignore_label`, `sample_weights`, `reduction` and
            `with_stats` (here: accuracy).
    """
    check_range("scale", scale)
    embeddings, labels, proxies, valid = _inputs(embeddings, labels, params["proxies"], 0, ignore_label)
    cosines = products(unit_rows(embeddings, labels, None), unit_rows(proxies, labels, None))
    logits = -2 * scale**2 * (1 - cosines)
    is_own = jnp.arange(cosines.shape[1])[None, :] == labels[:, None]
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    rivals = logits if include_own else jnp.where(is_own, -1e30, logits)
    values = jax.nn.logsumexp(rivals, axis=1) - own
    stats = {"accuracy": jnp.argmax(cosines, axis=1) == labels}
    settings = {"axis_name": axis_name, "sample_weights": sample_weights, "reduction": reduction}
    return reduce_samples(values, valid, stats, with_stats=with_stats, **settings)


def centre_loss(
    embeddings: Any,
    labels: Any,
    *,
    params: Any,
    axis_name: Axis = None,
    ignore_label: int | None = -1,
    sample_weights: Any = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Any:
    """Centre loss (Wen et al., ECCV 2016): half the squared distance to the learnt centre of the own class.

    Meant beside a softmax loss; alone, everything collapses. Mean over samples (the paper: sum over the
    batch). The paper moves its centres by their own rule with a rate of 0.5; here they are parameters like
    all others, but for the trainer's weight decay, which spares them.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"centres": `[c, d]`}.
        axis_name: as in `mean_over_anchors`, and so are `ignore_label`, `sample_weights`, `reduction` and
            `with_stats`.
    """
    embeddings, labels, centres, valid = _inputs(embeddings, labels, params["centres"], 0, ignore_label)
    values = squares(embeddings - centres[labels]) / 2
    stats = {"distance_to_centre": jnp.sqrt(2 * values)}
    settings = {"axis_name": axis_name, "sample_weights": sample_weights, "reduction": reduction}
    return reduce_samples(values, valid, stats, with_stats=with_stats, **settings)


def init_softmax_params(key: jax.Array, num_classes: int, embedding_dim: int) -> dict[str, jax.Array]:
    """A classifier with small random weights and no bias: {"kernel": `[d, c]`, "bias": `[c]`}."""
    kernel = jax.random.normal(key, (embedding_dim, num_classes)) / math.sqrt(embedding_dim)
    return {"kernel": kernel, "bias": jnp.zeros(num_classes)}


def init_arcface_params(key: jax.Array, num_classes: int, embedding_dim: int) -> dict[str, jax.Array]:
    """Random directions: {"kernel": `[d, c]`}."""
    return {"kernel": jax.random.normal(key, (embedding_dim, num_classes)) / math.sqrt(embedding_dim)}


def init_proxy_params(key: jax.Array, num_classes: int, embedding_dim: int) -> dict[str, jax.Array]:
    """Random directions: {"proxies": `[c, d]`}."""
    return {"proxies": jax.random.normal(key, (num_classes, embedding_dim)) / math.sqrt(embedding_dim)}


def init_centre_params(key: jax.Array, num_classes: int, embedding_dim: int) -> dict[str, jax.Array]:
    """Centres at the origin: {"centres": `[c, d]`}."""
    del key
    return {"centres": jnp.zeros((num_classes, embedding_dim))}
