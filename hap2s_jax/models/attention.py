"""Attention of several heads, on a CPU image by image, and the linear layers around it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from hap2s_jax.models.rotary import turn


class Dense(nn.Module):
    """A linear layer whose output may be scaled."""

    features: int
    dtype: jax.typing.DTypeLike
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """Maps `[..., c]` to `[..., features]`, times `scale` `[features]`."""
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            if self.use_bias
            else None
        )
        if scale is not None:
            # Weights are fewer than tokens; and where the tokens are scaled, XLA on a CPU adds up the gradients of all
            # later blocks anew for each.
            kernel, bias = kernel * scale, None if bias is None else bias * scale
        y = x.astype(self.dtype).reshape(-1, x.shape[-1]) @ kernel.astype(self.dtype)
        if bias is not None:
            y += jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y.reshape(*x.shape[:-1], self.features)


class Attention(nn.Module):
    """Attention of several heads of queries `[n, s, dim]` to tokens `[n, t, dim]`."""

    heads: int
    dtype: jax.typing.DTypeLike
    key_bias: bool = True

    @nn.compact
    def __call__(
        self,
        queries: jax.Array,
        tokens: jax.Array,
        scale: jax.Array | None = None,
        angles: np.ndarray | None = None,
    ) -> jax.Array:
        """Maps them to `[n, s, dim]`, times `scale` `[dim]`; queries and keys are turned by `angles` (see `rotary`)."""
        dim = tokens.shape[-1]
        inputs = {"query": queries, "key": tokens, "value": tokens}
        split = {
            name: Dense(dim, self.dtype, name != "key" or self.key_bias, name=name)(x).reshape(
                *x.shape[:2], self.heads, dim // self.heads
            )
            for name, x in inputs.items()
        }
        if angles is not None:
            split |= {name: turn(split[name], angles) for name in ("query", "key")}
        mixed = attend(*split.values())
        return Dense(dim, self.dtype, name="output")(mixed.reshape(queries.shape), scale)


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Attention of queries `[n, s, heads, c]` to keys and values `[n, t, heads, c]`; the softmax is float32 or wider.

    `jax.nn.dot_product_attention`, to rounding. On a CPU that takes three times as long as torch's (8 images of 257
    tokens, 6 heads of 64, with the gradient: 60 to 72 ms on two cores, where this takes 34 and torch 23 to 30).

    Returns:
      `[n, s, heads, c]`, of the queries' dtype.
    """
    return lax.platform_dependent(queries, keys, values, cpu=_by_image, default=jax.nn.dot_product_attention)


@jax.custom_vjp
def _by_image(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    return _forward(queries, keys, values)[0]


def _forward(*inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # One image's weights stay in the cache, and none are kept for the backward pass, which makes them again of the
    # logarithm of their sum (Dao et al., "FlashAttention", 2022).
    mixed, log_sum = lax.map(lambda image: _attend_one(*image), inputs)
    return mixed, (*inputs, mixed, log_sum)


def _backward(residuals: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[jax.Array, ...]:
    return lax.map(lambda image: _pull_back_one(*image), (*residuals, cotangent))


_by_image.defvjp(_forward, _backward)


def _attend_one(queries: jax.Array, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One image's `[s, heads, c]`, and the logarithms of the sums of its weights before they are divided."""
    scores = _scores(queries, keys)
    largest = scores.max(1)
    weights = jnp.exp(scores - largest[:, None])
    total = weights.sum(1)
    mixed = _product(weights, _by_head(values), 1) / total[..., None]
    return _by_head(mixed).astype(queries.dtype), largest + jnp.log(total)


def _pull_back_one(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mixed: jax.Array,
    log_sum: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, ...]:
    """The cotangents of one image's queries, keys and values."""
    scale = queries.shape[-1] ** -0.5
    weights = jnp.exp(_scores(queries, keys) - log_sum[:, None])
    cotangent = cotangent.astype(weights.dtype)
    by_weights = _product(_by_channel(values), _by_channel(cotangent), 1)
    total = (cotangent * mixed.astype(weights.dtype)).sum(-1).T
    by_scores = weights * (by_weights - total[:, None]) * scale
    to_queries = _product(by_scores, _by_head(keys), 1)
    to_keys = _product(by_scores, _by_head(queries), 2)
    to_values = _product(weights, _by_head(cotangent), 2)
    pairs = ((to_queries, queries), (to_keys, keys), (to_values, values))
    return tuple(_by_head(to).astype(x.dtype) for to, x in pairs)


def _scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """`[heads, t, s]`, keys before queries: on a CPU XLA is fastest where both operands have what is summed first."""
    wide = np.promote_types(queries.dtype, np.float32)
    scaled = queries.astype(wide) * queries.shape[-1] ** -0.5
    return _product(_by_channel(keys), _by_channel(scaled), 1)


def _product(left: jax.Array, right: jax.Array, over: int) -> jax.Array:
    """Head by head, summed over dimension `over` of `left` and dimension 1 of `right`."""
    wide = np.promote_types(np.promote_types(left.dtype, right.dtype), np.float32)
    return lax.dot_general(left.astype(wide), right.astype(wide), (((over,), (1,)), ((0,), (0,))))


def _by_head(x: jax.Array) -> jax.Array:
    return x.transpose(1, 0, 2)


def _by_channel(x: jax.Array) -> jax.Array:
    return x.transpose(1, 2, 0)
