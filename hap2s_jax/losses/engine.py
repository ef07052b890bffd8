"""The engine: from embeddings and labels to the mean of any anchor loss.

It is the only place that knows where keys come from, so every loss that is a function of one anchor's row
gets global batches, memories, ignored labels, sample weights and blocks of anchors without a line of its own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hap2s_jax.distances import (
    Distance,
    centre_of,
    check_distance,
    class_origins,
    clean_rows,
    compute_dtype,
    nan_unless_finite,
)
from hap2s_jax.losses.blocks import blocked_sums
from hap2s_jax.losses.checks import (
    Axis,
    BlockSize,
    Reduction,
    check_block_size,
    check_embeddings,
    check_reduction,
    check_sample_weights,
)
from hap2s_jax.losses.pytrees import as_pytree
from hap2s_jax.losses.rows import (
    AnchorLoss,
    AnchorRow,
    Anchors,
    Keys,
    Sums,
    apply_rows,
    mean_of_terms,
    row_losses,
    summed,
)

# Above this many pairs the plain path's matrices outgrow the cache.
_PLAIN_PAIRS = 2**18
_BLOCK_PAIRS = 2**21
_TILE = 512
_MANY = 16384


class Options(NamedTuple):
    """The engine's arguments that decide the program; hashable."""

    distance: str
    axis_name: Axis
    ignore_label: int | None
    block_size: BlockSize
    reduction: str
    with_stats: bool


