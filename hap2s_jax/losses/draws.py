"""Random draws for anchors.

Draws are made from (key, the anchor's number in the global batch), so they do not depend on devices or blocks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Shares are summed in groups of this size before the search.
_GROUP = 64


def key_data(key: jax.Array | None) -> jax.Array:
    """Raw data of a random key; None means a fixed one."""
    # Stored as an integer array, which custom rules and tree maps treat like any other leaf.
    key = jax.random.key(0) if key is None else key
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def uniforms(key: jax.Array, index: jax.Array, count: int, dtype: DTypeLike) -> jax.Array:
    """Numbers `[n, count]` from 0 to 1 of the anchors with numbers `index` `[n]`."""
    return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (count,), dtype))(index)


def drawn(shares: jax.Array, draws: jax.Array) -> jax.Array:
    """Keys `[n, k]` drawn with probabilities in proportion to `shares` `[n, m]`, by numbers `[n, k]` from 0 to 1."""
    padded = jnp.pad(shares, ((0, 0), (0, -shares.shape[1] % _GROUP)))
    groups = padded.reshape(len(shares), -1, _GROUP)
    sums = jnp.cumsum(jnp.sum(groups, axis=2), axis=1)
    goals = draws * sums[:, -1:]
    group = _first_above(sums[:, None, :], goals)
    before = jnp.take_along_axis(jnp.pad(sums, ((0, 0), (1, 0))), group, axis=1)
    inside = jnp.cumsum(jax.vmap(lambda of, place: of[place])(groups, group), axis=2)
    return group * _GROUP + _first_above(inside, goals - before)


def _first_above(sums: jax.Array, goals: jax.Array) -> jax.Array:
    """Where running sums `[..., s]` first exceed the goals `[...]`, or last rise if rounding keeps them below."""
    return jnp.minimum(jnp.sum(sums <= goals[..., None], axis=-1), jnp.sum(sums < sums[..., -1:], axis=-1))
