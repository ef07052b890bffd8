"""From a feature map `[n, h, w, c]` to one vector per image `[n, c]`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

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
        x = feature_map.astype(jnp.promote_types(feature_map.dtype, jnp.float32))
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
            return (jnp.maximum(x, 1e-6) ** p).mean((1, 2)) ** (1 / p)
        raise ValueError(f"pooling is {self.kind!r}; choose one of {', '.join(POOLINGS)}.")


def _largest(x: jax.Array) -> jax.Array:
    """The maximum over `x` `[n, h, w, c]`'s places, with its gradient to the first of them.

    The gradient of `jnp.max` looks for the places that equal the maximum. A compiler that computes `x` once more for
    it, in another order, leaves none, and 0 / 0: seen on a CPU, with code that was not optimised.
    """
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    first = jnp.argmax(flat, axis=1, keepdims=True)
    return jnp.take_along_axis(flat, first, axis=1)[:, 0]
