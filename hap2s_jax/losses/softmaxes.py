"""Softmax losses over the classes: by a linear classifier, with margins on the sphere, with several centres a class."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from hap2s_jax.distances import COMPUTED_IN, FLOAT32, products, safe_sqrt, unit, whole
from hap2s_jax.losses.classes import (
    Params,
    Stats,
    accuracy,
    mean_over_samples,
    own_entry,
)
from hap2s_jax.losses.rows import Result, SampleCall
from hap2s_jax.losses.weightings import Scalar, check_range


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
    bias = params["bias"] if use_bias else jnp.zeros(jnp.shape(params["kernel"])[1])
    function = Partial(_softmax, label_smoothing, bias)
    return mean_over_samples(function, embeddings, labels, params["kernel"], -1, call)


def _softmax(
    smoothing: Scalar, bias: jax.Array, vectors: jax.Array, kernel: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Stats]:
    logits = products(vectors, kernel.T) + bias[None, :]
    own, _ = own_entry(logits, labels)
    target = (1 - smoothing) * own + smoothing * jnp.mean(logits, axis=1)
    return jax.nn.logsumexp(logits, axis=1) - target, accuracy(logits, labels)


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
    theta = pi - margin, where the cosine would rise again. pytorch-metric-learning's ArcFaceLoss states its margin in
    degrees.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"kernel": `[d, c]`}, normalised here.
        margin: radians.
        scale: inverse temperature.
        **call: `axis_name`, `ignore_label`, `sample_weights`, `reduction` and `with_stats` (here: accuracy), as in
            `mean_over_anchors`.
    """
    return _large_margin(_turned, margin, scale, embeddings, labels, params["kernel"], call)


def subcenter_arcface_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    params: Params,
    margin: Scalar = 0.5,
    scale: Scalar = 64.0,
    centres: int = 3,
    **call: Unpack[SampleCall],
) -> Result:
    """Sub-centre ArcFace (Deng et al., ECCV 2020): `arcface_loss` with the nearest of several centres of each class.

    Wrongly labelled samples gather about a centre of their own, away from the class's main one. Published: 3 centres,
    margin 0.5, scale 64. pytorch-metric-learning's SubCenterArcFaceLoss, whose W holds a class's centres side by side.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"kernel": `[d, centres, c]`}, normalised here.
        margin: radians.
        scale: inverse temperature.
        centres: of each class.
        **call: as in `arcface_loss`.
    """
    kernel = _several(params["kernel"], centres)
    return _large_margin(_turned, margin, scale, embeddings, labels, kernel, call)


def cosface_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    params: Params,
    margin: Scalar = 0.35,
    scale: Scalar = 64.0,
    **call: Unpack[SampleCall],
) -> Result:
    """CosFace (Wang et al., CVPR 2018): softmax of scaled cosines, less a margin for the own class.

    The logit of the own class is scale (cos(theta) - margin). Published: margin 0.35, scale 64.
    pytorch-metric-learning's CosFaceLoss.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"kernel": `[d, c]`}, normalised here.
        margin: in units of the cosine.
        scale: inverse temperature.
        **call: as in `arcface_loss`.
    """
    return _large_margin(jnp.subtract, margin, scale, embeddings, labels, params["kernel"], call)


def _large_margin(
    lessened: Callable[[jax.Array, jax.Array], jax.Array],
    margin: Scalar,
    scale: Scalar,
    embeddings: ArrayLike,
    labels: ArrayLike,
    kernel: ArrayLike,
    call: SampleCall,
) -> Result:
    check_range("margin", margin, positive=None)
    check_range("scale", scale)
    function = Partial(_margin_softmax, Partial(lessened), margin, scale)
    return mean_over_samples(function, embeddings, labels, kernel, -1, call, on_sphere=True)


def _margin_softmax(
    lessened: Callable[[jax.Array, jax.Array], jax.Array],
    margin: jax.Array,
    scale: jax.Array,
    vectors: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, Stats]:
    # By selection: where two centres are equally near, the gradient is of one of them.
    similarities = functools.reduce(
        lambda best, s: jnp.where(s > best, s, best), _to_centres(vectors, kernel)
    )
    own, is_own = own_entry(similarities, labels)
    less = lessened(own, margin)
    logits = scale * jnp.where(is_own, less[:, None], similarities)
    return jax.nn.logsumexp(logits, axis=1) - scale * less, accuracy(similarities, labels)


def _to_centres(vectors: jax.Array, kernel: jax.Array) -> list[jax.Array]:
    """Products `[n, c]` with each of the k centres of the classes, of a kernel `[d, k, c]` or `[d, c]`.

    Not at once: on a CPU, slices of `[n, k, c]` and their gradients take XLA as long as the products.
    """
    of_all = kernel.reshape(len(kernel), -1, kernel.shape[-1])
    return [products(vectors, of_all[:, k].T) for k in range(of_all.shape[1])]


