"""Places in sorted arrays, and what they are asked for: a point of each row's class."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType


def places_among(ordered: jax.Array, wanted: jax.Array, side: Literal["left", "right"] = "left") -> jax.Array:
    """As `jnp.searchsorted`, whose loop fails in a `shard_map` that is manual over some axes only (jax 0.12)."""
    kinds = {*(jax.sharding.get_abstract_mesh().axis_types or ())}
    partly = AxisType.Manual in kinds and len(kinds) > 1
    if not partly:
        return jnp.searchsorted(ordered, wanted, side=side)
    place = jnp.searchsorted(ordered, wanted, side=side, method="sort")
    return jnp.where(wanted == wanted, place, place)  # which says that it varies over the manual axes


def class_origins(
    labels: jax.Array, key_vectors: jax.Array, key_labels: jax.Array, key_valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """For rows and for keys, the first valid key of their class: `[n, d]` and `[m, d]`, without gradient.

    Differences from a member of a class are exact where it is small, which is where the Gram matrix about the centre of
    the batch fails.
    """
    # Invalid keys must not become an origin: two stable sorts put them last within their label.
    order = jnp.argsort(~key_valid, stable=True)
    order = order[jnp.argsort(key_labels[order], stable=True)]
    ordered = key_labels[order]
    points = lax.stop_gradient(key_vectors)

    found = []
    for wanted in (labels, key_labels):
        place = jnp.minimum(places_among(ordered, wanted), ordered.shape[0] - 1)
        found.append(points[order[place]])
    return found[0], found[1]
