"""Point-to-set losses over square tiles of the batch against itself: two matmuls' work in place of three.

A batch that is its own keys has two advantages. Its distance matrix is symmetric, so only tiles on and above the
diagonal are formed: a first sweep gathers every anchor's running maxima and weighted sums, a second forms each tile
again and, knowing both ends' sums, its whole share of the gradient. And when it is sorted by label, almost all tiles
hold negative pairs only, which need neither masks nor a positive set. Memory is linear in the batch; batches with other
keys use the plain loop over blocks of anchors (`blocks`).

For an anchor a, one of its sets S, distances d_i = d(a, i) and log-weights l_i = l(d_i; theta), i in S:

    (1)  L = max_i l_i,   Z = sum_i exp(l_i - L),   M = sum_i exp(l_i - L) d_i,   D = M / Z

The first sweep adds a tile's members i to (L, Z, M), which needs the new maximum L' before the new sums:

    (2)  L' = max(L, max_i l_i),   Z' = Z exp(L - L') + sum_i exp(l_i - L'),
         M' = M exp(L - L') + sum_i exp(l_i - L') d_i

With D+ and D- of every anchor, the total and its slopes by them are sums over anchors,

    (3)  T = sum_a v_a f(D+_a - D-_a + margin),   s+_a = dT/dD+_a,   s-_a = dT/dD-_a

and with normalised weights w_i = exp(l_i - L) / Z the rest of the chain is

    (4)  dD/dl_i = w_i (d_i - D),   dD/dd_i = w_i + dD/dl_i dl_i/dd_i,   dD/dtheta = sum_i dD/dl_i dl_i/dtheta.

The pair (a, b) belongs to the sets of both its ends, so that the second sweep gives it, for each of the two sets,

    (5)  r_ab = s_a w_ab + s_b w_ba,   q_ab = s_a w_ab (d_ab - D_a) + s_b w_ba (d_ab - D_b)
    (6)  dT/dd_ab = r_ab + q_ab dl_ab/dd_ab,   dT/dtheta = sum_ab q_ab dl_ab/dtheta

whose last factors are the weighting's own derivatives; JAX has them, and those of d_ab by the vectors. On the diagonal
of the tiles both ends are the same anchors and the second terms of (5) are left out.

To add a second loss whose weights look at one distance at a time: if it is a function of D+ and D-, give it
`weighting`, `penalty` and `tiled_sums` as `Hap2s` has them, and nothing changes here. If it needs another
sum over its sets (log sum exp, say, is L + log Z, and its slope by l_i is w_i), add that sum to `Set` with its rule in
(2), its slope to (3), and its term to q_ab in (5). Begin with the NumPy twin in tests/losses/test_tiles.py, which is
written from these equations.
"""

from __future__ import annotations

import functools
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.distances import Rows, pair_distances
from hap2s_jax.losses.places import places_among
from hap2s_jax.losses.rows import Anchors, Batch, Options, PairStats, SetStats, Sums
from hap2s_jax.losses.tile_types import Extra, Fixed, Gradients, PointToSet, Set, Sets, SortedBatch, Static
from hap2s_jax.losses.weightings import LogWeights, Weighting, merge, separate, split

_TILE = 512
_MANY = 16384
Two = tuple[jax.Array, jax.Array]  # of positives and of negatives; of excess and validity
Pulled = tuple[Weighting, jax.Array]  # gradients of the weighting and of distances or vectors
TilePair = tuple[jax.Array, jax.Array, jax.Array]  # numbers of the two tiles; whether all pairs are negative
# Stands for log(0). It is finite, so that the difference of two of them is 0 and not NaN.
_EMPTY = -1e30
# Floor for a member's log-weight. It lies above `_EMPTY`, so a set whose members all have weight zero falls back to
# uniform weights.
_SILENT = -1e29


def tiled_sums(loss: PointToSet, samples: Batch, options: Options) -> Sums:
    """The sums of all anchors' losses for a batch that is its own keys, a square of pairs at a time."""
    structure, smooth, rough = separate(loss, samples.vectors)
    count = len(samples.vectors)
    size = options.block_size if isinstance(options.block_size, int) else None
    tile = min(size or (_TILE if count <= _MANY else 2 * _TILE), count)
    static = Static(structure, options.distance, tile, options.with_stats)
    return _tiled(static, smooth, samples.vectors, Fixed(rough, samples.anchors))


