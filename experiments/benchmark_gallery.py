"""A store of a million vectors: appends, loading, search with and without an index and a filter, memory; beside faiss.

    python experiments/benchmark_gallery.py
    python experiments/benchmark_gallery.py --rows=100000

The vectors are embeddings of the emoji data set (`--embeddings`, a file of `hap2s_jax.embed`) or, without one, centres
drawn at random, each many times with noise of half the distance between them: vectors without neighbourhoods would say
nothing of an index. Queries are rows with fresh noise. Times are medians; faiss searches the same rows flat.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import statistics
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from hap2s_jax.catalogue.searching import Finder
from hap2s_jax.catalogue.store import Store
from hap2s_jax.serving import vectors

_ENCODER = {"fingerprint": "benchmark", "distance": "euclidean", "step": 0, "workdir": "/none"}


def _median(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _rows(embeddings: str | None) -> Callable[[int, int], np.ndarray]:
    """A function of a seed and a number of rows, to float32 `[count, d]` around the same centres."""
    if embeddings:
        centres = vectors.read(embeddings).embeddings
    else:
        centres = np.random.default_rng(0).normal(size=(2000, 128)).astype(np.float32)
    apart = np.median(np.linalg.norm(centres[:100, None] - centres[None, 100:200], axis=2))
    scale = np.float32(0.5 * apart / np.sqrt(2 * centres.shape[1]))

    def made(seed: int, count: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((count, centres.shape[1]), np.float32)
        return centres[rng.integers(0, len(centres), count)] + scale * noise

    return made


def _append(store: Store, embeddings: np.ndarray, begin: int) -> None:
    count = len(embeddings)
    texts = {name: [""] * count for name in ("folder", "box", "place", "more")}
    store.tables.add_images(
        "benchmark",
        {
            "id": np.arange(begin, begin + count),
            "size": [1] * count,
            "path": [f"{n:08d}.jpg" for n in range(begin, begin + count)],
            "label": [f"individual {n % 20_000}" for n in range(begin, begin + count)],
            "camera": [("north", "south")[n % 2] for n in range(begin, begin + count)],
            "time": [f"2026-{1 + n % 12:02d}-01" for n in range(begin, begin + count)],
            **texts,
        },
        embeddings,
    )


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--embeddings", help="an .npz file of the emoji data set")
    parser.add_argument("--at_once", type=int, default=20_000, help="rows of one append")
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument(
        "--index", action=argparse.BooleanOptionalAction, default=True, help="whether to make one, minutes"
    )
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    made = _rows(options.embeddings)
    with tempfile.TemporaryDirectory() as folder:
        encoder: Any = types.SimpleNamespace(describe=lambda: _ENCODER, dim=made(0, 1).shape[1])
        store = Store.create(pathlib.Path(folder) / "store", encoder)
        taken = 0.0
        for begin in range(0, options.rows, options.at_once):
            block = made(begin, min(options.at_once, options.rows - begin))
            start = time.perf_counter()
            _append(store, block, begin)
            taken += time.perf_counter() - start
        figures["appended, vectors/s"] = f"{options.rows / taken:,.0f}"
        start = time.perf_counter()
        store.refresh()
        figures["loaded cold, s"] = f"{time.perf_counter() - start:.2f}"
        queries = made(-1 % 2**32, options.queries)
        finders = {"exact": Finder(store, kind="exact")}
        if options.index:
            finders["with faiss's index"] = Finder(store, kind="faiss")
        found = {}
        for name, finder in finders.items():
            start = time.perf_counter()
            finder.search(queries[:1], 10, per="image")
            figures[f"{name}: index made, s"] = f"{time.perf_counter() - start:.2f}"
            found[name] = [
                {m.row for m in finder.search(query[None], 10, per="image")[0]} for query in queries
            ]
            one = iter(np.tile(queries, (4, 1)))
            figures[f"{name}: one query, 10 images, ms"] = (
                f"{1e3 * _median(lambda f=finder, q=one: f.search(next(q)[None], 10, per='image'), 20):.0f}"
            )
        figures["exact: one query, 10 individuals, ms"] = (
            f"{1e3 * _median(lambda: finders['exact'].search(queries[:1], 10), 10):.0f}"
        )
        if options.index:
            shared = [len(a & b) / 10 for a, b in zip(*found.values(), strict=True)]
            figures["recall@10 of the index"] = f"{np.mean(shared):.3f}"
        where = "camera = 'north' and time > '2026-06-01'"
        figures["all rows filtered by camera and time, ms"] = (
            f"{1e3 * _median(lambda: store.where(where), 5):.0f}"
        )
        figures["memory at the peak, GB"] = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f}"
        import faiss

        flat: Any = faiss.IndexFlatL2(store.embeddings.shape[1])
        flat.add(store.embeddings)
        figures["faiss, flat: one query, ms"] = (
            f"{1e3 * _median(lambda: flat.search(queries[:1], 10), 20):.0f}"
        )
    print(f"| {options.rows:,} x {store.embeddings.shape[1]} | |\n|---|---:|")
    for name, value in figures.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
