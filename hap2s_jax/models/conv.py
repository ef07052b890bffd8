"""Convolution with torch's padding, and with matrix products where XLA's convolution is slow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


class Conv(nn.Module):
    """A square convolution without bias, padded by `kernel // 2` on every side, as torch's ResNets pad.

    ("SAME" pads a strided convolution at the far edge only.) The parameter is `kernel`
    `[kernel, kernel, c / groups, features]`.

    Attributes:
      features: channels that come out.
      kernel: side of the kernel, odd.
      stride: in both directions.
      groups: feature groups.
      dtype: of the computation; the parameter is float32.
    """

    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, ceil(h / stride), ceil(w / stride), features]`."""
        side, stride, groups = self.kernel, self.stride, self.groups
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            (side, side, x.shape[-1] // groups, self.features),
            jnp.float32,
        )
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        # XLA's CPU code would compute the normalisation and ReLU before a convolution once more while it transposes
        # their result for the kernel's gradient, and read across memory: a quarter of a ResNet-18's step of 64 images.
        x = lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)
        if side == 1 and groups == 1:
            # On CPU XLA's product is three times as fast as its 1x1 convolution.
            # Adding this zero makes the kernel vary over the devices as `x` does, which shard_map's check_vma wants of
            # what goes into a custom rule.
            return _project(x[:, ::stride, ::stride], kernel[0, 0] + jnp.zeros_like(x).sum())

        def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                [(side // 2, side // 2)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        if groups == 1 and min(x.shape[1:3]) <= 2 * stride:
            # The backward pass of XLA's CPU convolution is up to fifty times slower when a side of the output is
            # 1 or 2 pixels.
            return lax.platform_dependent(
                x, kernel, cpu=lambda x, kernel: _convolve_patches(x, kernel, stride), default=convolve
            )
        return convolve(x, kernel)


@jax.custom_vjp
def _project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product of `x` `[..., c]` and `kernel` `[c, f]`; its gradient copies as little as it can on a CPU."""
    return x @ kernel


def _project_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _project_backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    rows, sums = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    over_rows = (((0,), (0,)), ((), ()))
    # XLA transposes the first operand of such a product in memory, so the one with fewer channels comes first.
    # Autodiff always has the cotangent there: 310 ms of a ResNet-50's step of 2,340 (16 images at 160 pixels).
    if kernel.shape[0] <= kernel.shape[1]:
        to_kernel = lax.dot_general(rows, sums, over_rows)
    else:
        to_kernel = lax.dot_general(sums, rows, over_rows).T
    return cotangent @ kernel.T, to_kernel


_project.defvjp(_project_forward, _project_backward)


def _convolve_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same convolution as one matrix product over gathered patches."""
    n, height, width, channels = x.shape
    side, features = kernel.shape[0], kernel.shape[-1]
    padding = side // 2
    rows, columns = -(-height // stride), -(-width // stride)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    patches = [
        x[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i in range(side)
        for j in range(side)
    ]
    flat = jnp.concatenate(patches, axis=-1).reshape(n * rows * columns, side * side * channels)
    return (flat @ kernel.reshape(-1, features)).reshape(n, rows, columns, features)
