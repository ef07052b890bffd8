"""Re-ranking by k-reciprocal neighbours (Zhong et al., CVPR 2017), sparse and a block of queries at a time.

Two images belong together when each is among the other's k nearest. Each image becomes a sparse vector of
weights over its (expanded) reciprocal neighbours; the new distance is the Jaccard distance of these vectors,
mixed with the old one. The published code holds several dense `[n, n]` matrices; here the vectors stay sparse
(some hundred entries each), and distances are formed per block, so memory grows with n times the number of
neighbours.
"""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from hap2s_jax.evaluation.inputs import check_embeddings, check_members, space
from hap2s_jax.evaluation.neighbors import all_neighbors, cross_distances, opposite_distances

_ROWS_AT_ONCE = 2048


class KReciprocal:
    """The re-ranked distance, to pass to `rank_matches` as its `distance`.

    The original distance enters as Zhong's code has it: squared if Euclidean (for "cosine", `(1 - cos)^2`),
    over the query's largest such distance to any image.

    Attributes:
      k1, k2, mixing: as given.
    """

    def __init__(
        self,
        embeddings: ArrayLike,
        *,
        query: ArrayLike | None = None,
        gallery: ArrayLike | None = None,
        distance: str = "euclidean",
        k1: int = 20,
        k2: int = 6,
        mixing: float = 0.3,
    ) -> None:
        """Finds the reciprocal neighbours of all images among query and gallery.

        Args:
          embeddings: `[n, d]` floats, all finite.
          query, gallery: rows (indices or masks), None for all. Neighbours are sought in both.
          distance: "euclidean" or "squared_euclidean" (the same result), or "cosine".
          k1: neighbours that must be reciprocal.
          k2: neighbours over which the sparse vectors are averaged; 1 for no averaging.
          mixing: weight of the original distance, 0 to 1 (the paper's lambda).
        """
        array = check_embeddings(embeddings)
        count = len(array)
        members = check_members(query, gallery, count)
        if not 1 <= k2 <= k1 + 1 or k1 < 1:
            raise ValueError(f"k1 and k2 must satisfy 1 <= k2 <= k1 + 1, but are {k1} and {k2}.")
        if k1 + 1 > len(members):
            raise ValueError(
                f"k1 is {k1}, but query and gallery together hold {len(members)} images; ask for less."
            )
        if not 0 <= mixing <= 1:
            raise ValueError(f"mixing must lie between 0 and 1, but is {mixing}.")
        self.k1, self.k2, self.mixing = k1, k2, mixing
        to_space = space(array, distance)
        self._cosine = to_space.cosine
        self._vectors = to_space(array, members)
        self._place = np.full(count, -1)
        self._place[members] = np.arange(len(members))
        neighbors, _, farthest = all_neighbors(self._vectors, k1 + 1, cosine=self._cosine)
        # Zero only if all images coincide; every distance is then zero too.
        self._largest = np.maximum(self._original(farthest), np.finfo(farthest.dtype).tiny)
        self._weights = _averaged(self._sparse_vectors(neighbors), neighbors[:, :k2])
        self._inverse = self._weights.transposed()

    def __call__(self, query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Re-ranked distances `[q, g]` between rows of the embeddings, for which the instance was made."""
        asked, kept = self._place[query], self._place[gallery]
        if (asked < 0).any() or (kept < 0).any():
            raise ValueError("a row was asked for that was in neither query nor gallery.")
        table = self._original(cross_distances(self._vectors, asked, kept, cosine=self._cosine))
        table = table * (self.mixing / self._largest[asked, None])
        for row, place in enumerate(asked):
            shared = self._shared(place)[kept]
            table[row] += (1 - self.mixing) * (1 - shared / (2 - shared))
        return table

    def _original(self, distances: np.ndarray) -> np.ndarray:
        # The published code squares every distance; here Euclidean ones are squared already.
        return np.square(distances) if self._cosine else distances

    def _shared(self, place: int) -> np.ndarray:
        """Sum of the smaller of two weights, between one image and all, `[n]`: one minus Jaccard's numerator."""
        total = np.zeros(len(self._vectors), np.float32)
        for column, weight in zip(*self._weights.row(place), strict=True):
            others, weights = self._inverse.row(column)
            total[others] += np.minimum(weight, weights)
        return total

    def _sparse_vectors(self, neighbors: np.ndarray) -> _Sparse:
        half = neighbors[:, : round(self.k1 / 2) + 1]
        parts = []
        for begin in range(0, len(neighbors), _ROWS_AT_ONCE):
            rows = np.arange(begin, min(begin + _ROWS_AT_ONCE, len(neighbors)))
            row, column = _expanded(rows, neighbors, half)
            distance = self._original(opposite_distances(self._vectors, row, column, cosine=self._cosine))
            weight = np.exp(-distance / self._largest[row])
            weight /= np.bincount(row - begin, weight, minlength=len(rows))[row - begin]
            parts.append((row, column, weight.astype(np.float32)))
        row, column, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
        return _Sparse.build(row, column, weight, len(neighbors))


def _reciprocal(rows: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Which of each row's listed neighbours list the row in turn, bool `[r, k]`."""
    return (neighbors[neighbors[rows]] == rows[:, None, None]).any(axis=2)


def _expanded(rows: np.ndarray, neighbors: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (row, member) of the expanded reciprocal sets of `rows`, each once, sorted.

    A reciprocal neighbour brings its own (half as wide) reciprocal set along when more than two thirds of
    that set are reciprocal neighbours already.
    """
    count = len(neighbors)
    mutual = _reciprocal(rows, neighbors)
    row, slot = np.nonzero(mutual)
    candidate = neighbors[rows[row], slot]
    pairs = [rows[row] * count + candidate]
    known = np.sort(pairs[0])
    theirs = half[candidate]
    counted = _reciprocal(candidate, half)
    member = rows[row][:, None] * count + theirs
    place = np.minimum(np.searchsorted(known, member), len(known) - 1)
    already = counted & (known[place] == member)
    joins = already.sum(axis=1) > 2 / 3 * counted.sum(axis=1)
    pairs.append(member[counted & joins[:, None]])
    unique = np.unique(np.concatenate(pairs))
    return unique // count, unique % count


class _Sparse:
    """A sparse `[n, n]` matrix by rows; two arrays and the places where rows begin."""

    def __init__(self, begins: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        self.begins, self.columns, self.values = begins, columns, values

    @classmethod
    def build(cls, row: np.ndarray, column: np.ndarray, value: np.ndarray, count: int) -> _Sparse:
        """From entries sorted by row."""
        begins = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))])
        return cls(begins, column.astype(np.int32), value.astype(np.float32))

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(self.begins[number], self.begins[number + 1])
        return self.columns[part], self.values[part]

    def transposed(self) -> _Sparse:
        count = len(self.begins) - 1
        row = np.repeat(np.arange(count, dtype=np.int32), np.diff(self.begins))
        order = np.argsort(self.columns, kind="stable")
        return _Sparse.build(self.columns[order], row[order], self.values[order], count)


def _averaged(matrix: _Sparse, neighbors: np.ndarray) -> _Sparse:
    """Each row replaced by the mean over its listed rows."""
    count, k = neighbors.shape
    if k == 1:
        return matrix
    lengths = np.diff(matrix.begins)
    parts = []
    for begin in range(0, count, _ROWS_AT_ONCE):
        listed = neighbors[begin : begin + _ROWS_AT_ONCE].reshape(-1)
        # Every entry of every listed row, flattened.
        size = lengths[listed]
        offset = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        entry = np.repeat(matrix.begins[listed], size) + offset
        target = np.repeat(np.repeat(np.arange(begin, begin + len(listed) // k), k), size)
        pairs, slot = np.unique(target * count + matrix.columns[entry], return_inverse=True)
        parts.append((pairs // count, pairs % count, np.bincount(slot, matrix.values[entry]) / k))
    row, column, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Sparse.build(row, column, value, count)
