"""The engine: from embeddings and labels to the mean of any anchor loss.

It is the only place that knows where keys come from, so every loss that is a function of one anchor's row
gets global batches, memories, ignored labels, sample weights and blocks of anchors without a line of its own.
"""

from __future__ import annotations

import functools
from typing import Literal, Unpack, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.distances import (
    COMPUTED_IN,
    FLOAT32,
    Distance,
    Rows,
    check_distance,
    check_embeddings,
    clean_rows,
    mean_of,
    pair_distances,
    squares,
    whole,
)
from hap2s_jax.losses.places import class_origins
from hap2s_jax.losses.pytrees import TOLD_APART, as_pytree, with_numbers_in
from hap2s_jax.losses.rows import (
    AnchorArguments,
    AnchorLoss,
    AnchorRow,
    Anchors,
    Axis,
    Batch,
    BlockSize,
    Keys,
    LossTree,
    Options,
    PairStats,
    Reduction,
    Result,
    RowLosses,
    Stats,
    Sums,
)

# Above this many pairs the plain path's matrices outgrow the cache.
_PLAIN_PAIRS = 2**18
_BLOCK_PAIRS = 2**20
Labelled = tuple[jax.Array, jax.Array]  # embeddings and labels


@overload
def mean_over_anchors(  # pyright: ignore[reportOverlappingOverload] - a bool may be either
    loss: AnchorLoss,
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    with_stats: Literal[True],
    **arguments: Unpack[AnchorArguments],
) -> tuple[jax.Array, Stats]: ...
@overload
def mean_over_anchors(
    loss: AnchorLoss,
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    with_stats: bool = False,
    **arguments: Unpack[AnchorArguments],
) -> jax.Array: ...


