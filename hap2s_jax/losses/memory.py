"""A memory of past embeddings as further keys (cross-batch memory: Wang et al., XBM, CVPR 2020).

    state = memory.create(4096, 128)
    loss = hap2s_loss(embeddings, labels, keys=state.embeddings, key_labels=state.labels)
    state = memory.push(state, embeddings, labels)

A pytree of arrays, so it lives in the training state, in checkpoints, and inside jit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from hap2s_jax.distances import check_embeddings
from hap2s_jax.losses.rows import Axis

EMPTY = -1


class Memory(NamedTuple):
    """A ring of the latest embeddings.

    Attributes:
        embeddings: `[size, d]`.
        labels: `[size]`, -1 where nothing has been pushed yet: the losses' `ignore_label`.
        cursor: `[]`, where the next embedding goes.
    """

    embeddings: jax.Array
    labels: jax.Array
    cursor: jax.Array


def create(size: int, embedding_dim: int, dtype: DTypeLike = jnp.float32) -> Memory:
    """An empty memory of `size` embeddings of width `embedding_dim`.

    Raises:
        ValueError: `size` below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; it should be at least 1")
    widest = jnp.asarray(0).dtype  # so that no label wraps around
    labels = jnp.full(size, EMPTY, widest)
    return Memory(jnp.zeros((size, embedding_dim), dtype), labels, jnp.zeros((), jnp.int32))


def push(memory: Memory, embeddings: ArrayLike, labels: ArrayLike, *, axis_name: Axis = None) -> Memory:
    """The memory with a batch in place of its oldest entries; the global batch under `axis_name`.

    Args:
        memory: what `create` or `push` returned.
        embeddings: `[n, d]`; no gradient flows back from the memory.
        labels: `[n]`.
        axis_name: the mapped axis over which the batch is split; every device then stores all of it.

    Raises:
        ValueError: the (global) batch is larger than the memory, or shapes that do not fit.
        TypeError: embeddings that are not floating point, or labels that are no integers or wider than the memory's.
    """
    new, new_labels = check_embeddings("embeddings", embeddings, "labels", labels)
    if new_labels.dtype.itemsize > memory.labels.dtype.itemsize:
        raise TypeError(
            f"labels are {new_labels.dtype}; the memory holds {memory.labels.dtype}; give it smaller ones"
        )
    if axis_name is not None:
        new = lax.all_gather(new, axis_name, tiled=True)
        new_labels = lax.all_gather(new_labels, axis_name, tiled=True)
    size, count = memory.labels.shape[0], new_labels.shape[0]
    if count > size:
        raise ValueError(f"a batch of {count} does not fit a memory of {size}; make the memory larger")
    places = (memory.cursor + jnp.arange(count, dtype=memory.cursor.dtype)) % size
    stored = lax.stop_gradient(new).astype(memory.embeddings.dtype)
    return Memory(
        memory.embeddings.at[places].set(stored),
        memory.labels.at[places].set(new_labels.astype(memory.labels.dtype)),
        (memory.cursor + count) % size,
    )
