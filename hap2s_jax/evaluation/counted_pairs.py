"""All pairs of many images, counted by distance: products in square blocks, distances in steps of equal width."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hap2s_jax.distances import gram_distances, squares
from hap2s_jax.evaluation.inputs import JUNK, Space, space

STEPS = 2**20
_SIDE = 2560  # side of a square block of pairs


class _Block(NamedTuple):
    """A square block of pairs: all vectors and labels, where its rows and columns begin, and steps per distance."""

    vectors: jax.Array
    labels: jax.Array
    row: jax.Array | np.integer | int
    column: jax.Array | np.integer | int
    scale: jax.Array | np.floating | float


class CountedPairs:
    """All pairs of labelled embeddings.

    Args:
      embeddings: `[m, d]`, checked.
      rows: `[n]`, the embeddings to compare.
      labels: `[n]`, the classes of these, from 0 on.
      distance: how they are compared; a cosine distance in steps of the directions' Euclidean one.
    """

    def __init__(self, embeddings: np.ndarray, rows: np.ndarray, labels: np.ndarray, distance: str):
        # A copy of 50,000 embeddings would be a tenth of the memory that this function may use.
        chosen = embeddings if len(rows) == len(embeddings) else embeddings[rows]
        self._space, self._distance = space(chosen, distance), distance
        del chosen
        self._count, parts = len(labels), -(-len(labels) // _SIDE)
        self._side = -(-self._count // parts)
        vectors = self._space(embeddings, rows, self._side * parts)
        self._vectors = jnp.asarray(vectors)
        self._labels = jnp.asarray(
            np.pad(labels, (0, len(vectors) - self._count), constant_values=JUNK), jnp.int32
        )
        self._width = _largest(vectors[: self._count], self._space) / STEPS

    def threshold(self, steps: np.ndarray) -> np.ndarray:
        """The distance at the end of so many steps."""
        distances = steps * self._width
        if self._distance == "euclidean":
            return distances
        return distances**2 / 2 if self._space.cosine else distances**2

    def counts(self) -> np.ndarray:
        """Pairs by kind (of one class, of two) and step of distance, int64 `[2, STEPS]`."""
        total = np.zeros(2 * STEPS + 1, np.int64)
        waiting: list[jax.Array] = []
        # A device forms the next one while this one is counted.
        for tile in self._tiles(_places, halved=True):
            waiting.append(tile)
            if len(waiting) > 1:
                total += np.bincount(np.asarray(waiting.pop(0)).reshape(-1), minlength=len(total))
        total += np.bincount(np.asarray(waiting.pop()).reshape(-1), minlength=len(total))
        return total[:-1].reshape(2, STEPS)

    def by_row(self, limits: np.ndarray) -> np.ndarray:
        """Each row's pairs, of one class and of two, at most `limits` `[g]` (ends of steps) apart, `[2, g, n]`."""
        steps = np.searchsorted(self.threshold(np.arange(STEPS + 1) + 0.5), limits).astype(np.int32)
        out = np.zeros((2, len(limits), len(self._vectors)))
        tiles = self._tiles(functools.partial(_count_within, limits=steps), halved=False)
        across = len(self._vectors) // self._side
        for place, tile in enumerate(tiles):
            begin = place // across * self._side
            out[:, :, begin : begin + self._side] += np.asarray(tile)
        return out[:, :, : self._count]

    def _tiles(self, form: Callable[..., jax.Array], *, halved: bool) -> Iterator[jax.Array]:
        """The value of `form` for each square block of pairs; if `halved`, without those below the diagonal."""
        scale = np.float32(1 / (self._width * self._space.scale))
        starts = range(0, len(self._vectors), self._side)
        for row in starts:
            for column in starts[row // self._side if halved else 0 :]:
                block = _Block(self._vectors, self._labels, np.int32(row), np.int32(column), scale)
                yield form(block, side=self._side, cosine=self._space.cosine)


def _largest(vectors: np.ndarray, to_space: Space) -> float:
    """An upper bound of all pairs' distances."""
    if to_space.cosine:
        return 2.0
    return float(2 * np.sqrt(squares(vectors).max()) * (1 + 1e-5) / to_space.scale) or 1.0


def _step_of_each(block: _Block, side: int, cosine: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Steps of distance int32 `[side, side]`, whether of one class, and whether the pair is of two images."""
    vectors, labels, row, column, scale = block
    rows, columns = (lax.dynamic_slice_in_dim(vectors, at, side) for at in (row, column))
    own, other = (lax.dynamic_slice_in_dim(labels, at, side) for at in (row, column))
    apart = gram_distances(rows, columns, cosine=cosine)
    apart = jnp.sqrt(jnp.maximum(2 * apart, 0) if cosine else apart)
    step = jnp.clip((apart * scale).astype(jnp.int32), 0, STEPS - 1)
    places = row + jnp.arange(side), column + jnp.arange(side)
    valid = (own != JUNK)[:, None] & (other != JUNK)[None, :] & (places[0][:, None] != places[1][None, :])
    return step, own[:, None] == other[None, :], valid


@functools.partial(jax.jit, static_argnames=("side", "cosine"))
def _places(block: _Block, *, side: int, cosine: bool) -> jax.Array:
    """The place of each pair in a table of steps of same, then of different pairs; the last place is for no pair."""
    step, same, valid = _step_of_each(block, side, cosine)
    once = (block.row + jnp.arange(side))[:, None] < (block.column + jnp.arange(side))[None, :]
    return jnp.where(valid & once, jnp.where(same, step, step + STEPS), 2 * STEPS)


@functools.partial(jax.jit, static_argnames=("side", "cosine"))
def _count_within(block: _Block, *, limits: jax.Array, side: int, cosine: bool) -> jax.Array:
    """Number of each row's pairs, same and different, below each limit, int32 `[2, g, side]`."""
    step, same, valid = _step_of_each(block, side, cosine)

    def within(limit: jax.Array) -> jax.Array:
        near = valid & (step < limit)
        return jnp.stack([jnp.sum(near & same, axis=1), jnp.sum(near & ~same, axis=1)])

    return jnp.moveaxis(lax.map(within, jnp.asarray(limits)), 0, 1)
