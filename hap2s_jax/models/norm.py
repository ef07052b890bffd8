"""Batch normalisation as torch computes it, synchronised over devices, and freezable in two ways."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy, 2015).

    It differs from `flax.linen.BatchNorm` in what exact import and fine-tuning need: the running variance
    takes the unbiased estimate, n/(n-1), as torch's does; statistics and scale/bias freeze separately.

    Attributes:
      momentum: share of the old running statistics that is kept (torch's momentum 0.1 is 0.9 here).
      epsilon: added to the variance.
      axis_name: mapped axis over which the batch statistics are those of the global batch, or None.
      freeze_stats: normalise with the running statistics in training too, and leave them alone.
      freeze_affine: scale and bias get no gradient.
      use_bias: False leaves the bias out (the neck of BNNeck).
      scale_init: initialiser of the scale.
      dtype: dtype of the output; None is float32 or, for float64 input, float64. Statistics, scale and bias are
        created in float32 always.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    freeze_stats: bool = False
    freeze_affine: bool = False
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises `x` `[..., c]`: by the batch when `train`, else by the running statistics."""
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32) if self.use_bias else None
        if self.freeze_affine:
            scale, bias = jax.lax.stop_gradient((scale, bias))

        # (np: jnp.promote_types refuses where jax_numpy_dtype_promotion is "strict")
        x = x.astype(np.promote_types(x.dtype, np.float32))
        origin, var = running_mean.value.astype(x.dtype), running_var.value.astype(x.dtype)
        # Output and statistics are both written in terms of the distance from the running mean. The gradient then takes
        # two sums over the batch, of g and of g * shifted, and autodiff itself arrives at the closed form.
        shifted = x - _over_batch(origin, x.shape)
        mean = jnp.zeros_like(origin)
        if train and not self.freeze_stats:
            mean, var, count = self._batch_statistics(shifted)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = _blend(running_mean.value, mean + origin, self.momentum)
                running_var.value = _blend(running_var.value, unbiased, self.momentum)

        factor = jax.lax.rsqrt(var + self.epsilon) * scale.astype(x.dtype)
        offset = -mean * factor if bias is None else bias.astype(x.dtype) - mean * factor
        y = shifted * _over_batch(factor, x.shape) + _over_batch(offset, x.shape)
        return y if self.dtype is None else y.astype(self.dtype)

    def _batch_statistics(self, shifted: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Mean `[c]` and biased variance `[c]` of `shifted`, and number of samples, of the global batch."""
        count = shifted.size // shifted.shape[-1]
        # One pass and one collective need E[x^2] - E[x]^2, which cancels badly far from the origin. Variance
        # does not depend on the origin, so it is taken about the running mean, which is near the batch's.
        mean, mean_of_squares = (_sum(shifted) / count, _sum(jnp.square(shifted)) / count)
        if self.axis_name is not None and not self.is_initializing():
            mean, mean_of_squares = jax.lax.pmean((mean, mean_of_squares), self.axis_name)
            count *= jax.lax.axis_size(self.axis_name)
        return mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0.0), count


def _sum(x: jax.Array) -> jax.Array:
    """Sums `x` `[..., w, c]` to `[c]`, over w first: on a CPU twice as fast as over all axes at once."""
    return x.reshape(-1, *x.shape[-2:]).sum(1).sum(0) if x.ndim > 2 else x.sum(0)


def _over_batch(channels: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Broadcasts `channels` `[c]` to `shape` `[..., w, c]` in two steps, so that the gradient sums as `_sum` does."""
    if len(shape) < 3:
        return jnp.broadcast_to(channels, shape)
    rows = jnp.broadcast_to(channels, (*shape[:-2], 1, shape[-1]))
    return jnp.broadcast_to(rows, shape)


def _blend(old: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
    new = jax.lax.stop_gradient(new)
    return (momentum * old.astype(new.dtype) + (1 - momentum) * new).astype(old.dtype)
