"""Shared by the losses against learnt points of the classes, `softmaxes` and `proxies`.

They are not functions of an anchor's row, but have the engine's calling convention. The learnt arrays are an argument,
`params`; `losses.create(name).init_params(key, num_classes, embedding_dim)` makes the first ones. Every sample whose
label is not ignored counts, and the mean over them is global under `axis_name`. Large batches go in blocks of samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from hap2s_jax.distances import COMPUTED_IN, FLOAT32, check_embeddings, squares, unit
from hap2s_jax.losses.blocks import blocked_sums
from hap2s_jax.losses.engine import check_options, counted, reduced
from hap2s_jax.losses.pytrees import register_dataclass, with_numbers_in
from hap2s_jax.losses.rows import Anchors, Axis, Batch, Keys, Options, Result, RowLosses, SampleCall

Params = Mapping[str, ArrayLike]
Stats = dict[str, jax.Array]
# With more logits than this, a block of samples is computed at a time.
_LOGITS = 2**22


@register_dataclass
@dataclass(frozen=True)
class AgainstPoints:
    """A loss of samples against points: (vectors `[b, d]`, points, labels `[b]`) -> (values `[b]`, stats).

    With `unit`, an axis of the points, the function gets vectors and points of length 1.
    """

    function: Callable[..., tuple[jax.Array, Stats]]
    unit: int | None = field(default=None, metadata={"static": True})

    def of_batch(self, batch: Batch) -> RowLosses:
        """The losses of the batch's samples, whose keys are the points."""
        dtype, valid = batch.vectors.dtype, batch.anchors.valid
        function = jax.tree.map(lambda number: jnp.asarray(number, dtype), self.function)
        values, stats = function(batch.vectors, batch.key_vectors, batch.anchors.labels)
        return RowLosses(jnp.where(valid, values, 0), valid.astype(dtype), stats)


def mean_over_samples(
    function: Partial,
    embeddings: ArrayLike,
    labels: ArrayLike,
    points: ArrayLike,
    classes: int,
    call: SampleCall,
    *,
    on_sphere: bool = False,
) -> Result:
    """The reduced loss of samples against the points of classes.

    Args:
        function: what `AgainstPoints` has, with the loss's numbers as its arguments.
        embeddings: `[n, d]`.
        labels: `[n]`.
        points: `[c, d]`, `[d, c]`, or `[d, k, c]` with k points a class.
        classes: the axis of the classes, 0 or -1.
        call: the call's arguments.
        on_sphere: the function is of vectors and points of length 1.
    """
    batch, options = prepare_classes(embeddings, labels, points, classes, call)
    return _evaluate(AgainstPoints(function, -1 - classes if on_sphere else None), batch, options)


def prepare_classes(
    embeddings: ArrayLike, labels: ArrayLike, points: ArrayLike, classes: int, call: SampleCall
) -> tuple[Batch, Options]:
    """The batch, ignored rows zero and labels fit for indexing, with the classes' points as keys; and the options."""
    vectors, labels = check_embeddings("embeddings", embeddings, "labels", labels)
    options, weights = call_options(call, len(labels))
    points = jnp.asarray(points)
    if points.shape[-1 - classes] != vectors.shape[1]:
        raise ValueError(f"params {points.shape} do not fit embeddings {vectors.shape}: widths should agree")
    valid = counted(labels, options.ignore_label)
    vectors = jnp.where(valid[:, None], vectors.astype(COMPUTED_IN.get(vectors.dtype, FLOAT32)), 0)
    # An index out of range would be clamped in silence and train the wrong class.
    inside = (labels >= 0) & (labels < points.shape[classes])
    vectors = jnp.where((valid & ~inside)[:, None], jnp.nan, vectors)
    labels = jnp.where(valid & inside, labels, 0)
    weight = valid.astype(vectors.dtype) * (1 if weights is None else weights.astype(vectors.dtype))
    # Non-finite input shows in the value, even if the loss itself would drop it.
    finite = jnp.all(jnp.isfinite(squares(lax.stop_gradient(vectors))))
    anchors = Anchors(
        None, labels, labels, weight + jnp.where(finite, 0, jnp.nan).astype(weight.dtype), valid
    )
    return Batch(vectors, anchors, points.astype(vectors.dtype), Keys(None, labels, valid)), options


def call_options(call: SampleCall, count: int, distance: str = "given") -> tuple[Options, jax.Array | None]:
    """A call's options, checked, and its sample weights."""
    axis_name, ignore_label = call.get("axis_name"), call.get("ignore_label", -1)
    reduction, with_stats = call.get("reduction", "mean"), call.get("with_stats", False)
    weights = check_options(reduction, None, call.get("sample_weights"), count)
    return Options(distance, axis_name, ignore_label, None, reduction, with_stats), weights


@functools.partial(jax.jit, static_argnames="options")
def _evaluate(loss: AgainstPoints, batch: Batch, options: Options) -> Result:
    loss = with_numbers_in(loss, batch.vectors.dtype)
    count, logits = len(batch.vectors), batch.key_vectors.size // batch.vectors.shape[1]
    if loss.unit is not None:  # once, not for every block
        batch = batch._replace(vectors=unit(batch.vectors), key_vectors=unit(batch.key_vectors, loss.unit))
    if options.reduction == "none" or count * logits <= _LOGITS:
        result = loss.of_batch(batch)
    else:
        result = blocked_sums(loss, batch, options.distance, min(max(16, _LOGITS // logits), count))
    return reduced(result, batch.anchors.weight, options)


def everyones(value: jax.Array, valid: jax.Array, stats: Stats) -> RowLosses:
    """Gives each sample `[n]` the loss of the whole batch."""
    return RowLosses(jnp.where(valid, value, 0), valid.astype(value.dtype), stats)


def over_devices(value: jax.Array, axis_name: Axis) -> jax.Array:
    """Gathers `[n, ...]` from all devices, with gradients."""
    return value if axis_name is None else lax.all_gather(value, axis_name, tiled=True)


def own_entry(table: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each sample's entry for its own class `[n]`, and a mask of these entries, bool `[n, c]`."""
    is_own = jnp.arange(table.shape[1], dtype=labels.dtype)[None, :] == labels[:, None]
    # Not by indexing: the gradient would be a scatter, which XLA's CPU code does one element at a time.
    return jnp.sum(jnp.where(is_own, table, 0), axis=1), is_own


def accuracy(logits: jax.Array, labels: jax.Array) -> Stats:
    """The statistic of losses that tell classes apart."""
    return {"accuracy": jnp.argmax(logits, axis=1).astype(labels.dtype) == labels}
