"""From a feature map `[n, h, w, c]` to one vector per image `[n, c]`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

POOLINGS = ("gap", "gem", "gap+gmp", "grid2")


class Pooling(nn.Module):
    """Global pooling, in float32 whatever the dtype of the map.

    Attributes:
      kind: "gap", the mean; "gem", the generalised mean `(mean x^p)^(1/p)` with one learnt `p` that starts
        at 3 (Radenovic et al., 2018); "gap+gmp", mean plus maximum; "grid2", the means over the quarters of the
        map (rounded where a side is odd, the middle then counts twice), `4 c` wide: keeps where things are, for
        images that are aligned.
    """

    kind: str = "gap"

    @nn.compact
    def __call__(self, feature_map: jax.Array) -> jax.Array:
        """Pools `feature_map` `[n, h, w, c]` to float32 `[n, c]`."""
        x = feature_map.astype(np.promote_types(feature_map.dtype, np.float32))
        if self.kind == "gap":
            return x.mean((1, 2))
        if self.kind == "grid2":
            height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
            quarters = [
                part
                for half in (x[:, :height], x[:, -height:])
                for part in (half[:, :, :width], half[:, :, -width:])
            ]
            return jnp.concatenate([quarter.mean((1, 2)) for quarter in quarters], axis=-1)
        if self.kind == "gap+gmp":
            return x.mean((1, 2)) + _largest(x)
        if self.kind == "gem":
            p = self.param("p", nn.initializers.constant(3.0), (1,), jnp.float32)
            # Below this floor the gradients of x^p and of its root have no bound.
            p = p.astype(x.dtype)
            mean = (jnp.maximum(x, 1e-6) ** p.reshape(1, 1, 1, 1)).mean((1, 2))
            return mean ** (1 / p).reshape(1, 1)
        raise ValueError(f"pooling is {self.kind!r}; choose one of {', '.join(POOLINGS)}.")


def _largest(x: jax.Array) -> jax.Array:
    """The maximum over `x` `[n, h, w, c]`'s places, with its gradient to the first of them.

    The gradient of `jnp.max` looks for the places that equal the maximum. A compiler that computes `x` once more for
    it, in another order, leaves none, and 0 / 0: seen on a CPU, with code that was not optimised.
    """
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    first = jnp.argmax(flat, axis=1, keepdims=True)
    return jnp.take_along_axis(flat, first, axis=1)[:, 0]


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum over 3x3 windows at stride 2, padded by 1 on every side, as torch's ResNets have it.

    Maps `x` `[n, h, w, c]` to `[n, ceil(h / 2), ceil(w / 2), c]`; a window's gradient goes to the first of its largest.
    """
    # On a CPU value and gradient for 16 x 80 x 80 x 64 took 224 ms of processor time with reduce_window, and with
    # this 10 in another run.
    # For a TPU the compiler estimates 5% more for the whole step of a ResNet-50.
    return lax.platform_dependent(x, cpu=_max_of_taps, default=_max_of_windows)


def _max_of_windows(x: jax.Array) -> jax.Array:
    lowest = np.asarray(-np.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


@jax.custom_jvp
def _max_of_taps(x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, _taps(x, -jnp.inf))


@_max_of_taps.defjvp
def _max_of_taps_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # Image by image, since what a loop returns is kept: else XLA finds the place anew, nine taps at a time, for every
    # place of the gradient, which takes seven times as long.
    largest, first = lax.map(_largest_and_place, primals[0][:, None])
    largest, first = largest[:, 0], first[:, 0]
    chosen = [jnp.where(first == number, tap, 0) for number, tap in enumerate(_taps(tangents[0], 0))]
    return largest, functools.reduce(jnp.add, chosen)


def _largest_and_place(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest of the nine taps, and the number of the first that is it."""
    taps = _taps(x, -jnp.inf)
    largest, first = taps[0], jnp.zeros(taps[0].shape, jnp.int8)
    for number, tap in enumerate(taps[1:], 1):
        first = jnp.where(tap > largest, jnp.int8(number), first)
        largest = jnp.maximum(largest, tap)
    return largest, first


def _taps(x: jax.Array, border: float) -> list[jax.Array]:
    """The nine arrays `[n, ceil(h / 2), ceil(w / 2), c]` that stand at the places of a 3x3 window at stride 2.

    They are slices of the four arrays of even and odd rows and columns: the gradient then gathers those four and
    interleaves them, where that of strided slices would scatter nine times.
    """
    rows, columns = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    after = (2 * rows + 1 - x.shape[1], 2 * columns + 1 - x.shape[2])
    x = jnp.pad(x, ((0, 0), (1, after[0]), (1, after[1]), (0, 0)), constant_values=border)
    x = x.reshape(x.shape[0], rows + 1, 2, columns + 1, 2, x.shape[-1])
    phases = [
        [lax.squeeze(part, (2, 4)) for part in lax.split(half, (1, 1), 4)] for half in lax.split(x, (1, 1), 2)
    ]
    return [
        phases[i % 2][j % 2][:, i // 2 : i // 2 + rows, j // 2 : j // 2 + columns]
        for i in range(3)
        for j in range(3)
    ]
