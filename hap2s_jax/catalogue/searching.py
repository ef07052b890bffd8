"""Search among the images of a store, and groups of images that are likely to show one individual."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from hap2s_jax.catalogue.state import State
from hap2s_jax.distances import distances_between
from hap2s_jax.errors import require
from hap2s_jax.serving import index

PER = ("individual", "image")
_AT_ONCE = 256
_PAIRS_OF = 200


@dataclasses.dataclass(frozen=True)
class Match:
    """An image that was found: its row in the store, its id, path and individual ("" without), and its distance."""

    row: int
    id: int
    path: str
    label: str
    distance: float


class Group(NamedTuple):
    """Images that are likely to show one individual: their rows, and the share of pairs within the threshold."""

    rows: np.ndarray
    sure: float


class Finder:
    """Searches a store, and follows its changes.

    Args:
      store: whose embeddings are searched.
      kind, cache: see `index.open_index`.
    """

    def __init__(self, store: State, *, kind: str = "auto", cache: pathlib.Path | None = None):
        self.store, self._kind, self._cache = store, kind, cache
        self._index: index.Index | None = None
        self._of: np.ndarray | None = None
        self._real = np.zeros(0, bool)

    def search(
        self,
        queries: np.ndarray,
        k: int = 10,
        *,
        per: str = "individual",
        where: str = "",
        without: np.ndarray | None = None,
    ) -> list[list[Match]]:
        """The nearest to each query.

        Args:
          queries: float32 `[q, d]`, of the store's encoder.
          k: how many answers, fewer where there are no more.
          per: "individual" for the nearest image of each, or "image" for all, those without a name too.
          where: a filter, see `filters.parse`.
          without: rows that are not to be found.

        Raises:
          UserError: an unknown `per` or a filter that is none.
        """
        require(k > 0, "k", k, "at least 1")
        require(per in PER, "per", repr(per), f"one of {', '.join(PER)}")
        allowed = (self.store.known if per == "individual" else self.store.usable) & self.store.where(where)
        if without is not None:
            allowed[without] = False
        if not len(queries) or not allowed.any():
            return [[] for _ in queries]
        total, wanted = int(allowed.sum()), k if per == "image" else 8 * k
        while True:
            wanted = min(wanted, len(allowed))
            distances, rows = self.nearest(queries, wanted, allowed)
            chosen = [self._first(line, per)[:k] for line in rows]
            # An approximate index may find fewer than there are.
            done = [len(places) >= k or line[-1] < 0 for places, line in zip(chosen, rows, strict=True)]
            if per == "image" or wanted >= total or all(done):
                break
            wanted *= 8
        return [
            [self._match(int(rows[q, n]), float(distances[q, n])) for n in places]
            for q, places in enumerate(chosen)
        ]

    def nearest(self, queries: np.ndarray, k: int, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances and rows `[q, k]` as an index gives them, of the rows that are `allowed`."""
        if self._of is not self.store.embeddings or self._index is None:
            # The old index is freed before the new one is made: memory may not hold two.
            self._of, self._index = self.store.embeddings, None
            self._index = index.open_index(
                self._of, self.store.encoder["distance"], kind=self._kind, cache=self._cache
            )
            self._real = self._of.any(axis=1)  # rows that could not be embedded again are zeros
        return self._index.search(queries, k, allowed & self._real)

    def group(self, threshold: float, *, neighbours: int = 16, where: str = "") -> list[Group]:
        """Sorts images that wait for a decision into likely individuals, the largest first.

        Two images belong together if each is among the other's nearest and they lie within the threshold, or if others
        connect them so. Memory grows with the number of images, not with its square.

        Args:
          threshold: a distance.
          neighbours: how many of the nearest count.
          where: a filter, see `filters.parse`.
        """
        from scipy import sparse

        store = self.store
        allowed = store.usable & (store.labels == 0) & store.where(where)
        rows = np.flatnonzero(allowed)
        if not len(rows):
            return []
        k, pairs = min(neighbours + 1, len(store.ids)), []
        for begin in range(0, len(rows), _AT_ONCE):
            asking = rows[begin : begin + _AT_ONCE]
            distances, near = self.nearest(store.embeddings[asking], k, allowed)
            fine = (distances <= threshold) & (near != asking[:, None]) & (near >= 0)
            pairs.append(np.stack([np.repeat(asking, fine.sum(axis=1)), near[fine]]))
        first, second = np.searchsorted(rows, np.concatenate(pairs, axis=1))
        links = sparse.csr_matrix((np.ones(len(first), bool), (first, second)), (len(rows),) * 2)
        _, numbers = sparse.csgraph.connected_components(links.multiply(links.T), directed=False)
        order = np.argsort(numbers, kind="stable")
        parts = np.split(rows[order], np.flatnonzero(np.diff(numbers[order])) + 1)
        found = [Group(part, self._cohesion(part, threshold)) for part in parts]
        return sorted(found, key=lambda group: -len(group.rows))

    def _cohesion(self, rows: np.ndarray, threshold: float) -> float:
        if len(rows) < 2:
            return 1.0
        some = rows[np.linspace(0, len(rows) - 1, min(len(rows), _PAIRS_OF)).astype(int)]
        array = self.store.embeddings[some]
        one, other = np.triu_indices(len(some), 1)
        apart = distances_between(array[one], array[other], self.store.encoder["distance"])
        return float(np.mean(apart <= threshold))

    def _first(self, rows: np.ndarray, per: str) -> list[int]:
        """Positions of the answers in rows sorted by distance: the first row of each individual."""
        there = np.flatnonzero(rows >= 0)
        if per == "image":
            return there.tolist()
        return np.sort(np.unique(self.store.labels[rows[there]], return_index=True)[1]).tolist()

    def _match(self, row: int, distance: float) -> Match:
        store = self.store
        return Match(row, int(store.ids[row]), store.text("path", row), store.name_of(row), distance)
