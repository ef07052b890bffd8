"""Losses against learnt points of the classes: softmax, ArcFace, Proxy-NCA, centre loss.

Not functions of an anchor's row, so not through the engine, but with its calling convention. The learnt
arrays are an argument, `params`; `losses.create(name).init_params(key, num_classes, embedding_dim)` makes the
first ones. Every sample whose label is not ignored counts, and the mean over them is global under
`axis_name`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hap2s_jax.distances import (
    COMPUTED_IN,
    FLOAT32,
    check_embeddings,
    clean_rows,
    products,
    safe_sqrt,
    squares,
)
from hap2s_jax.losses.engine import check_options, counted, reduced
from hap2s_jax.losses.rows import Options, Result, RowLosses, SampleCall
from hap2s_jax.losses.weightings import Scalar, check_range

Params = Mapping[str, ArrayLike]


def _inputs(
    embeddings: ArrayLike, labels: ArrayLike, points: ArrayLike, classes: int, call: SampleCall
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Checked embeddings (ignored rows zero), labels fit for indexing, the classes' points, and who counts."""
    vectors, labels = check_embeddings("embeddings", embeddings, "labels", labels)
    points = jnp.asarray(points)
    if points.shape[1 - classes] != vectors.shape[1]:
        raise ValueError(f"params {points.shape} do not fit embeddings {vectors.shape}: widths should agree")
    valid = counted(labels, call.get("ignore_label", -1))
    vectors = jnp.where(valid[:, None], vectors.astype(COMPUTED_IN.get(vectors.dtype, FLOAT32)), 0)
    # An index out of range would be clamped in silence and train the wrong class.
    inside = (labels >= 0) & (labels < points.shape[classes])
    vectors = jnp.where((valid & ~inside)[:, None], jnp.nan, vectors)
    return vectors, jnp.where(valid & inside, labels, 0), points.astype(vectors.dtype), valid


def call_options(call: SampleCall, count: int, distance: str = "given") -> tuple[Options, jax.Array | None]:
    """A call's options, checked, and its sample weights."""
    axis_name, ignore_label = call.get("axis_name"), call.get("ignore_label", -1)
    reduction, with_stats = call.get("reduction", "mean"), call.get("with_stats", False)
    weights = check_options(reduction, None, call.get("sample_weights"), count)
    return Options(distance, axis_name, ignore_label, None, reduction, with_stats), weights


def _reduced(values: jax.Array, valid: jax.Array, stats: dict[str, jax.Array], call: SampleCall) -> Result:
    """The engine's reduction of per-sample values `[n]` over those that are valid."""
    options, weights = call_options(call, len(values))
    weight = jnp.ones_like(values) if weights is None else weights.astype(values.dtype)
    return reduced(RowLosses(jnp.where(valid, values, 0), valid.astype(values.dtype), stats), weight, options)


def _unit(rows: jax.Array) -> jax.Array:
    return clean_rows(rows, jnp.ones(len(rows), bool), "cosine", None)


def _own(table: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each sample's entry for its own class `[n, 1]`, and where that stands, bool `[n, c]`."""
    is_own = jnp.arange(table.shape[1], dtype=labels.dtype)[None, :] == labels[:, None]
    return jnp.take_along_axis(table, labels[:, None], axis=1), is_own


def _accuracy(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    return {"accuracy": jnp.argmax(logits, axis=1).astype(labels.dtype) == labels}


def _cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: Scalar) -> jax.Array:
    logs = jax.nn.log_softmax(logits)
    return -(1 - smoothing) * _own(logs, labels)[0][:, 0] - smoothing * jnp.mean(logs, axis=1)


def softmax_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    params: Params,
    label_smoothing: Scalar = 0.1,
    use_bias: bool = True,
    **call: Unpack[SampleCall],
) -> Result:
    """Cross-entropy of a linear classifier, with smoothed labels (Szegedy et al., CVPR 2016).

    The target is 1 - s for the own class plus s / c for every class; mean over samples.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"kernel": `[d, c]`, "bias": `[c]`}.
        label_smoothing: s, 0.1 in the paper.
        use_bias: False leaves the bias out, as after BNNeck (Luo et al. 2019), whose features lie about the origin.
        **call: `axis_name`, `ignore_label`, `sample_weights`, `reduction` and `with_stats` (here: accuracy), as in
            `mean_over_anchors`.
    """
    check_range("label_smoothing", label_smoothing, positive=False, below=1)
    vectors, labels, kernel, valid = _inputs(embeddings, labels, params["kernel"], 1, call)
    logits = products(vectors, kernel.T)
    if use_bias:
        logits = logits + jnp.asarray(params["bias"], logits.dtype)[None, :]
    return _reduced(_cross_entropy(logits, labels, label_smoothing), valid, _accuracy(logits, labels), call)