def mean_over_anchors(
    loss: AnchorLoss,
    embeddings: Any,
    labels: Any,
    *,
    distance: Distance = "euclidean",
    axis_name: Axis = None,
    keys: Any = None,
    key_labels: Any = None,
    ignore_label: int | None = -1,
    sample_weights: Any = None,
    block_size: BlockSize = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Any:
    """Mean of `loss` over the valid anchors of a batch, the global batch under `axis_name`.

    Args:
        loss: `(row: AnchorRow) -> (loss, is_valid)`, with a dict of scalars as optional third. Where the
            second is a number, it says how many terms the loss has summed, and the mean is taken over terms.
            If it has parameters it should be a pytree (a registered dataclass, or
            `jax.tree_util.Partial(function, ...)`) with them as leaves, so that they can be traced and
            differentiated. Called outside jit, it is compiled once per function and shape.
        embeddings: `[n, d]`, floating point; each device's own part under `axis_name`.
        labels: `[n]`, integers.
        distance: "euclidean", "squared_euclidean", "cosine" (1 - similarity) or "negative_dot".
        axis_name: name of the mapped axis (or axes) of pmap, vmap or shard_map over which the batch is split.
            The value is then the global one on every device, and the mean of the devices' gradients of shared
            parameters (`pmean`) is the exact gradient.
        keys: `[k, d]` further keys besides the batch itself, equal on all devices, such as a memory.
        key_labels: `[k]`, their labels.
        ignore_label: samples with this label are neither anchors nor keys; their embeddings may be NaN. None:
            all labels count.
        sample_weights: `[n]`, weight of each anchor in the mean or sum; constants, not differentiated.
        block_size: anchors per block (memory linear in the batch, the same value and gradient); None chooses,
            "never" takes the whole matrix at once, which forward-mode differentiation needs.
        reduction: "mean" over valid anchors, "sum", or "none" for `[n]` losses (0 where not valid).
        with_stats: return `(value, stats)`, a dict of float32 scalars averaged over valid anchors.

    Returns:
        The reduced loss, float32 (float64 for float64 embeddings); exactly 0 with gradient 0 if no anchor is
        valid; NaN if an embedding that counts, or its squared length, is not finite.

    Raises:
        ValueError: shapes that do not fit, unknown `distance` or `reduction`, a block size below 1.
        TypeError: embeddings that are not floating point or labels that are not integers.
    """
    embeddings, labels = check_embeddings("embeddings", embeddings, "labels", labels)
    if keys is not None or key_labels is not None:
        keys, key_labels = check_embeddings("keys", keys, "key_labels", key_labels)
        if keys.shape[1] != embeddings.shape[1]:
            raise ValueError(
                f"keys have {keys.shape[1]} dimensions; embeddings have {embeddings.shape[1]}; they should agree"
            )
    sample_weights = check_sample_weights(sample_weights, len(labels))
    check_distance(distance)
    check_reduction(reduction)
    check_block_size(block_size)
    options = Options(distance, axis_name, ignore_label, block_size, reduction, with_stats)
    return _evaluate(as_pytree(loss), embeddings, labels, keys, key_labels, sample_weights, options)


def mean_over_rows(
    loss: AnchorLoss,
    distances: jax.Array,
    is_positive: jax.Array,
    is_negative: jax.Array,
    *,
    axis_name: Axis = None,
    sample_weights: Any = None,
    reduction: Reduction = "mean",
    with_stats: bool = False,
) -> Any:
    """Mean of `loss` over anchors whose rows `[n, m]` are given; for losses that ask for no labels.

    Distances of pairs that are neither positive nor negative may be NaN.
    """
    check_reduction(reduction)
    sample_weights = check_sample_weights(sample_weights, len(distances))
    options = Options("given", axis_name, None, "never", reduction, with_stats)
    return _evaluate_rows(as_pytree(loss), distances, is_positive, is_negative, sample_weights, options)


@functools.partial(jax.jit, static_argnames="options")
def _evaluate_rows(
    loss: AnchorLoss,
    distances: jax.Array,
    is_positive: jax.Array,
    is_negative: jax.Array,
    sample_weights: Any,
    options: Options,
) -> Any:
    count, dtype = distances.shape[0], compute_dtype(distances.dtype)
    distances = jnp.where(is_positive | is_negative, distances.astype(dtype), 0)
    index = jnp.arange(count)
    if options.axis_name is not None:
        index = index + lax.axis_index(options.axis_name) * count
    nothing = jnp.zeros(distances.shape[1], jnp.int32)
    rows = AnchorRow(distances, is_positive, is_negative, jnp.zeros(count, jnp.int32), nothing, index)
    results = apply_rows(loss, rows, jnp.ones(count, bool))
    weight = jnp.ones(count, dtype)
    if sample_weights is not None:
        weight = sample_weights.astype(dtype)
    weight = jnp.where(jnp.any(jnp.isnan(distances), axis=1), jnp.nan, weight)
    value = mean_of_terms(results) * weight if options.reduction == "none" else None
    return finish(summed(results, weight), value, options)


@functools.partial(jax.jit, static_argnames="options")
def _evaluate(
    loss: AnchorLoss,
    embeddings: jax.Array,
    labels: jax.Array,
    keys: jax.Array | None,
    key_labels: jax.Array | None,
    sample_weights: jax.Array | None,
    options: Options,
) -> Any:
    vectors, anchors, key_vectors, key_rows = _problem(
        embeddings, labels, keys, key_labels, sample_weights, options
    )
    arguments = (loss, vectors, anchors, key_vectors, key_rows, options.distance)
    if options.reduction == "none":
        rows = row_losses(*arguments)
        sums = summed(rows, anchors.weight)
        value = mean_of_terms(rows) * anchors.weight
    else:
        alone = options.axis_name is None and keys is None
        sums = _sums(*arguments, options, alone)
        value = None
    return finish(sums, value, options)


def problem(
    embeddings: Any, labels: Any, distance: str, axis_name: Axis, ignore_label: int | None
) -> tuple[jax.Array, Anchors, jax.Array, Keys]:
    """The cleaned anchors and the global batch's keys, for losses that do not go anchor by anchor."""
    embeddings, labels = check_embeddings("embeddings", embeddings, "labels", labels)
    check_distance(distance)
    options = Options(distance, axis_name, ignore_label, "never", "mean", False)
    return _problem(embeddings, labels, None, None, None, options)


def _problem(
    embeddings: jax.Array,
    labels: jax.Array,
    keys: jax.Array | None,
    key_labels: jax.Array | None,
    sample_weights: jax.Array | None,
    options: Options,
) -> tuple[jax.Array, Anchors, jax.Array, Keys]:
    """Cleans the embeddings, and gathers the keys from wherever they come."""
    dtype = compute_dtype(embeddings.dtype)
    count = embeddings.shape[0]
    valid = _counted(labels, options.ignore_label)
    # Ignored rows are zeroed before they are gathered: what is NaN on one device must not reach the others.
    vectors = jnp.where(valid[:, None], embeddings.astype(dtype), 0)
    index = jnp.arange(count)
    all_vectors, all_labels = vectors, labels
    if options.axis_name is not None:
        index = index + lax.axis_index(options.axis_name) * count
        all_vectors = lax.all_gather(vectors, options.axis_name, tiled=True)
        all_labels = lax.all_gather(labels, options.axis_name, tiled=True)
    euclidean = options.distance in ("euclidean", "squared_euclidean")
    centre = centre_of(all_vectors, _counted(all_labels, options.ignore_label)) if euclidean else None
    if keys is not None and key_labels is not None:
        all_vectors = jnp.concatenate([all_vectors, keys.astype(dtype)])
        all_labels = jnp.concatenate([all_labels, key_labels])
    all_valid = _counted(all_labels, options.ignore_label)
    vectors = clean_rows(vectors, valid, options.distance, centre)
    all_vectors = clean_rows(all_vectors, all_valid, options.distance, centre)
    origins, key_origins = None, None
    if euclidean:
        origins, key_origins = class_origins(vectors, labels, all_vectors, all_labels, all_valid)
    weight = valid.astype(dtype)
    if sample_weights is not None:
        weight = weight * sample_weights.astype(dtype)
    # What is not finite shows in the value, whatever the loss makes of it.
    weight = weight + nan_unless_finite(all_vectors)
    anchors = Anchors(origins, labels, index, weight, valid)
    return vectors, anchors, all_vectors, Keys(key_origins, all_labels, all_valid)


def _counted(labels: jax.Array, ignore_label: int | None) -> jax.Array:
    return jnp.ones(labels.shape, bool) if ignore_label is None else labels != ignore_label


def _sums(
    loss: Any,
    vectors: jax.Array,
    anchors: Anchors,
    key_vectors: jax.Array,
    keys: Keys,
    distance: str,
    options: Options,
    alone: bool,
) -> Sums:
    """The sums over anchors by the path that suits the problem; `alone` says that the batch is its own
    keys."""
    size, count = options.block_size, vectors.shape[0]
    if size == "never" or (size is None and count * key_vectors.shape[0] <= _PLAIN_PAIRS):
        return summed(row_losses(loss, vectors, anchors, key_vectors, keys, distance), anchors.weight)
    if alone and getattr(loss, "can_tile", False):
        tile = min(size or (_TILE if count <= _MANY else 2 * _TILE), count)
        return loss.tiled_sums(vectors, anchors, distance, tile, options.with_stats)
    block = min(size or max(16, _BLOCK_PAIRS // key_vectors.shape[0]), count)
    return blocked_sums(loss, vectors, anchors, key_vectors, keys, distance, block)


def finish(sums: Sums, value: jax.Array | None, options: Options) -> Any:
    """The value and the stats from each device's sums; `value` is given where nothing is reduced."""
    if options.axis_name is not None:
        sums = lax.psum(sums, options.axis_name)
    if value is None:
        value = sums.loss
        if options.reduction == "mean":
            value = value / jnp.where(sums.weight == 0, 1, sums.weight)
    if not options.with_stats:
        return value
    count = jnp.maximum(sums.count, 1)
    stats = {name: (total / count).astype(jnp.float32) for name, total in sums.stats.items()}
    stats["valid_anchors"] = sums.count.astype(jnp.float32)
    return value, jax.tree.map(lax.stop_gradient, stats)
