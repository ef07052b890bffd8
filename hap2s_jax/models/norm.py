"""Batch normalisation as torch computes it, synchronised over devices, and freezable in two ways."""

from __future__ import annotations

import jax
import jax.numpy as jnp
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

        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train and not self.freeze_stats:
            mean, var, count = self._batch_statistics(x, running_mean.value)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = _blend(running_mean.value, mean, self.momentum)
                running_var.value = _blend(running_var.value, unbiased, self.momentum)
        else:
            mean, var = running_mean.value, running_var.value

        y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale)
        if bias is not None:
            y = y + bias
        return y if self.dtype is None else y.astype(self.dtype)

    def _batch_statistics(self, x: jax.Array, running_mean: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Mean `[c]`, biased variance `[c]` and number of samples of the global batch."""
        axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        # One pass and one collective need E[x^2] - E[x]^2, which cancels badly far from the origin. Variance
        # does not depend on the origin, so it is taken about the running mean, which is near the batch's.
        shifted = x - running_mean
        mean, mean_of_squares = shifted.mean(axes), jnp.square(shifted).mean(axes)
        if self.axis_name is not None and not self.is_initializing():
            mean, mean_of_squares = jax.lax.pmean((mean, mean_of_squares), self.axis_name)
            count *= jax.lax.axis_size(self.axis_name)
        var = jnp.maximum(mean_of_squares - jnp.square(mean), 0.0)
        return mean + running_mean, var, count


def _blend(old: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
    return (momentum * old + (1 - momentum) * jax.lax.stop_gradient(new)).astype(old.dtype)
