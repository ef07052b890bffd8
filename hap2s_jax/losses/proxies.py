"""Losses against one learnt point of each class: Proxy-NCA, Proxy-Anchor, centre loss."""

from __future__ import annotations

import functools
import math
from typing import Unpack

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from hap2s_jax.distances import products, squares, unit, whole
from hap2s_jax.losses.classes import (
    Params,
    Stats,
    accuracy,
    everyones,
    mean_over_samples,
    over_devices,
    own_entry,
    prepare_classes,
)
from hap2s_jax.losses.engine import reduced
from hap2s_jax.losses.pairs import log_sum_exp, log_sums_apart
from hap2s_jax.losses.rows import Batch, Options, Result, SampleCall
from hap2s_jax.losses.weightings import Scalar, check_range


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
    `scale`, z over the other classes' proxies (over all of them with `include_own`, as in Proxy-NCA++, Teh et al.,
    ECCV 2020, whose scale is the root of 9, and in pytorch-metric-learning's ProxyNCALoss, whose softmax_scale is our
    `scale` squared); mean over samples.

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
    function = Partial(_proxy_nca_with_own if include_own else _proxy_nca, scale)
    return mean_over_samples(function, embeddings, labels, params["proxies"], 0, call, on_sphere=True)


def _proxy_nca(
    scale: jax.Array, vectors: jax.Array, proxies: jax.Array, labels: jax.Array, include_own: bool = False
) -> tuple[jax.Array, Stats]:
    similarities = products(vectors, proxies)
    logits = -2 * scale**2 * (1 - similarities)
    own, is_own = own_entry(logits, labels)
    rivals = logits if include_own else jnp.where(is_own, -1e30, logits)
    return jax.nn.logsumexp(rivals, axis=1) - own, accuracy(similarities, labels)


_proxy_nca_with_own = functools.partial(_proxy_nca, include_own=True)


def proxy_anchor_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    params: Params,
    alpha: Scalar = 32.0,
    margin: Scalar = 0.1,
    **call: Unpack[SampleCall],
) -> Result:
    """Proxy-Anchor (Kim et al., CVPR 2020): each class's proxy is the anchor, the batch's samples its pairs.

    Mean over the proxies of the batch's classes of log(1 + sum_p exp(-alpha (s - margin))), plus mean over all proxies
    of log(1 + sum_n exp(alpha (s + margin))), s the cosines with the samples of its class and of others. It is every
    sample's loss, so that sample weights change nothing. Published: alpha 32, margin 0.1, proxies at 100 times the
    learning rate, which the trainer gives them. pytorch-metric-learning's ProxyAnchorLoss.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`, 0 to c - 1; any other label than `ignore_label` makes the loss NaN.
        params: {"proxies": `[c, d]`}, normalised here.
        alpha: steepness.
        margin: in units of the cosine.
        **call: `axis_name`, `ignore_label`, `sample_weights`, `reduction` and `with_stats` (here: accuracy), as in
            `mean_over_anchors`.
    """
    check_range("alpha", alpha)
    check_range("margin", margin, positive=None)
    batch, options = prepare_classes(embeddings, labels, whole(jnp.asarray(params["proxies"])), 0, call)
    return _proxy_anchor(alpha, margin, batch, options)


@functools.partial(jax.jit, static_argnames="options")
def _proxy_anchor(alpha: Scalar, margin: Scalar, batch: Batch, options: Options) -> Result:
    labels, valid = batch.anchors.labels, batch.anchors.valid
    # The samples of a proxy are a row, since XLA's CPU code reduces columns slowly.
    similarities = products(unit(batch.key_vectors), unit(batch.vectors))
    alpha, margin = (jnp.asarray(number, similarities.dtype) for number in (alpha, margin))
    is_own = jnp.arange(len(similarities), dtype=labels.dtype)[:, None] == labels[None, :]
    own, others = is_own & valid[None, :], ~is_own & valid[None, :]
    logits = alpha * jnp.where(is_own, margin - similarities, margin + similarities)

    def over_all(sums: jax.Array) -> jax.Array:
        """log(1 + sum exp) `[c]` over all devices."""
        gathered = over_devices(sums[None, :], options.axis_name).T
        return jax.vmap(functools.partial(log_sum_exp, with_one=True))(gathered, gathered > -1e30)

    pull, push = map(over_all, log_sums_apart(logits, own, others))
    present = over_devices(jnp.any(own, axis=1)[None, :], options.axis_name)
    classes = jnp.sum(jnp.any(present, axis=0)).astype(pull.dtype)
    value = jnp.sum(pull) / jnp.maximum(classes, 1) + jnp.mean(push)
    stats = accuracy(similarities.T, labels)
    return reduced(everyones(value, valid, stats), batch.anchors.weight, options)


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
    return mean_over_samples(
        Partial(_centre), embeddings, labels, whole(jnp.asarray(params["centres"])), 0, call
    )


def _centre(vectors: jax.Array, centres: jax.Array, labels: jax.Array) -> tuple[jax.Array, Stats]:
    values = squares(vectors - centres[labels]) / 2
    return values, {"distance_to_centre": jnp.sqrt(2 * values)}


def init_proxy_params(key: jax.Array, num_classes: int, embedding_dim: int) -> dict[str, jax.Array]:
    """Random directions: {"proxies": `[c, d]`}."""
    return {"proxies": jax.random.normal(key, (num_classes, embedding_dim)) / math.sqrt(embedding_dim)}


def init_centre_params(key: jax.Array, num_classes: int, embedding_dim: int) -> dict[str, jax.Array]:
    """Centres at the origin: {"centres": `[c, d]`}."""
    del key
    return {"centres": jnp.zeros((num_classes, embedding_dim))}
