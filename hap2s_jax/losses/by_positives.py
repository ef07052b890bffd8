"""Sums over an anchor's triplets, one positive at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from hap2s_jax.losses.rows import AnchorRow
from hap2s_jax.losses.weightings import Scalar

# Up to this many positives of an anchor, one pass over the row for each is cheaper than sorting the row.
_FEW = 16
# (distances to a positive [n], rows) -> for each anchor how often that positive counts [n], and each key [n, m]
Counts = Callable[[jax.Array, AnchorRow], tuple[jax.Array, jax.Array]]


def by_positives(
    rows: AnchorRow, margin: Scalar, counts: Counts, sort: Callable[[AnchorRow], tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array]:
    """Sums over triplets of d_p - d_n + margin `[n]`, and how often positives have counted `[n]`.

    Which triplets count carries no gradient. Where all anchors have few positives these are taken in turn, the nearest
    first; else `sort` does the same for an anchor by sorting its row.
    """
    margin = jnp.asarray(margin, rows.distances.dtype)
    fixed = lax.stop_gradient(rows)
    near, gaps = rows.is_positive, fixed.distances

    def step(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        number, last, of_positives, of_keys = carry
        gap = jnp.min(jnp.where(near & (gaps > last[:, None]), gaps, jnp.inf), axis=1)
        same = near & (gaps == gap[:, None])  # several where positives tie
        times, taken = counts(gap, fixed)
        many = jnp.sum(same, axis=1).astype(gaps.dtype)
        of_positives = jnp.where(same, times[:, None], of_positives)
        return number + 1, gap, of_positives, of_keys + many[:, None] * taken

    def few() -> tuple[jax.Array, jax.Array]:
        zero = jnp.zeros_like(gaps)
        start = (jnp.zeros_like(most), jnp.full_like(gaps[:, 0], -jnp.inf), zero, zero)
        _, _, of_positives, of_keys = lax.while_loop(lambda carry: carry[0] < most, step, start)
        pull = jnp.sum(jnp.where(near, of_positives * (rows.distances + margin), 0), axis=1)
        push = jnp.sum(jnp.where(rows.is_negative, of_keys * rows.distances, 0), axis=1)
        return pull - push, jnp.sum(of_positives, axis=1)

    def many() -> tuple[jax.Array, jax.Array]:
        loss, terms = jax.vmap(sort, in_axes=(AnchorRow(0, 0, 0, 0, None, 0),))(rows)  # pyright: ignore[reportArgumentType]
        return loss, terms.astype(gaps.dtype)

    most = jnp.max(jnp.sum(near, axis=1))
    return lax.cond(most <= _FEW, few, many)