def mean_over_anchors(
    loss: AnchorLoss,
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    distance: Distance = "euclidean",
    axis_name: Axis = None,
    keys: ArrayLike | None = None,
    key_labels: ArrayLike | None = None,
    ignore_label: int | None = -1,
    sample_weights: ArrayLike | None = None,
    block_size: BlockSize = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Result:
    """Mean of `loss` over the valid anchors of a batch, the global batch under `axis_name`.

    Args:
        loss: `(row: AnchorRow) -> (loss, is_valid)`, with a dict of scalars as optional third. Where the second is a
            number, it says how many terms the loss has summed, and the mean is taken over terms. Parameters should be
            leaves of a pytree (a registered dataclass, or `jax.tree_util.Partial(function, ...)`), so that they can be
            traced and differentiated. Called outside jit, it is compiled once per function and shape.
        embeddings: `[n, d]`, floating point; each device's own part under `axis_name`.
        labels: `[n]`, integers.
        distance: "euclidean", "squared_euclidean", "cosine" (1 - similarity) or "negative_dot".
        axis_name: name of the mapped axis (or axes) of pmap, vmap or shard_map over which the batch is split. The value
            is then the global one on every device, and `pmean` of the gradients of shared parameters is exact.
        keys: `[k, d]` further keys besides the batch itself, equal on all devices, such as a memory.
        key_labels: `[k]`, their labels.
        ignore_label: samples with this label are neither anchors nor keys, and may be NaN. None: all labels count.
        sample_weights: `[n]`, weight of each anchor in the mean or sum; constants, not differentiated.
        block_size: anchors per block (memory linear in the batch, the same value and gradient); None chooses,
            "never" takes the whole matrix at once, which forward-mode differentiation needs.
        reduction: "mean" over valid anchors, "sum", or "none" for `[n]` losses (0 where not valid).
        with_stats: return `(value, stats)`, a dict of float32 scalars averaged over valid anchors.

    Returns:
        The reduced loss, float32 (float64 for float64 embeddings); exactly 0 with gradient 0 if no anchor is
        valid; NaN if an embedding that counts, or its squared length, is not finite.

    Raises:
        ValueError: an empty batch, shapes that do not fit, unknown `distance` or `reduction`, a block size below 1.
        TypeError: embeddings that are not floating point or labels that are not integers.
    """
    batch = check_embeddings("embeddings", embeddings, "labels", labels)
    further = None
    if keys is not None or key_labels is not None:
        further = check_embeddings("keys", keys, "key_labels", key_labels)
        if further[0].shape[1] != batch[0].shape[1]:
            raise ValueError(
                f"keys have {further[0].shape[1]} dimensions; embeddings have {batch[0].shape[1]}; they should agree"
            )
    check_distance(distance)
    weights = check_options(reduction, block_size, sample_weights, len(batch[1]))
    loss = loss if type(loss) in TOLD_APART else as_pytree(loss)
    options = Options(distance, axis_name, ignore_label, block_size, reduction, with_stats)
    return _evaluate(loss, batch, further, weights, options)


def check_options(
    reduction: str, block_size: BlockSize, sample_weights: ArrayLike | None, count: int
) -> jax.Array | None:
    """The weights as an array without gradient; raises ValueError for what no loss understands."""
    if count == 0:
        raise ValueError("the batch is empty; a loss needs at least one sample")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; it should be 'mean', 'sum' or 'none'")
    is_number = isinstance(block_size, int) and not isinstance(block_size, bool) and block_size >= 1
    if not (is_number or block_size is None or block_size == "never"):
        raise ValueError(
            f"block_size is {block_size!r}; it should be a number of anchors, 'never', or None for automatic"
        )
    if sample_weights is None:
        return None
    weights = jnp.asarray(sample_weights)
    if weights.shape != (count,):
        raise ValueError(f"sample_weights are {weights.shape}; they should be ({count},), one per label")
    return lax.stop_gradient(whole(weights))


@functools.partial(jax.jit, static_argnames="options")
def _evaluate(
    loss: LossTree, samples: Labelled, further: Labelled | None, weights: jax.Array | None, options: Options
) -> Result:
    """Chooses how to compute: by chosen pairs, the whole matrix, tiles, or blocks of anchors."""
    batch = prepare(*samples, further, weights, options)
    loss = with_numbers_in(loss, batch.vectors.dtype)
    size, count, width = options.block_size, len(batch.vectors), len(batch.key_vectors)
    weighting = getattr(loss, "weighting", None)  # of weighted sets, which says what suffices
    if weighting is not None and weighting.extremes:
        result = loss.chosen_losses(batch, options)
    elif size == "never" or options.reduction == "none" or (size is None and count * width <= _PLAIN_PAIRS):
        rows = anchor_rows(batch, options.distance, with_anchor=getattr(loss, "with_anchor", False))
        result = apply_rows(loss, rows, batch.anchors.valid)
    elif options.axis_name is None and further is None and weighting is not None and weighting.elementwise:
        result = loss.tiled_sums(batch, options)
    else:
        from hap2s_jax.losses.blocks import blocked_sums  # not above: it imports this module

        block = min(size or max(16, _BLOCK_PAIRS // width), count)
        result = blocked_sums(loss, batch, options.distance, block)
    return reduced(result, batch.anchors.weight, options)


def prepare(
    embeddings: jax.Array,
    labels: jax.Array,
    further: Labelled | None = None,
    weights: jax.Array | None = None,
    options: Options = Options(),  # noqa: B008 - immutable
) -> Batch:
    """Cleans the embeddings, and gathers the keys: the batch itself, given keys, all devices."""
    dtype = COMPUTED_IN.get(embeddings.dtype, FLOAT32)
    count, axis = embeddings.shape[0], options.axis_name
    valid = counted(labels, options.ignore_label)
    # Ignored rows are zeroed before they are gathered: a NaN in one of them must not reach other devices.
    vectors = jnp.where(valid[:, None], embeddings.astype(dtype), 0)
    index = jnp.arange(count, dtype=jnp.int32)
    key_vectors, key_labels = vectors, labels
    if axis is not None:
        index = index + lax.axis_index(axis) * count
        key_vectors = lax.all_gather(vectors, axis, tiled=True)
        key_labels = lax.all_gather(labels, axis, tiled=True)
    euclidean = options.distance in ("euclidean", "squared_euclidean")
    key_valid = counted(key_labels, options.ignore_label)
    centre = mean_of(key_vectors, key_valid[:, None], axis=0) if euclidean else None
    if further is not None:
        # Not by promotion: users may have set it to strict.
        widest = labels.dtype if labels.dtype.itemsize >= further[1].dtype.itemsize else further[1].dtype
        labels = labels.astype(widest)
        key_vectors = jnp.concatenate([key_vectors, further[0].astype(dtype)])
        key_labels = jnp.concatenate([key_labels.astype(widest), further[1].astype(widest)])
        key_valid = counted(key_labels, options.ignore_label)
    vectors = clean_rows(vectors, valid, options.distance, centre)
    key_vectors = clean_rows(key_vectors, key_valid, options.distance, centre)
    origins = key_origins = None
    if euclidean:
        origins, key_origins = class_origins(labels, key_vectors, key_labels, key_valid)
    weight = valid.astype(dtype) * (1 if weights is None else weights.astype(dtype))
    # Non-finite input shows in the value, even where the loss itself drops it: comparisons and, on CPU, XLA's maximum
    # ignore NaN.
    finite = jnp.all(jnp.isfinite(squares(lax.stop_gradient(key_vectors))))
    weight = weight + jnp.where(finite, 0, jnp.nan).astype(dtype)
    anchors = Anchors(origins, labels, index, weight, valid)
    return Batch(vectors, anchors, key_vectors, Keys(key_origins, key_labels, key_valid))


def counted(labels: jax.Array, ignore_label: int | None) -> jax.Array:
    """Which samples `[n]` count: the rule of ignored labels."""
    return jnp.ones(labels.shape, bool) if ignore_label is None else labels != ignore_label


def anchor_rows(batch: Batch, distance: str, *, with_anchor: bool = False) -> AnchorRow:
    """The rows `[n, m]` of all anchors; key i is the anchor with number i itself, a positive of its own on request."""
    vectors, anchors, key_vectors, keys = batch
    same = anchors.labels[:, None] == keys.labels[None, :]
    both = anchors.valid[:, None] & keys.valid[None, :]
    own = anchors.index[:, None] == jnp.arange(len(keys.labels), dtype=jnp.int32)[None, :]
    others = same & both & ~own
    ends = Rows(vectors, anchors.origins), Rows(key_vectors, keys.origins)
    distances = pair_distances(*ends, distance, candidates=others)
    positive = same & both if with_anchor else others
    return AnchorRow(distances, positive, ~same & both, anchors.labels, keys.labels, anchors.index)


def apply_rows(loss: LossTree, rows: AnchorRow, valid: jax.Array) -> RowLosses:
    """Applies `loss` to rows `[n, m]` and adds the stats that every loss reports."""
    if hasattr(loss, "of_rows"):
        outcome = loss.of_rows(rows)
    else:
        outcome = jax.vmap(loss, in_axes=(AnchorRow(0, 0, 0, 0, None, 0),))(rows)  # pyright: ignore[reportArgumentType]
    shapes = (jnp.shape(outcome[0])[1:], jnp.shape(outcome[1])[1:])
    if shapes != ((), ()):
        raise ValueError(
            f"an anchor's loss and validity have shapes {shapes[0]} and {shapes[1]}; both should be single numbers, "
            "and so should the loss's own numbers, such as the margin"
        )
    terms = jnp.where(valid, outcome[1].astype(outcome[0].dtype), 0)
    value = jnp.where(terms > 0, outcome[0], 0)
    stats = PairStats(
        value > 0, mean_of(rows.distances, rows.is_positive), mean_of(rows.distances, rows.is_negative)
    )._asdict()
    for more in outcome[2:]:
        stats |= more if isinstance(more, dict) else more._asdict()
    return RowLosses(value, lax.stop_gradient(terms), stats)


def summed(rows: RowLosses, weight: jax.Array) -> Sums:
    """Sums of per-anchor results under the anchors' weights `[n]`."""
    some = rows.terms > 0
    stats = {}
    for name, value in rows.stats.items():
        stats[name] = jnp.sum(jnp.where(some, lax.stop_gradient(value).astype(rows.loss.dtype), 0))
    count = jnp.sum(some.astype(rows.loss.dtype))
    return Sums(jnp.sum(rows.loss * weight), jnp.sum(rows.terms * weight), count, stats)


def reduced(result: RowLosses | Sums, weight: jax.Array, options: Options) -> Result:
    """The one reduction, of anchors, samples and whole batches: weights, devices, mean, statistics.

    Args:
        result: the losses one by one, or each device's sums.
        weight: `[n]`, of the losses.
        options: the call's.
    """
    sums = summed(result, weight) if isinstance(result, RowLosses) else result
    if options.axis_name is not None:
        sums = lax.psum(sums, options.axis_name)
    value = sums.loss
    if options.reduction == "mean":
        value = value / jnp.where(sums.weight == 0, 1, sums.weight)
    elif options.reduction == "none" and isinstance(result, RowLosses):
        value = result.loss / jnp.where(result.terms > 0, result.terms, 1) * weight
    if not options.with_stats:
        return value
    stats = {"valid_anchors": sums.count.astype(jnp.float32)}
    for name, total in sums.stats.items():
        stats[name] = (total / jnp.maximum(sums.count, 1)).astype(jnp.float32)
    return value, lax.stop_gradient(stats)
