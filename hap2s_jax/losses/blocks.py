"""Anchors in blocks: exact value and gradient with memory linear in the batch.

A sum over anchors can form its gradient while it goes forward: each block of rows is differentiated on the
spot and only the gradient, of the embeddings' own size, is kept. Nothing is computed twice and no `[n, m]`
matrix ever exists. Reverse mode may be nested (the forward pass is ordinary JAX), forward mode is for the
plain path.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hap2s_jax.losses.rows import AnchorLoss, Anchors, Keys, Sums, row_losses, summed

Static = tuple[Any, str, int]  # the loss's structure, the distance, anchors per block


def blocked_sums(
    loss: AnchorLoss,
    vectors: jax.Array,
    anchors: Anchors,
    key_vectors: jax.Array,
    keys: Keys,
    distance: str,
    block: int,
) -> Sums:
    """The sums of `summed(row_losses(...))`, `block` anchors at a time."""
    structure, smooth, rough = separate(loss, vectors)
    key_vectors = key_vectors + jnp.zeros_like(vectors).sum()
    return _blocked((structure, distance, block), smooth, vectors, key_vectors, (rough, anchors, keys))


def separate(loss: Any, like: jax.Array) -> tuple[Any, list, list]:
    """A loss's structure, its differentiable leaves, and the others (None in the differentiable ones'
    places)."""
    leaves, structure = jax.tree_util.tree_flatten(loss)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    # Every leaf must vary over the same mesh axes as the vectors: under shard_map's check_vma a loop's carry
    # and a custom rule's cotangents may not change that on the way. Adding this zero says so in every
    # version.
    zero = jnp.zeros_like(like).sum()
    smooth = [(leaf + zero).astype(leaf.dtype) for leaf in leaves if _is_smooth(leaf)]
    return structure, smooth, [None if _is_smooth(leaf) else leaf for leaf in leaves]


def merge(structure: Any, smooth: list, rough: list) -> Any:
    """The loss again, from what `separate` returned."""
    rest = iter(smooth)
    return jax.tree_util.tree_unflatten(structure, [next(rest) if r is None else r for r in rough])


def _is_smooth(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def split(array: jax.Array, block: int) -> jax.Array:
    """`[n, ...]` as `[blocks, block, ...]`, the last one filled up with zeros."""
    blocks = math.ceil(array.shape[0] / block)
    padding = [(0, blocks * block - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(blocks, block, *array.shape[1:])


def _block_sums(static: Static, smooth: list, block: Any, key_vectors: jax.Array, rest: Any) -> Sums:
    structure, distance, _ = static
    vectors, anchors = block
    rough, keys = rest
    rows = row_losses(merge(structure, smooth, rough), vectors, anchors, key_vectors, keys, distance)
    return summed(rows, anchors.weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(static: Static, smooth: list, vectors: jax.Array, key_vectors: jax.Array, rest: Any) -> Sums:
    rough, anchors, keys = rest
    blocks = jax.tree.map(lambda x: split(x, static[2]), (vectors, anchors))

    def step(total: Sums, block: Any) -> tuple[Sums, None]:
        return jax.tree.map(
            jnp.add, total, _block_sums(static, smooth, block, key_vectors, (rough, keys))
        ), None

    first = jax.tree.map(lambda x: x[0], blocks)
    shape = jax.eval_shape(lambda b: _block_sums(static, smooth, b, key_vectors, (rough, keys)), first)
    return lax.scan(step, _zeros(shape, vectors), blocks)[0]


def _forward(static: Static, smooth: list, vectors: jax.Array, key_vectors: jax.Array, rest: Any) -> tuple:
    rough, anchors, keys = rest
    blocks = jax.tree.map(lambda x: split(x, static[2]), (vectors, anchors))

    def total_loss(smooth: list, vectors: jax.Array, key_vectors: jax.Array, anchors: Anchors) -> tuple:
        sums = _block_sums(static, smooth, (vectors, anchors), key_vectors, (rough, keys))
        return sums.loss, sums

    def step(carry: tuple, block: Any) -> tuple:
        gradient = jax.value_and_grad(total_loss, argnums=(0, 1, 2), has_aux=True)
        (_, sums), (of_smooth, of_vectors, of_keys) = gradient(smooth, block[0], key_vectors, block[1])
        return jax.tree.map(jnp.add, carry, (sums, of_smooth, of_keys)), of_vectors

    first = jax.tree.map(lambda x: x[0], blocks)
    shape = jax.eval_shape(lambda b: _block_sums(static, smooth, b, key_vectors, (rough, keys)), first)
    start = (_zeros(shape, vectors), jax.tree.map(jnp.zeros_like, smooth), jnp.zeros_like(key_vectors))
    (sums, of_smooth, of_keys), of_vectors = lax.scan(step, start, blocks)
    of_vectors = of_vectors.reshape(-1, vectors.shape[1])[: vectors.shape[0]]
    return sums, (of_smooth, of_vectors, of_keys)


def _backward(static: Static, gradients: tuple, cotangent: Sums) -> tuple:
    del static
    of_smooth, of_vectors, of_keys = jax.tree.map(lambda g: (g * cotangent.loss).astype(g.dtype), gradients)
    return of_smooth, of_vectors, of_keys, None


_blocked.defvjp(_forward, _backward)


def _zeros(shape: Any, like: jax.Array) -> Any:
    zero = jnp.zeros_like(like).sum()
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype) + zero.astype(s.dtype), shape)
