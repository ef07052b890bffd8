"""Anchors in blocks: exact value and gradient with memory linear in the batch.

The total over anchors a of weights v_a and losses f,

    (1)  T(theta, x, k) = sum_a v_a f(theta, x_a, k)        theta: the loss's numbers, x: anchors, k: keys

is a sum, and so are its gradients,

    (2)  dT/dtheta = sum_a v_a df/dtheta,   dT/dx_a = v_a df/dx_a,   dT/dk = sum_a v_a df/dk.

So the forward pass can differentiate each block of anchors on the spot and keep nothing of it but its share of (2), of
the embeddings' own size; the backward pass multiplies by one number. Nothing is computed twice and no `[n, m]` matrix
ever exists. Reverse mode may be nested (the forward pass is ordinary JAX), forward mode is for the plain path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hap2s_jax.losses.engine import anchor_rows, apply_rows, summed
from hap2s_jax.losses.rows import Anchors, Batch, Keys, LossTree, Sums
from hap2s_jax.losses.weightings import Structure, merge, separate, split

Smooth = list[jax.Array]  # theta
Static = tuple[Structure, str, int]  # the loss's structure, the distance, anchors per block


class Fixed(NamedTuple):
    """Arrays without a gradient."""

    rough: list[jax.Array | None]
    anchors: Anchors
    keys: Keys


class Gradients(NamedTuple):
    """The derivatives of (2); those of x lie in blocks while they are summed."""

    smooth: Smooth
    vectors: jax.Array
    key_vectors: jax.Array


def blocked_sums(loss: LossTree, batch: Batch, distance: str, block: int) -> Sums:
    """The sums of all anchors' losses, `block` anchors at a time."""
    structure, smooth, rough = separate(loss, batch.vectors)
    key_vectors = batch.key_vectors + jnp.zeros_like(batch.vectors).sum()
    fixed = Fixed(rough, batch.anchors, batch.keys)
    return _blocked((structure, distance, block), smooth, batch.vectors, key_vectors, fixed)


def _block_sums(
    static: Static, smooth: Smooth, vectors: jax.Array, key_vectors: jax.Array, anchors: Anchors, fixed: Fixed
) -> Sums:
    structure, distance, _ = static
    batch = Batch(vectors, anchors, key_vectors, fixed.keys)
    loss: LossTree = merge(structure, smooth, fixed.rough)
    if hasattr(loss, "of_batch"):
        return summed(loss.of_batch(batch), anchors.weight)
    rows = anchor_rows(batch, distance, with_anchor=getattr(loss, "with_anchor", False))
    return summed(apply_rows(loss, rows, anchors.valid), anchors.weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(
    static: Static, smooth: Smooth, vectors: jax.Array, key_vectors: jax.Array, fixed: Fixed
) -> Sums:
    def sums_of(block: tuple[jax.Array, Anchors]) -> Sums:
        return _block_sums(static, smooth, block[0], key_vectors, block[1], fixed)

    def step(total: Sums, block: tuple[jax.Array, Anchors]) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, sums_of(block)), None

    blocks = split((vectors, fixed.anchors), static[2])
    return lax.scan(step, _zeros(sums_of, blocks, vectors), blocks)[0]


def _forward(
    static: Static, smooth: Smooth, vectors: jax.Array, key_vectors: jax.Array, fixed: Fixed
) -> tuple[Sums, Gradients]:
    def sums_of(
        smooth: Smooth, vectors: jax.Array, key_vectors: jax.Array, anchors: Anchors
    ) -> tuple[jax.Array, Sums]:
        sums = _block_sums(static, smooth, vectors, key_vectors, anchors, fixed)
        return sums.loss, sums

    def step(
        carry: tuple[Sums, Smooth, jax.Array], block: tuple[jax.Array, Anchors]
    ) -> tuple[tuple[Sums, Smooth, jax.Array], jax.Array]:
        gradient = jax.value_and_grad(sums_of, argnums=(0, 1, 2), has_aux=True)
        (_, sums), (of_smooth, of_vectors, of_keys) = gradient(smooth, block[0], key_vectors, block[1])
        return jax.tree.map(jnp.add, carry, (sums, of_smooth, of_keys)), of_vectors

    blocks = split((vectors, fixed.anchors), static[2])
    sums = _zeros(lambda block: sums_of(smooth, block[0], key_vectors, block[1])[1], blocks, vectors)
    start = (sums, jax.tree.map(jnp.zeros_like, smooth), jnp.zeros_like(key_vectors))
    (sums, of_smooth, of_keys), of_vectors = lax.scan(step, start, blocks)
    of_vectors = of_vectors.reshape(-1, vectors.shape[1])[: vectors.shape[0]]
    return sums, Gradients(of_smooth, of_vectors, of_keys)


def _backward(static: Static, gradients: Gradients, cotangent: Sums) -> tuple[Smooth | jax.Array | None, ...]:
    del static
    return *jax.tree.map(lambda g: g * cotangent.loss.astype(g.dtype), gradients), None


_blocked.defvjp(_forward, _backward)


def _zeros(
    function: Callable[[tuple[jax.Array, Anchors]], Sums], blocks: tuple[jax.Array, Anchors], like: jax.Array
) -> Sums:
    """Zeros of the shape of `function`'s result for one block, varying over the same mesh axes as `like`."""
    shape = jax.eval_shape(function, jax.tree.map(lambda x: x[0], blocks))
    zero = jnp.zeros_like(like).sum()
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype) + zero.astype(s.dtype), shape)