def _sorted_batch(
    vectors: jax.Array, anchors: Anchors, tile: int, with_anchor: bool
) -> tuple[SortedBatch, jax.Array]:
    order = jnp.argsort(anchors.labels, stable=True)
    order = order[jnp.argsort(~anchors.valid[order], stable=True)]
    valid, labels = anchors.valid[order], anchors.labels[order]
    # Ignored samples come last, with the largest label, so that labels ascend.
    labels = jnp.where(valid, labels, jnp.iinfo(labels.dtype).max)
    first = places_among(labels, labels)
    last = places_among(labels, labels, "right")
    count = jnp.sum(valid, dtype=first.dtype)
    members = jnp.minimum(last, count) - first
    origins = None if anchors.origins is None else anchors.origins[order]
    parts = SortedBatch(
        vectors[order],
        origins,
        labels,
        valid,
        anchors.weight[order],
        members if with_anchor else members - 1,
        count - members,
    )
    return split(parts, tile), order


class _Sweep:
    """The setting of both sweeps: the tile pairs, their points and their masks."""

    def __init__(self, batch: SortedBatch, distance: str, with_anchor: bool):
        self.batch, self.distance, self.with_anchor = batch, distance, with_anchor
        count, self.tile = batch.labels.shape
        self.points = Rows(batch.vectors, batch.origins)
        first, second = np.triu_indices(count)
        # A pair of tiles is pure when all its pairs are negative: no common label, no ignored sample.
        whole = jnp.all(batch.valid, axis=1)
        pure = (batch.labels[first, -1] < batch.labels[second, 0]) & whole[first] & whole[second]
        self.pairs = (jnp.asarray(first, jnp.int32), jnp.asarray(second, jnp.int32), pure)

    def masks(self, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        same = self.batch.labels[i][:, None] == self.batch.labels[j][None, :]
        counted = self.batch.valid[i][:, None] & self.batch.valid[j][None, :]
        own = (i == j) & jnp.eye(self.tile, dtype=bool) & (not self.with_anchor)
        return same & counted & ~own, ~same & counted


def _log_weights(function: LogWeights, distances: jax.Array, mask: jax.Array | None) -> jax.Array:
    """A tile's log-weights, no lower than `_SILENT` for members; without a mask all are members."""
    if mask is None:
        return jnp.maximum(function(distances, jnp.ones_like(distances, bool)), _SILENT)
    return jnp.where(mask, jnp.maximum(function(jnp.where(mask, distances, 1), mask), _SILENT), _EMPTY)


def _add(
    seen: Set, logs: jax.Array, sign: int, distances: jax.Array, mask: jax.Array | None, axis: int
) -> Set:
    """Equation (2), with a tile's members along `axis`."""
    largest = jnp.maximum(seen.L, jnp.max(logs, axis=axis))
    fade = jnp.exp(seen.L - largest)
    weights = jnp.exp(logs - jnp.expand_dims(largest, axis))
    total = seen.Z * fade + jnp.sum(weights, axis=axis)
    weighted = seen.M * fade + jnp.sum(weights * distances, axis=axis)
    if seen.extra is None:
        return Set(largest, total, weighted)
    logs_sum = seen.extra.logs * fade + jnp.sum(weights * logs, axis=axis)
    plain = distances if mask is None else jnp.where(mask, distances, 0)
    hard = sign * distances if mask is None else jnp.where(mask, sign * distances, -jnp.inf)
    hardest = jnp.maximum(seen.extra.hardest, jnp.max(hard, axis=axis))
    return Set(
        largest, total, weighted, Extra(logs_sum, seen.extra.plain + jnp.sum(plain, axis=axis), hardest)
    )


def _first_sweep(sweep: _Sweep, weighting: Weighting, with_stats: bool) -> Sets:
    """Each anchor's sums (1) over its positives and over its negatives, `[k, t]`."""
    zero = jnp.zeros_like(sweep.batch.vectors[:, :, 0])
    empty = Set(zero + _EMPTY, zero, zero, Extra(zero, zero, zero - jnp.inf) if with_stats else None)

    def step(sets: Sets, pair: TilePair) -> tuple[Sets, None]:
        i, j, is_pure = pair
        rows, columns = jax.tree.map(itemgetter(i), sweep.points), jax.tree.map(itemgetter(j), sweep.points)
        # On the diagonal both sides are the same anchors: the columns are written first, and the rows over them.
        sides = ((1, jax.tree.map(itemgetter(i), sets)), (0, jax.tree.map(itemgetter(j), sets)))

        def pure() -> list[Sets]:
            distances = pair_distances(rows, columns, sweep.distance)
            logs = _log_weights(weighting.negative, distances, None)
            made = []
            for axis, seen in sides:
                made.append(Sets(seen.positive, _add(seen.negative, logs, -1, distances, None, axis)))
            return made

        def mixed() -> list[Sets]:
            positive, negative = sweep.masks(i, j)
            distances = pair_distances(rows, columns, sweep.distance, positive)
            near = _log_weights(weighting.positive, distances, positive)
            far = _log_weights(weighting.negative, distances, negative)
            made = []
            for axis, seen in sides:
                of_positives = _add(seen.positive, near, 1, distances, positive, axis)
                made.append(Sets(of_positives, _add(seen.negative, far, -1, distances, negative, axis)))
            return made

        of_rows, of_columns = lax.cond(is_pure, pure, mixed)
        return jax.tree.map(lambda x, c, r: x.at[j].set(c).at[i].set(r), sets, of_columns, of_rows), None

    return lax.scan(step, Sets(empty, empty), sweep.pairs)[0]


def _total(loss: PointToSet, batch: SortedBatch, near: jax.Array, far: jax.Array) -> tuple[jax.Array, Two]:
    """T of (3) from D+ and D- `[k, t]`, and per anchor the excess and validity."""
    valid = batch.valid & (batch.positives > 0) & (batch.negatives > 0)
    value, excess = loss.penalty(near, far)
    return jnp.sum(jnp.where(valid, value, 0) * batch.weight), (excess, valid)


def _sums(loss: PointToSet, batch: SortedBatch, sets: Sets) -> Sums:
    near, far = sets.positive.M / sets.positive.Z, sets.negative.M / sets.negative.Z
    value, (excess, valid) = _total(loss, batch, near, far)
    counted = valid.astype(value.dtype)
    stats = {}
    if sets.positive.extra is not None and sets.negative.extra is not None:
        positive, negative = sets.positive.extra, sets.negative.extra
        pairs = PairStats(
            excess > 0,
            positive.plain / jnp.maximum(batch.positives, 1).astype(value.dtype),
            negative.plain / jnp.maximum(batch.negatives, 1).astype(value.dtype),
        )
        # Exponential of the weights' entropy: log of the sum of weights less the mean log-weight.
        perplexity = [
            s.Z * jnp.exp(s.L - e.logs / s.Z) for s, e in zip(sets, (positive, negative), strict=True)
        ]
        of_sets = SetStats(excess > 0, near, far, positive.hardest, -negative.hardest, *perplexity)
        for name, value_of in (pairs._asdict() | of_sets._asdict()).items():
            stats[name] = jnp.sum(jnp.where(valid, value_of.astype(value.dtype), 0))
    return Sums(value, jnp.sum(counted * batch.weight), jnp.sum(counted), stats)


def _second_sweep(sweep: _Sweep, weighting: Weighting, sets: Sets, slopes: Two) -> Pulled:
    """Gradients of the weighting's numbers and of the vectors `[k, t, d]`, from the slopes s+ and s- `[k, t]`."""
    vectors = sweep.batch.vectors
    means = [s.M / s.Z for s in sets]
    scales = [jnp.where(s.Z > 0, slope / s.Z, 0) for s, slope in zip(sets, slopes, strict=True)]

    def pull(which: int, i: jax.Array, j: jax.Array, distances: jax.Array, mask: jax.Array | None) -> Pulled:
        """Equations (5) and (6) of one tile and one of the sets."""

        def logs_of(weighting: Weighting, distances: jax.Array) -> jax.Array:
            return _log_weights(weighting.negative if which else weighting.positive, distances, mask)

        logs, transposed = jax.vjp(logs_of, weighting, distances)
        largest, scale, mean = sets[which].L, scales[which], means[which]
        by_rows = jnp.exp(logs - largest[i][:, None]) * scale[i][:, None]
        by_columns = jnp.exp(logs - largest[j][None, :]) * jnp.where(i == j, 0, scale[j])[None, :]
        q = by_rows * (distances - mean[i][:, None]) + by_columns * (distances - mean[j][None, :])
        of_weighting, of_distances = transposed(q)
        return of_weighting, by_rows + by_columns + of_distances

    def tile_gradient(i: jax.Array, j: jax.Array, pure: bool) -> tuple[Weighting, jax.Array, jax.Array]:
        positive, negative = (None, None) if pure else sweep.masks(i, j)
        a, b = jax.tree.map(itemgetter(i), sweep.points), jax.tree.map(itemgetter(j), sweep.points)

        def distances_of(rows: jax.Array, keys: jax.Array) -> jax.Array:
            return pair_distances(Rows(rows, a.origins), Rows(keys, b.origins), sweep.distance, positive)

        distances, transposed = jax.vjp(distances_of, a.vectors, b.vectors)
        found = pull(1, i, j, distances, negative)
        if not pure:
            found = jax.tree.map(jnp.add, found, pull(0, i, j, distances, positive))
        return (found[0], *transposed(found[1]))

    def step(carry: Pulled, pair: TilePair) -> tuple[Pulled, None]:
        i, j, is_pure = pair
        total, gradient = carry
        branches = (lambda: tile_gradient(i, j, True), lambda: tile_gradient(i, j, False))
        of_weighting, of_rows, of_columns = lax.cond(is_pure, *branches)
        gradient = gradient.at[i].add(of_rows).at[j].add(of_columns)
        return (jax.tree.map(jnp.add, total, of_weighting), gradient), None

    start = (jax.tree.map(jnp.zeros_like, weighting), jnp.zeros_like(vectors))
    return lax.scan(step, start, sweep.pairs)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(static: Static, smooth: list[jax.Array], vectors: jax.Array, fixed: Fixed) -> Sums:
    loss = merge(static.structure, smooth, fixed.rough)
    batch, _ = _sorted_batch(vectors, fixed.anchors, static.tile, loss.with_anchor)
    sweep = _Sweep(batch, static.distance, loss.with_anchor)
    return _sums(loss, batch, _first_sweep(sweep, loss.weighting, static.with_stats))


def _forward(
    static: Static, smooth: list[jax.Array], vectors: jax.Array, fixed: Fixed
) -> tuple[Sums, Gradients]:
    loss = merge(static.structure, smooth, fixed.rough)
    batch, order = _sorted_batch(vectors, fixed.anchors, static.tile, loss.with_anchor)
    sweep = _Sweep(batch, static.distance, loss.with_anchor)
    sets = _first_sweep(sweep, loss.weighting, static.with_stats)

    def total(smooth: list[jax.Array], near: jax.Array, far: jax.Array) -> jax.Array:
        return _total(merge(static.structure, smooth, fixed.rough), batch, near, far)[0]

    def weighting_of(smooth: list[jax.Array]) -> Weighting:
        return merge(static.structure, smooth, fixed.rough).weighting

    of_smooth, *slopes = jax.grad(total, argnums=(0, 1, 2))(smooth, *(s.M / s.Z for s in sets))
    weighting, transposed = jax.vjp(weighting_of, smooth)
    of_weighting, gradient = _second_sweep(sweep, weighting, sets, (slopes[0], slopes[1]))
    of_smooth = jax.tree.map(jnp.add, of_smooth, transposed(of_weighting)[0])
    flat = gradient.reshape(-1, vectors.shape[1])[: vectors.shape[0]]
    return _sums(loss, batch, sets), Gradients(of_smooth, jnp.zeros_like(vectors).at[order].set(flat))


def _backward(
    static: Static, gradients: Gradients, cotangent: Sums
) -> tuple[list[jax.Array] | jax.Array | None, ...]:
    del static
    return *jax.tree.map(lambda g: g * cotangent.loss.astype(g.dtype), gradients), None


_tiled.defvjp(_forward, _backward)
