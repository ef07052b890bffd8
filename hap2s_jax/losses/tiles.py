"""Point-to-set losses over square tiles of the batch against itself: two matmuls' work in place of three.

Two things make the whole batch special. Its distance matrix is symmetric, so only tiles on and above the
diagonal are formed: a first sweep gathers every anchor's running maxima and weighted sums, a second forms
each tile again and, knowing both ends' sums, its whole share of the gradient. And sorted by label, almost all
tiles hold negative pairs only, which need neither masks nor a positive set. Memory is linear in the batch;
the plain loop over blocks of anchors (`blocks`) serves whatever has other keys.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.distances import Rows, pair_distances
from hap2s_jax.losses.blocks import merge, separate, split
from hap2s_jax.losses.rows import Anchors, Sums
from hap2s_jax.losses.weightings import LogWeights, Weighting, harmless

# Stands for the logarithm of no weight. Finite, so that differences of two of them are 0 and not NaN.
_NOTHING = -1e30
# The least log-weight of a member, for those that are -inf: above nothing, so that a set of such members alone weighs
# them all the same.
_SILENT = -1e29


class PointToSet(Protocol):
    """A loss that depends on an anchor's two weighted set distances only."""

    @property
    def weighting(self) -> Weighting:
        """Log-weights of both sets, each from its own distance alone."""
        ...

    def penalty(self, to_positives: jax.Array, to_negatives: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The loss for given set distances, and the excess over which it is active."""
        ...


class Extra(NamedTuple):
    """What the stats need besides; gathered only where they are asked for."""

    logs: jax.Array  # weight times log-weight
    plain: jax.Array  # distance
    hardest: jax.Array  # largest signed distance


class Running(NamedTuple):
    """Running sums of a set, per anchor, all relative to the largest log-weight seen so far."""

    largest: jax.Array  # log-weight
    weights: jax.Array
    distances: jax.Array  # weight times distance
    extra: Extra | None = None


class Batch(NamedTuple):
    """The batch sorted by label in tiles `[k, t, ...]`, ignored samples and padding last."""

    vectors: jax.Array
    origins: jax.Array | None
    labels: jax.Array
    valid: jax.Array
    weight: jax.Array
    positives: jax.Array  # number of positives of each anchor
    negatives: jax.Array


def tiled_sums(
    loss: PointToSet, vectors: jax.Array, anchors: Anchors, distance: str, tile: int, with_stats: bool
) -> Sums:
    """The sums of `summed(row_losses(...))` for a batch that is its own keys, `tile` by `tile` pairs at a
    time."""
    structure, smooth, rough = separate(loss, vectors)
    return _tiled((structure, distance, tile, with_stats), smooth, vectors, (rough, anchors))


def _sorted_batch(vectors: jax.Array, anchors: Anchors, tile: int) -> tuple[Batch, jax.Array]:
    order = jnp.argsort(anchors.labels, stable=True)
    order = order[jnp.argsort(~anchors.valid[order], stable=True)]
    valid, labels = anchors.valid[order], anchors.labels[order]
    # Ignored samples stand last under the largest label, so that the labels still ascend.
    labels = jnp.where(valid, labels, jnp.iinfo(labels.dtype).max)
    first, last = (jnp.searchsorted(labels, labels, side=side) for side in ("left", "right"))
    count = jnp.sum(valid)
    members = jnp.minimum(last, count) - first
    weight = anchors.weight[order]
    origins = None if anchors.origins is None else anchors.origins[order]
    parts = Batch(vectors[order], origins, labels, valid, weight, members - 1, count - members)
    return jax.tree.map(lambda x: split(x, tile), parts), order


class _Sweep:
    """What both sweeps share: the tile pairs, their distances and their masks."""

    def __init__(self, batch: Batch, distance: str):
        self.batch, self.distance = batch, distance
        self.count, self.tile = batch.labels.shape
        self.pairs = jnp.asarray(np.stack(np.triu_indices(self.count), axis=1))
        # A pair of tiles is pure when all its pairs are negative: no label in common, nobody ignored.
        self.first, self.last = batch.labels[:, 0], batch.labels[:, -1]
        self.whole = jnp.all(batch.valid, axis=1)

    def is_pure(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return (self.last[i] < self.first[j]) & self.whole[i] & self.whole[j]

    def masks(self, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        same = self.batch.labels[i][:, None] == self.batch.labels[j][None, :]
        counted = self.batch.valid[i][:, None] & self.batch.valid[j][None, :]
        own = (i == j) & jnp.eye(self.tile, dtype=bool)
        return same & counted & ~own, ~same & counted

    def rows(self, i: jax.Array) -> Rows:
        return Rows(self.batch.vectors[i], None if self.batch.origins is None else self.batch.origins[i])


def _log_weights(function: LogWeights, distances: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Finite log-weights of a tile, that of nothing where not masked; `mask` None means all of it."""
    if mask is None:
        return jnp.maximum(function(distances, jnp.ones_like(distances, bool)), _SILENT)
    return jnp.where(mask, jnp.maximum(function(harmless(distances, mask), mask), _SILENT), _NOTHING)


def _first_sweep(sweep: _Sweep, weighting: Weighting, with_stats: bool) -> tuple[Running, Running]:
    """Each anchor's sums over its positives and over its negatives, `[k, t]`."""
    zero = jnp.zeros_like(sweep.batch.vectors[:, :, 0])
    empty = Running(zero + _NOTHING, zero, zero)
    if with_stats:
        empty = empty._replace(extra=Extra(zero, zero, zero - jnp.inf))

    def add(
        running: Running, function: LogWeights, sign: int, distances: Any, mask: Any, axis: int
    ) -> Running:
        logs = _log_weights(function, distances, mask)
        largest = jnp.maximum(running.largest, jnp.max(logs, axis=axis))
        fade = jnp.exp(running.largest - largest)
        weights = jnp.exp(logs - jnp.expand_dims(largest, axis))
        total = running.weights * fade + jnp.sum(weights, axis=axis)
        weighted = running.distances * fade + jnp.sum(weights * distances, axis=axis)
        if running.extra is None:
            return Running(largest, total, weighted)
        logs_sum = running.extra.logs * fade + jnp.sum(weights * logs, axis=axis)
        counted = distances if mask is None else jnp.where(mask, distances, 0)
        hard = sign * distances if mask is None else jnp.where(mask, sign * distances, -jnp.inf)
        hardest = jnp.maximum(running.extra.hardest, jnp.max(hard, axis=axis))
        extra = Extra(logs_sum, running.extra.plain + jnp.sum(counted, axis=axis), hardest)
        return Running(largest, total, weighted, extra)

    def step(carry: tuple[Running, Running], pair: jax.Array) -> tuple:
        i, j = pair[0], pair[1]
        at_i, at_j = (jax.tree.map(lambda x, at=at: x[at], carry) for at in (i, j))

        def pure() -> tuple:
            distances = pair_distances(sweep.rows(i), sweep.rows(j), sweep.distance)
            rows = add(at_i[1], weighting.negative, -1, distances, None, 1)
            columns = add(at_j[1], weighting.negative, -1, distances, None, 0)
            return (at_i[0], rows), (at_j[0], columns)

        def mixed() -> tuple:
            positive, negative = sweep.masks(i, j)
            distances = pair_distances(sweep.rows(i), sweep.rows(j), sweep.distance, positive)
            sides = []
            for at, axis in ((at_i, 1), (at_j, 0)):
                of_positives = add(at[0], weighting.positive, 1, distances, positive, axis)
                sides.append((of_positives, add(at[1], weighting.negative, -1, distances, negative, axis)))
            return sides[0], sides[1]

        rows, columns = lax.cond(sweep.is_pure(i, j), pure, mixed)
        # On the diagonal both sides are the same anchors: the columns go first, and the rows overwrite them.
        carry = jax.tree.map(lambda x, new: x.at[j].set(new), carry, columns)
        return jax.tree.map(lambda x, new: x.at[i].set(new), carry, rows), None

    return lax.scan(step, (empty, empty), sweep.pairs)[0]


def _set_losses(
    loss: PointToSet, batch: Batch, to_positives: jax.Array, to_negatives: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Weighted sum of the losses, and per anchor `[k, t]` the excess and validity."""
    valid = batch.valid & (batch.positives > 0) & (batch.negatives > 0)
    value, excess = loss.penalty(to_positives, to_negatives)
    return jnp.sum(jnp.where(valid, value, 0) * batch.weight), (excess, valid)


def _sums(loss: PointToSet, batch: Batch, sets: tuple[Running, Running]) -> Sums:
    to_positives, to_negatives = (s.distances / s.weights for s in sets)
    value, (excess, valid) = _set_losses(loss, batch, to_positives, to_negatives)
    counted = valid.astype(value.dtype)
    stats = {}
    near, far = sets[0].extra, sets[1].extra
    if near is not None and far is not None:
        stats = {
            "active_fraction": excess > 0,
            "point_to_positives": to_positives,
            "point_to_negatives": to_negatives,
            "mean_positive_distance": near.plain / jnp.maximum(batch.positives, 1),
            "mean_negative_distance": far.plain / jnp.maximum(batch.negatives, 1),
            "hardest_positive_distance": near.hardest,
            "hardest_negative_distance": -far.hardest,
            "effective_positives": _effective(sets[0], near),
            "effective_negatives": _effective(sets[1], far),
        }
    weights = jnp.sum(counted * batch.weight)
    totals = {name: jnp.sum(jnp.where(valid, s, 0).astype(value.dtype)) for name, s in stats.items()}
    return Sums(value, weights, jnp.sum(counted), totals)


def _effective(running: Running, extra: Extra) -> jax.Array:
    """Exponential of the weights' entropy: log of the sum of weights less the mean log-weight."""
    return running.weights * jnp.exp(running.largest - extra.logs / running.weights)


def _second_sweep(
    sweep: _Sweep, weighting: Weighting, sets: tuple[Running, Running], slopes: tuple[jax.Array, jax.Array]
) -> tuple[Weighting, jax.Array]:
    """Gradients of the weighting's parameters and of the vectors `[k, t, d]`.

    `slopes` `[k, t]` are the derivatives of the total by each anchor's set distances D. With normalised
    weights w, the derivative of D by a log-weight is w (d - D), and by the distance itself w.
    """
    vectors = sweep.batch.vectors
    means = tuple(s.distances / s.weights for s in sets)
    scales = tuple(jnp.where(s.weights > 0, a / s.weights, 0) for s, a in zip(sets, slopes, strict=True))

    def pull(which: int, i: Any, j: Any, distances: Any, mask: Any) -> tuple[Weighting, jax.Array]:
        def logs_of(weighting: Weighting, distances: jax.Array) -> jax.Array:
            return _log_weights(weighting.negative if which else weighting.positive, distances, mask)

        logs, transposed = jax.vjp(logs_of, weighting, distances)
        largest, scale, mean = sets[which].largest, scales[which], means[which]
        by_rows = jnp.exp(logs - largest[i][:, None]) * scale[i][:, None]
        by_columns = jnp.exp(logs - largest[j][None, :]) * jnp.where(i == j, 0, scale[j])[None, :]
        through = by_rows * (distances - mean[i][:, None]) + by_columns * (distances - mean[j][None, :])
        of_weighting, of_distances = transposed(through)
        return of_weighting, by_rows + by_columns + of_distances

    def tile_gradient(i: Any, j: Any, pure: bool) -> tuple:
        positive, negative = (None, None) if pure else sweep.masks(i, j)
        a, b = sweep.rows(i), sweep.rows(j)

        def distances_of(rows: jax.Array, keys: jax.Array) -> jax.Array:
            return pair_distances(Rows(rows, a.origins), Rows(keys, b.origins), sweep.distance, positive)

        distances, transposed = jax.vjp(distances_of, a.vectors, b.vectors)
        of_weighting, of_distances = pull(1, i, j, distances, negative)
        if not pure:
            more = pull(0, i, j, distances, positive)
            of_weighting, of_distances = jax.tree.map(jnp.add, (of_weighting, of_distances), more)
        return (of_weighting, *transposed(of_distances))

    def step(carry: tuple, pair: jax.Array) -> tuple:
        i, j = pair[0], pair[1]
        total, gradient = carry
        branches = (lambda: tile_gradient(i, j, True), lambda: tile_gradient(i, j, False))
        of_weighting, of_rows, of_columns = lax.cond(sweep.is_pure(i, j), *branches)
        gradient = gradient.at[i].add(of_rows).at[j].add(of_columns)
        return (jax.tree.map(jnp.add, total, of_weighting), gradient), None

    start = (jax.tree.map(jnp.zeros_like, weighting), jnp.zeros_like(vectors))
    return lax.scan(step, start, sweep.pairs)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(static: tuple, smooth: list, vectors: jax.Array, rest: Any) -> Sums:
    structure, distance, tile, with_stats = static
    rough, anchors = rest
    loss = merge(structure, smooth, rough)
    batch, _ = _sorted_batch(vectors, anchors, tile)
    return _sums(loss, batch, _first_sweep(_Sweep(batch, distance), loss.weighting, with_stats))


def _forward(static: tuple, smooth: list, vectors: jax.Array, rest: Any) -> tuple:
    structure, distance, tile, with_stats = static
    rough, anchors = rest
    batch, order = _sorted_batch(vectors, anchors, tile)
    sweep = _Sweep(batch, distance)
    loss = merge(structure, smooth, rough)
    sets = _first_sweep(sweep, loss.weighting, with_stats)

    def total(smooth: list, to_positives: jax.Array, to_negatives: jax.Array) -> jax.Array:
        return _set_losses(merge(structure, smooth, rough), batch, to_positives, to_negatives)[0]

    means = tuple(s.distances / s.weights for s in sets)
    of_smooth, *slopes = jax.grad(total, argnums=(0, 1, 2))(smooth, *means)

    def logs_only(smooth: list) -> Weighting:
        return merge(structure, smooth, rough).weighting

    weighting, transposed = jax.vjp(logs_only, smooth)
    of_weighting, gradient = _second_sweep(sweep, weighting, sets, (slopes[0], slopes[1]))
    (through_weights,) = transposed(of_weighting)
    of_smooth = jax.tree.map(jnp.add, of_smooth, through_weights)
    flat = gradient.reshape(-1, vectors.shape[1])[: vectors.shape[0]]
    return _sums(loss, batch, sets), (of_smooth, jnp.zeros_like(vectors).at[order].set(flat))


def _backward(static: tuple, gradients: tuple, cotangent: Sums) -> tuple:
    del static
    return *jax.tree.map(lambda g: (g * cotangent.loss).astype(g.dtype), gradients), None


_tiled.defvjp(_forward, _backward)
