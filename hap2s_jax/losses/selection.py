"""Losses that keep one or two pairs an anchor: batch-hard, easy-positive, MSML, quadruplet.

Which pairs decide carries no gradient, so one product is enough: blocks of anchors find their farthest positive and
nearest negative among all keys, and only these pairs' distances are formed again, by differences and with a gradient.
Memory is linear in the batch. Of pairs that tie, the first key in the batch is taken, as in torch, in blocks of any
size and on any number of devices.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hap2s_jax.distances import distances_of_pairs, mean_of, safe_sqrt
from hap2s_jax.losses.engine import anchor_rows
from hap2s_jax.losses.rows import Anchors, Batch, Options, PairStats
from hap2s_jax.losses.weightings import split

# Size of a block whose distances stay in the processor's cache.
_CACHED_PAIRS = 2**18


class Pairs(NamedTuple):
    """The pairs that decide, per anchor `[n]`; distances are 0 where there is no such key."""

    valid: jax.Array  # whether the anchor has a positive and a negative
    to_positive: jax.Array
    to_negative: jax.Array
    has_positive: jax.Array
    has_negative: jax.Array
    negative_label: jax.Array  # the chosen negative's class
    to_other: jax.Array  # nearest of a third class; infinite if there is none, or if it was not asked for
    means: PairStats | None  # whose active_fraction is not used
    farthest: jax.Array | None  # distance to the farthest positive


def first_largest(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The position `[n]` of each row's first largest masked value in `[n, m]`, and whether there is one."""
    # XLA's CPU code vectorises a maximum and a comparison, but walks an argmax in a scalar loop.
    kept = jnp.where(mask, values, -jnp.inf)
    best = jnp.max(kept, axis=1)
    places = jnp.arange(values.shape[1], dtype=jnp.int32)
    found = jnp.where(kept == best[:, None], places[None, :], values.shape[1] - 1)
    return jnp.min(found, axis=1), best > -jnp.inf


def chosen_pairs(batch: Batch, options: Options, signs: tuple[int, int], *, other: bool = False) -> Pairs:
    """Each anchor's farthest (sign 1) or nearest (-1) positive, and likewise its negative.

    Args:
        batch: from the engine.
        options: the call's.
        signs: of the positive and of the negative.
        other: also find the nearest key that is neither of the anchor's class nor of its chosen negative's.
    """
    vectors, anchors, key_vectors, keys = batch
    count, width, size = len(vectors), len(key_vectors), options.block_size
    block = count if size == "never" else min(size or max(16, _CACHED_PAIRS // width), count)
    # Squares have the same order as their roots.
    ranked_by = "squared_euclidean" if options.distance == "euclidean" else options.distance
    fixed = lax.stop_gradient(key_vectors)

    def of_block(
        part: tuple[jax.Array, Anchors],
    ) -> tuple[list[tuple[jax.Array, jax.Array]], list[jax.Array]]:
        rows = anchor_rows(Batch(*part, fixed, keys), ranked_by)
        near, far = rows.is_positive, rows.is_negative
        found = [
            first_largest(signs[0] * rows.distances, near),
            first_largest(signs[1] * rows.distances, far),
        ]
        if other:
            third = far & (keys.labels[None, :] != keys.labels[found[1][0]][:, None])
            found.append(first_largest(-rows.distances, third))
        stats = []
        if options.with_stats:
            gaps = safe_sqrt(rows.distances) if options.distance == "euclidean" else rows.distances
            stats = [mean_of(gaps, near), mean_of(gaps, far), jnp.max(jnp.where(near, gaps, 0), axis=1)]
        return found, stats

    found = lax.map(of_block, split((lax.stop_gradient(vectors), anchors), block))
    found, stats = jax.tree.map(lambda x: x.reshape(-1)[:count], found)
    gaps = []
    for place, exists in found:
        gap = distances_of_pairs(vectors, key_vectors[place], options.distance)
        gaps.append(jnp.where(exists, gap, jnp.inf if len(gaps) == 2 else 0))
    has_positive, has_negative = found[0][1], found[1][1]
    return Pairs(
        anchors.valid & has_positive & has_negative,
        gaps[0],
        gaps[1],
        has_positive,
        has_negative,
        keys.labels[found[1][0]],
        gaps[2] if other else jnp.full_like(gaps[0], jnp.inf),
        PairStats(found[0][1], *stats[:2]) if stats else None,
        stats[2] if stats else None,
    )