def _turned(cosine: jax.Array, margin: jax.Array) -> jax.Array:
    """The cosine of the angle enlarged by `margin`, continued by a falling line."""
    # The sine's slope is infinite at cosine 1, which rounding can pass.
    sine = jnp.sqrt(jnp.maximum(1 - cosine**2, 1e-6))
    turned = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
    return jnp.where(cosine > -jnp.cos(margin), turned, cosine - margin * jnp.sin(margin))


def _several(kernel: ArrayLike, centres: int) -> jax.Array:
    kernel = jnp.asarray(kernel)
    if kernel.ndim != 3 or kernel.shape[1] != centres:
        raise ValueError(
            f"params {kernel.shape} do not fit centres={centres}; kernel should be [d, {centres}, c]"
        )
    return kernel


def soft_triple_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    params: Params,
    scale: Scalar = 20.0,
    gamma: Scalar = 0.1,
    margin: Scalar = 0.01,
    tau: Scalar = 0.2,
    centres: int = 10,
    **call: Unpack[SampleCall],
) -> Result:
    """SoftTriple (Qian et al., ICCV 2019): softmax over the classes' softly chosen centres.

    A class's similarity is S = sum_k softmax_k(s_k / gamma) s_k over the cosines with its K centres; the loss is the
    cross-entropy of the logits scale (S - margin for the own class), mean over samples, plus tau times the mean over
    pairs of centres of one class of half their distance, which merges superfluous ones. Published: scale (lambda) 20,
    gamma 0.1, margin (delta) 0.01, tau 0.2, 10 centres at 100 times the learning rate, which the trainer gives them.
    pytorch-metric-learning's SoftTripleLoss, which has no tau and whose fc holds a class's centres side by side.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"kernel": `[d, centres, c]`}, normalised here.
        scale: inverse temperature of the classes.
        gamma: temperature of the centres.
        margin: in units of the cosine.
        tau: weight of the distance between a class's centres.
        centres: of each class.
        **call: as in `arcface_loss`.
    """
    check_range("scale", scale)
    check_range("gamma", gamma)
    check_range("margin", margin, positive=None)
    check_range("tau", tau, positive=False)
    kernel = whole(_several(params["kernel"], centres))
    of_centres = kernel.astype(COMPUTED_IN.get(jnp.asarray(embeddings).dtype, FLOAT32))
    apart = jnp.asarray(tau, of_centres.dtype) * _distance_of_centres(of_centres) if centres > 1 else 0.0
    function = Partial(_soft_triple, scale, gamma, margin, apart)
    return mean_over_samples(function, embeddings, labels, kernel, -1, call, on_sphere=True)


def _soft_triple(
    scale: jax.Array,
    gamma: jax.Array,
    margin: jax.Array,
    apart: jax.Array,
    vectors: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, Stats]:
    to_centres = _to_centres(vectors, kernel)
    # The barrier keeps XLA's CPU code from finding the maximum anew for every exponential.
    top = lax.optimization_barrier(lax.stop_gradient(functools.reduce(jnp.maximum, to_centres)))
    parts = [jnp.exp((similarity - top) / gamma) for similarity in to_centres]
    weighted = functools.reduce(jnp.add, map(jnp.multiply, parts, to_centres))
    similarities = weighted / functools.reduce(jnp.add, parts)
    own, is_own = own_entry(similarities, labels)
    logits = scale * jnp.where(is_own, similarities - margin, similarities)
    values = jax.nn.logsumexp(logits, axis=1) - scale * (own - margin)
    return values + apart, accuracy(similarities, labels)


def _distance_of_centres(kernel: jax.Array) -> jax.Array:
    """Half the mean distance between two normalised centres of one class, of a kernel `[d, k, c]`."""
    of_classes = unit(kernel, 0).transpose(2, 1, 0)  # [c, k, d]
    gaps = safe_sqrt(2 - 2 * jax.vmap(products)(of_classes, of_classes))
    count = kernel.shape[1]
    first, second = jnp.triu_indices(count, 1)
    return jnp.mean(gaps[:, first, second]) / 2


def init_kernel_params(
    key: jax.Array, num_classes: int, embedding_dim: int, *, centres: int | None = None
) -> dict[str, jax.Array]:
    """Random directions: {"kernel": `[d, c]`}, or `[d, centres, c]`."""
    shape = (embedding_dim, num_classes) if centres is None else (embedding_dim, centres, num_classes)
    return {"kernel": jax.random.normal(key, shape) / math.sqrt(embedding_dim)}


def init_softmax_params(key: jax.Array, num_classes: int, embedding_dim: int) -> dict[str, jax.Array]:
    """A classifier with small random weights and no bias: {"kernel": `[d, c]`, "bias": `[c]`}."""
    return {**init_kernel_params(key, num_classes, embedding_dim), "bias": jnp.zeros(num_classes)}
