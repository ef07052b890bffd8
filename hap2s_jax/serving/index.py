"""Searching a gallery: exactly, on the device; or by faiss, approximately, where the gallery is large."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import pathlib
from typing import Any, Protocol

import numpy as np

from hap2s_jax import extras
from hap2s_jax.data.places import local
from hap2s_jax.distances import directions, distances_between
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation.neighbors import ExactIndex
from hap2s_jax.reporting.atomic import replacing

KINDS = ("auto", "exact", "faiss")
# Below this size, exact search takes less time than training faiss's cells.
LARGE = 1_000_000
_PROBES = 32
# So many more than asked for are found with rounded rows, and compared exactly.
_SPARE = 32
_AT_ONCE = 65_536
# Up to so many rows, all are compared.
_FEW = 10_000


class Index(Protocol):
    """Finds the nearest rows of a gallery."""

    def search(
        self, queries: Any, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distances `[q, k]` and row numbers int64 `[q, k]` of the `k` nearest rows to queries `[q, d]`, of those that
        are `allowed`, bool `[n]`; infinity and -1 where there are fewer.
        """
        ...


def open_index(
    embeddings: np.ndarray,
    distance: str,
    *,
    kind: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> Index:
    """Makes the index for a gallery.

    Args:
      embeddings: float32 `[n, d]`.
      distance: one of `evaluation.inputs.DISTANCES`.
      kind: "exact"; "faiss" (approximate, needs the extra of that name); "auto" takes faiss where it is installed and
        the gallery holds at least a million images.
      cache: a file that a faiss index is kept in, and taken from while it is of the same embeddings.

    Raises:
      UserError: an unknown kind, or faiss is missing.
    """
    if kind not in KINDS:
        raise UserError(f"--index must be one of {', '.join(KINDS)}, but is {kind!r}")
    if kind == "exact" or (kind == "auto" and (len(embeddings) < LARGE or not _has_faiss())):
        return ExactIndex(embeddings, distance)
    if not _has_faiss():
        raise extras.not_installed("--index=faiss", "faiss", "faiss")
    return FaissIndex(embeddings, distance, None if cache is None else pathlib.Path(cache))


def cache_of(gallery: str | os.PathLike[str]) -> pathlib.Path:
    """The file for a gallery's index.

    It is not beside the gallery: the gallery's maker could have put an index there, and faiss trusts what it reads.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(local(gallery)))).hexdigest()[:16]
    return pathlib.Path.home() / ".cache" / "hap2s_jax" / "faiss" / name


def _has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


class FaissIndex:
    """Cells of nearby images (faiss's IndexIVFScalarQuantizer), of which the nearest few are searched.

    Images in other cells are not found, so nearly all true neighbours are found, but not all. The index holds a byte a
    number; distances are those of `embeddings`.
    """

    def __init__(self, embeddings: np.ndarray, distance: str, cache: pathlib.Path | None):
        import faiss

        self._rows, self._distance = embeddings, distance
        cells = max(1, min(int(np.sqrt(len(embeddings))), len(embeddings) // 40))
        kind = f"IVF{cells},SQ8"
        digest = hashlib.sha256(np.ascontiguousarray(embeddings).data).hexdigest() if cache else ""
        identity = [len(embeddings), embeddings.shape[1], distance, kind, digest]
        self._index: Any = _read_cache(cache, identity)
        if self._index is None:
            self._index = faiss.index_factory(embeddings.shape[1], kind)
            self._index.train(self._unit(embeddings[:: max(1, len(embeddings) // (64 * cells))]))
            for begin in range(0, len(embeddings), _AT_ONCE):
                self._index.add(self._unit(embeddings[begin : begin + _AT_ONCE]))
            _write_cache(cache, identity, self._index)
        self._index.nprobe = min(cells, _PROBES)

    def search(
        self, queries: Any, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Index.search`; -1 and infinity also where the cells hold fewer."""
        faiss: Any = importlib.import_module("faiss")
        asked, settings = np.asarray(queries, np.float32), None
        if allowed is not None:
            if allowed.sum() <= _FEW:
                return self._search_few(asked, k, np.flatnonzero(allowed))
            chosen = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            settings = faiss.SearchParametersIVF(sel=chosen, nprobe=self._index.nprobe)
        found = min(k + _SPARE, len(self._rows))
        _, rows = self._index.search(self._unit(asked), found, params=settings)
        distances = np.stack(
            [
                distances_between(one[None], self._rows[near], self._distance)
                for one, near in zip(asked, rows, strict=True)
            ]
        )
        distances = np.where(rows < 0, np.inf, distances)
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def _search_few(self, queries: np.ndarray, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Searches exactly, among rows that may be in other cells than the queries."""
        distances, found = np.full((len(queries), k), np.inf), np.full((len(queries), k), -1)
        for number, query in enumerate(queries):
            apart = distances_between(query[None], self._rows[rows], self._distance)
            near = np.argsort(apart, kind="stable")[:k]
            distances[number, : len(near)], found[number, : len(near)] = apart[near], rows[near]
        return distances, found

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        return directions(vectors) if self._distance == "cosine" else vectors


def _read_cache(cache: pathlib.Path | None, identity: list[Any]) -> Any:
    import faiss

    if cache is None or not cache.is_file():
        return None
    try:
        if json.loads(cache.with_name(cache.name + ".json").read_text()) != identity:
            return None
        return faiss.read_index(str(cache))
    except (OSError, ValueError, RuntimeError):
        return None  # it will be built again


def _write_cache(cache: pathlib.Path | None, identity: list[Any], index: Any) -> None:
    import faiss

    if cache is None:
        return
    # Searching works without the cache, as in a read-only folder.
    with contextlib.suppress(UserError, OSError, RuntimeError):
        with replacing(cache) as temporary:
            faiss.write_index(index, str(temporary))
        with replacing(cache.with_name(cache.name + ".json")) as temporary:
            temporary.write_text(json.dumps(identity))
