"""An anchor's row, and the sums over anchors that every path of the engine returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hap2s_jax.distances import Rows, pair_distances


class AnchorRow(NamedTuple):
    """All that a loss may know of one anchor.

    Attributes:
        distances: `[m]`, from the anchor to every key.
        is_positive: bool `[m]`, keys of the anchor's label, the anchor itself left out.
        is_negative: bool `[m]`, keys of other labels. Ignored keys are neither.
        label: `[]`, the anchor's label.
        key_labels: `[m]`.
        index: `[]`, the anchor's number in the global batch, for a random draw of its own.
    """

    distances: jax.Array
    is_positive: jax.Array
    is_negative: jax.Array
    label: jax.Array
    key_labels: jax.Array
    index: jax.Array


# (row) -> (loss, is_valid) or (loss, is_valid, stats), all scalars; in place of is_valid, the number of terms
# summed. An anchor that is not valid counts neither in the sum nor in the mean; stats (optional) are averaged
# over valid anchors.
AnchorLoss = Callable[[AnchorRow], tuple]


class Anchors(NamedTuple):
    """What is known of the anchors besides their vectors; `weight` is 0 where an anchor is ignored."""

    origins: jax.Array | None  # [n, d]
    labels: jax.Array  # [n]
    index: jax.Array  # [n]
    weight: jax.Array  # [n]
    valid: jax.Array  # [n]


class Keys(NamedTuple):
    """What is known of the keys besides their vectors."""

    origins: jax.Array | None  # [m, d]
    labels: jax.Array  # [m]
    valid: jax.Array  # [m]


class Sums(NamedTuple):
    """Sums over anchors: the weighted loss, the weights, the valid anchors, and each of the stats."""

    loss: jax.Array
    weight: jax.Array
    count: jax.Array
    stats: dict[str, jax.Array]


class RowLosses(NamedTuple):
    """Per anchor `[n]`: the loss (0 where not valid), the number of terms it sums (0 or 1 for most), and
    stats."""

    loss: jax.Array
    terms: jax.Array
    stats: dict[str, jax.Array]


def mean_of(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the masked entries of the last axis, 0 where there are none."""
    count = jnp.sum(mask, axis=-1)
    total = jnp.sum(jnp.where(mask, values, 0), axis=-1)
    return total / jnp.maximum(count, 1).astype(total.dtype)


def relations(anchors: Anchors, keys: Keys) -> tuple[jax.Array, jax.Array]:
    """Masks `[n, m]` of positive and negative pairs; key i is the anchor with number i itself."""
    same = anchors.labels[:, None] == keys.labels[None, :]
    counted = anchors.valid[:, None] & keys.valid[None, :]
    own = anchors.index[:, None] == jnp.arange(keys.labels.shape[0])[None, :]
    return same & counted & ~own, ~same & counted


def row_losses(
    loss: AnchorLoss, vectors: jax.Array, anchors: Anchors, key_vectors: jax.Array, keys: Keys, distance: str
) -> RowLosses:
    """Applies `loss` to the rows of all given anchors at once."""
    positive, negative = relations(anchors, keys)
    distances = pair_distances(
        Rows(vectors, anchors.origins), Rows(key_vectors, keys.origins), distance, candidates=positive
    )
    rows = AnchorRow(distances, positive, negative, anchors.labels, keys.labels, anchors.index)
    return apply_rows(loss, rows, anchors.valid)


def apply_rows(loss: AnchorLoss, rows: AnchorRow, valid: jax.Array) -> RowLosses:
    """Applies `loss` to rows `[n, m]` (key_labels `[m]`) and adds the stats that every loss reports."""

    def of_anchor(distances: Any, positive: Any, negative: Any, label: Any, index: Any) -> tuple:
        return loss(AnchorRow(distances, positive, negative, label, rows.key_labels, index))

    outcome = jax.vmap(of_anchor)(rows.distances, rows.is_positive, rows.is_negative, rows.label, rows.index)
    shapes = [jnp.shape(part)[1:] for part in outcome[:2]]
    if shapes != [(), ()]:
        raise ValueError(
            f"an anchor's loss and validity have shapes {shapes[0]} and {shapes[1]}; both should be single numbers, "
            "and so should the loss's own numbers, such as the margin"
        )
    value = jnp.where(valid & (outcome[1] > 0), outcome[0], 0)
    terms = jnp.where(valid, outcome[1], 0).astype(value.dtype)
    stats: dict[str, Any] = {
        "active_fraction": value > 0,
        "mean_positive_distance": mean_of(rows.distances, rows.is_positive),
        "mean_negative_distance": mean_of(rows.distances, rows.is_negative),
    }
    if len(outcome) > 2:
        stats |= outcome[2]
    constants = {name: lax.stop_gradient(v.astype(value.dtype)) for name, v in stats.items()}
    return RowLosses(value, lax.stop_gradient(terms), constants)


def mean_of_terms(rows: RowLosses) -> jax.Array:
    """Each anchor's own mean `[n]`, 0 where it has no term."""
    return rows.loss / jnp.where(rows.terms > 0, rows.terms, 1)


def summed(rows: RowLosses, weight: jax.Array) -> Sums:
    """Sums of per-anchor results under the anchors' weights `[n]`."""
    counted = (rows.terms > 0).astype(rows.loss.dtype)
    return Sums(
        jnp.sum(rows.loss * weight),
        jnp.sum(rows.terms * weight),
        jnp.sum(counted),
        {name: jnp.sum(value * counted) for name, value in rows.stats.items()},
    )