def arcface_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    params: Params,
    margin: Scalar = 0.5,
    scale: Scalar = 64.0,
    **call: Unpack[SampleCall],
) -> Result:
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
        **call: `axis_name`, `ignore_label`, `sample_weights`, `reduction` and `with_stats` (here: accuracy), as in
            `mean_over_anchors`.
    """
    check_range("margin", margin, positive=None)
    check_range("scale", scale)
    vectors, labels, kernel, valid = _inputs(embeddings, labels, params["kernel"], 1, call)
    # The lengths divide the products: dividing the kernel, far larger, took three times as long.
    lengths = safe_sqrt(squares(kernel.T))
    cosines = products(_unit(vectors), kernel.T) / jnp.where(lengths > 0, lengths, 1)[None, :]
    own, is_own = _own(cosines, labels)
    # The sine's slope is infinite at cosine 1, which rounding can pass.
    sine = jnp.sqrt(jnp.maximum(1 - own**2, 1e-6))
    turned = own * jnp.cos(margin) - sine * jnp.sin(margin)
    turned = jnp.where(own > -jnp.cos(margin), turned, own - margin * jnp.sin(margin))
    values = _cross_entropy(scale * jnp.where(is_own, turned, cosines), labels, 0.0)
    return _reduced(values, valid, _accuracy(cosines, labels), call)


def proxy_nca_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    params: Params,
    scale: Scalar = 3.0,
    include_own: bool = False,
    **call: Unpack[SampleCall],
) -> Result:
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
        **call: `axis_name`, `ignore_label`, `sample_weights`, `reduction` and `with_stats` (here: accuracy), as in
            `mean_over_anchors`.
    """
    check_range("scale", scale)
    vectors, labels, proxies, valid = _inputs(embeddings, labels, params["proxies"], 0, call)
    cosines = products(_unit(vectors), _unit(proxies))
    logits = -2 * scale**2 * (1 - cosines)
    own, is_own = _own(logits, labels)
    rivals = logits if include_own else jnp.where(is_own, -1e30, logits)
    values = jax.nn.logsumexp(rivals, axis=1) - own[:, 0]
    return _reduced(values, valid, _accuracy(cosines, labels), call)


def centre_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    params: Params,
    **call: Unpack[SampleCall],
) -> Result:
    """Centre loss (Wen et al., ECCV 2016): half the squared distance to the learnt centre of the own class.

    Meant beside a softmax loss; alone, everything collapses. Mean over samples (the paper: sum over the
    batch). The paper moves its centres by their own rule with a rate of 0.5; here they are parameters like
    all others, but for the trainer's weight decay, which spares them.

    Args:
        embeddings: `[n, d]`.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"centres": `[c, d]`}.
        **call: `axis_name`, `ignore_label`, `sample_weights`, `reduction` and `with_stats`, as in
            `mean_over_anchors`.
    """
    vectors, labels, centres, valid = _inputs(embeddings, labels, params["centres"], 0, call)
    values = squares(vectors - centres[labels]) / 2
    stats = {"distance_to_centre": jnp.sqrt(2 * values)}
    return _reduced(values, valid, stats, call)


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
