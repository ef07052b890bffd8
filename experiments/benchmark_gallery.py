"""A store of a million vectors: appends, loading, search with and without an index and a filter, memory; beside faiss.

    python -m hap2s_jax.main --config=configs/emoji.py --workdir=runs/emoji --config.encoder.embedding_dim=128
    python experiments/benchmark_gallery.py --workdir=runs/emoji
    python experiments/benchmark_gallery.py --workdir=runs/emoji --rows=100000

The vectors are the embeddings of the emoji data set, each many times with noise of half the distance between two of
them: vectors without neighbourhoods would say nothing of an index. Queries are such rows with other noise. Each step is
a process of its own, whose greatest memory counts. Times are medians; faiss searches the same rows flat.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import multiprocessing
import pathlib
import resource
import statistics
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np

import hap2s_jax
from hap2s_jax.catalogue import columns
from hap2s_jax.catalogue.searching import Finder
from hap2s_jax.catalogue.store import Store
from hap2s_jax.data import emoji

_ENCODER = {"fingerprint": "benchmark", "distance": "euclidean", "step": 0, "workdir": "/none"}
_AT_ONCE = 20_000
_FILTER = "camera = 'north' and time > '2026-06-01'"


def _median(work: Callable[[], object], times: int) -> str:
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return f"{1e3 * statistics.median(taken):.1f}"


def _memory() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f}"


def _centres(workdir: str, file: pathlib.Path) -> None:
    """Writes the embeddings of all drawings."""
    source, encoder = emoji.EmojiSource(), hap2s_jax.load(workdir)
    np.save(file, encoder([source.read(n) for n in range(len(source))]))


def _rows(centres: np.ndarray, seed: int, count: int) -> np.ndarray:
    """float32 `[count, d]` around the centres."""
    apart = np.median(np.linalg.norm(centres[:100, None] - centres[None, 100:200], axis=2))
    scale, rng = np.float32(0.5 * apart / np.sqrt(2 * centres.shape[1])), np.random.default_rng(seed)
    noise = rng.standard_normal((count, centres.shape[1]), np.float32)
    return centres[rng.integers(0, len(centres), count)] + scale * noise


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


def _fill(folder: pathlib.Path, file: pathlib.Path, rows: int) -> dict[str, str]:
    centres, taken = np.load(file), 0.0
    encoder: Any = types.SimpleNamespace(describe=lambda: _ENCODER, dim=centres.shape[1])
    store = Store.create(folder, encoder)
    for begin in range(0, rows, _AT_ONCE):
        block = _rows(centres, begin, min(_AT_ONCE, rows - begin))
        start = time.perf_counter()
        _append(store, block, begin)
        taken += time.perf_counter() - start
    start = time.perf_counter()
    store.refresh()
    figures = {"appended, vectors/s": f"{rows / taken:,.0f}"}
    return figures | {"taken in after them, s": f"{time.perf_counter() - start:.2f}", "memory, GB": _memory()}


def _search(
    folder: pathlib.Path, file: pathlib.Path, kind: str, count: int
) -> tuple[dict[str, str], list[set[int]]]:
    """Figures of one kind of index, and the rows that it finds for each query."""
    importlib.import_module("lancedb")  # which takes a second by itself
    start = time.perf_counter()
    store = Store(folder)
    figures = {"loaded cold, s": f"{time.perf_counter() - start:.2f}"}
    queries, finder = _rows(np.load(file), 2**32 - 1, count), Finder(store, kind=kind)
    start = time.perf_counter()
    finder.search(queries[:1], 10, per="image")
    figures["index made, s"] = f"{time.perf_counter() - start:.2f}"
    found = [{m.row for m in finder.search(query[None], 10, per="image")[0]} for query in queries]
    one = iter(np.tile(queries, (2, 1)))
    figures["one query, 10 images, ms"] = _median(lambda: finder.search(next(one)[None], 10, per="image"), 20)
    figures["one query, 10 individuals, ms"] = _median(lambda: finder.search(queries[:1], 10), 10)
    figures["one query with a filter, ms"] = _median(lambda: finder.search(queries[:1], 10, where=_FILTER), 5)
    figures["all rows filtered by camera and time, ms"] = _median(lambda: store.where(_FILTER), 5)
    return figures | {"memory, GB": _memory()}, found


def _flat(folder: pathlib.Path, file: pathlib.Path, count: int) -> dict[str, str]:
    import faiss

    embeddings, queries = Store(folder).embeddings, _rows(np.load(file), 2**32 - 1, count)
    flat: Any = faiss.IndexFlatL2(embeddings.shape[1])
    flat.add(embeddings)
    turns = iter(queries)
    return {"one query, 10 images, ms": _median(lambda: flat.search(next(turns)[None], 10), min(count, 10))}


def _group(
    folder: pathlib.Path, file: pathlib.Path, individuals: int = 10_000, images: int = 5
) -> dict[str, str]:
    """Groups of images without labels: each individual is a row of `_rows`, each image one with half of its noise."""
    rng, centres = np.random.default_rng(0), np.load(file)
    true = np.repeat(np.arange(individuals), images)
    apart = np.median(np.linalg.norm(centres[:100, None] - centres[None, 100:200], axis=2))
    noise = rng.standard_normal((len(true), centres.shape[1]), np.float32)
    embeddings = _rows(centres, 1, individuals)[true] + np.float32(0.25 * apart / 16) * noise
    encoder: Any = types.SimpleNamespace(describe=lambda: _ENCODER, dim=centres.shape[1])
    store = Store.create(folder, encoder)
    numbers = {"id": np.arange(len(true)), "size": [1] * len(true)}
    store.tables.add_images(
        "benchmark", {**numbers, **{n: [""] * len(true) for n in columns.TEXTS}}, embeddings
    )
    store.refresh()
    start = time.perf_counter()
    groups = Finder(store, kind="exact").group(0.4)
    seconds, several = time.perf_counter() - start, [g for g in groups if len(g.rows) > 1]
    pure = np.mean([len(set(true[group.rows])) == 1 for group in several])
    return {
        "taken, s": f"{seconds:.1f}",
        "groups": f"{len(groups):,}",
        "of one individual": f"{pure:.1%}",
        "pairs within the threshold": f"{np.mean([group.sure for group in several]):.1%}",
        "memory, GB": _memory(),
    }


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="a run of configs/emoji.py")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        store, file = pathlib.Path(name) / "store", pathlib.Path(name) / "centres.npy"

        def alone(work: Callable[..., Any], *arguments: Any) -> Any:
            spawn = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
                return pool.submit(work, *arguments).result()

        def told(what: str, figures: dict[str, str]) -> None:
            for figure, value in figures.items():
                print(f"| {what}: {figure} | {value} |", flush=True)

        print(f"| {options.rows:,} rows | |\n|---|---:|", flush=True)
        alone(_centres, options.workdir, file)
        told("store", alone(_fill, store, file, options.rows))
        exact, truth = alone(_search, store, file, "exact", options.queries)
        told("exact", exact)
        approximate, found = alone(_search, store, file, "faiss", options.queries)
        recall = np.mean([len(a & b) / len(a) for a, b in zip(truth, found, strict=True)])
        told("faiss's index", {**approximate, "recall@10": f"{recall:.3f}"})
        told("faiss itself, flat", alone(_flat, store, file, options.queries))
        told("group of 50,000 images", alone(_group, pathlib.Path(name) / "group", file))


if __name__ == "__main__":
    main()
