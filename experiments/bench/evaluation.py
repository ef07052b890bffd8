"""Contestants of the evaluation by case, and their times; see `benchmark_evaluation.py`."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hap2s_jax.evaluation.protocols import class_values, means, query_gallery_values
from hap2s_jax.evaluation.reranking import KReciprocal
from hap2s_jax.evaluation.retrieval import rank_matches

Contestant = Callable[[], Any]
BARE = "bare jitted matmul"


def embeddings(labels: np.ndarray, dim: int) -> np.ndarray:
    """Class centres and noise, so that classes overlap about as a trained encoder's do."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((labels.max() + 1, dim), dtype=np.float32)
    x = random.standard_normal((len(labels), dim), dtype=np.float32)
    for begin in range(0, len(x), 4096):
        x[begin : begin + 4096] += 3 / np.sqrt(dim) * 2 * centres[labels[begin : begin + 4096]]
    return x


def bare(queries: np.ndarray, keys: np.ndarray, block: int) -> Contestant:
    """The distances' matmul and nothing else, in blocks of queries where the whole does not fit."""
    product = jax.jit(lambda a, b: jnp.matmul(a, b.T, precision="highest"))

    def run() -> None:
        for begin in range(0, len(queries), block):
            product(queries[begin : begin + block], keys).block_until_ready()

    return run


def torch_nearest(queries: np.ndarray, keys: np.ndarray, k: int, block: int) -> dict[str, Contestant]:
    """torch's distances and topk, in blocks of queries, on the GPU where there is one; empty without torch."""
    if not importlib.util.find_spec("torch"):
        return {}

    def run() -> Any:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        rows, stored = torch.from_numpy(queries).to(device), torch.from_numpy(keys).to(device)
        squares, found = (stored * stored).sum(1), []
        for begin in range(0, len(rows), block):
            scores = squares - 2 * rows[begin : begin + block] @ stored.T
            found.append(scores.topk(min(k, len(stored)), largest=False).indices.cpu())
        return torch.cat(found).numpy()

    return {f"torch, the {k} nearest": run}


def market(options: argparse.Namespace) -> dict[str, Contestant]:
    """CMC, mAP and mINP with the camera rule at Market-1501's size."""
    random = np.random.default_rng(1)
    queries, people = 3368 // options.shrink, 750 // options.shrink
    shown, distractors = 13115 // options.shrink, (19732 - 13115) // options.shrink
    query_labels = np.arange(queries) % people + 1
    gallery_labels = np.concatenate([random.integers(1, people + 1, shown), np.zeros(distractors, int)])
    labels = np.concatenate([query_labels, gallery_labels])
    cameras = random.integers(0, 6, len(labels))
    x = embeddings(labels, options.dim)
    query, gallery = np.arange(queries), np.arange(queries, len(labels))

    def ours() -> dict[str, float]:
        results = rank_matches(x, labels, cameras=cameras, query=query, gallery=gallery)
        return means(query_gallery_values(results))

    def theirs(evaluate: Callable[..., Any]) -> Any:
        import torch

        a, b = torch.from_numpy(x[query]), torch.from_numpy(x[gallery])
        distances = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        arguments = (labels[query], labels[gallery], cameras[query], cameras[gallery])
        return evaluate(distances.numpy(), *arguments, 50)

    found: dict[str, Contestant] = {BARE: bare(x[query], x[gallery], queries), "hap2s_jax, all figures": ours}
    found |= torch_nearest(x[query], x[gallery], 50, 2048)
    for name, folder, module in (
        ("torchreid", "deep-person-reid", "torchreid.metrics.rank"),
        ("fastreid", "fast-reid", "fastreid.evaluation.rank"),
    ):
        python, compiled = _reference(folder, module)
        if python is not None:
            found[f"{name}, Python"] = functools.partial(theirs, functools.partial(python, use_cython=False))
        if compiled is not None:
            found[f"{name}, Cython"] = functools.partial(theirs, functools.partial(compiled, False))
    return found


def sop(options: argparse.Namespace) -> dict[str, Contestant]:
    """Recall@1, 2, 4, 8 of 60,502 images in 11,316 classes."""
    labels = np.sort(np.arange(60502 // options.shrink) % (11316 // options.shrink))
    x = embeddings(labels, options.dim)

    def ours(first_only: bool) -> Any:
        results = rank_matches(x, labels, first_only=first_only)
        return [results.hit(k).mean() for k in (1, 2, 4, 8)] if first_only else means(class_values(results))

    def faiss_flat() -> list[float]:
        import faiss

        index: Any = faiss.IndexFlatL2(x.shape[1])
        index.add(x)
        near = index.search(x, 9)[1][:, 1:]
        hit = labels[near] == labels[:, None]
        return [hit[:, :k].any(axis=1).mean() for k in (1, 2, 4, 8)]

    def metric_learning() -> Any:
        import torch
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        measures = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
        calculator = AccuracyCalculator(include=measures, k="max_bin_count")
        return calculator.get_accuracy(torch.from_numpy(x), torch.from_numpy(labels))

    found: dict[str, Contestant] = {
        BARE: bare(x, x, 400),
        "hap2s_jax, Recall@K": functools.partial(ours, True),
        "hap2s_jax, all figures": functools.partial(ours, False),
        **torch_nearest(x, x, 9, 2048),
    }
    if importlib.util.find_spec("faiss"):
        found["faiss exact search, Recall@K"] = faiss_flat
        if importlib.util.find_spec("pytorch_metric_learning"):
            found["pytorch-metric-learning, P@1, R-Precision, MAP@R"] = metric_learning
    return found


def million(options: argparse.Namespace) -> dict[str, Contestant]:
    """All figures of 1,000 queries against 1,000,000 images."""
    labels = np.concatenate([np.arange(1000), np.arange(1_000_000 // options.shrink) % 50_000])
    x = embeddings(labels, options.dim)
    query, gallery = np.arange(1000), np.arange(1000, len(labels))

    def ours() -> dict[str, float]:
        return means(query_gallery_values(rank_matches(x, labels, query=query, gallery=gallery)))

    found = {BARE: bare(x[query], x[gallery], 32), "hap2s_jax, all figures": ours}
    return found | torch_nearest(x[query], x[gallery], 10, 256)


def rerank(options: argparse.Namespace) -> dict[str, Contestant]:
    """k-reciprocal re-ranking and the figures after it."""
    count, queries = options.images, options.queries
    labels = np.arange(count) % (count // 15)
    cameras = np.random.default_rng(1).integers(0, 6, count)
    x = embeddings(labels, options.dim)
    rows: dict[str, Any] = {"query": np.arange(queries), "gallery": np.arange(queries, count)}

    def ours() -> dict[str, float]:
        distance = KReciprocal(x, **rows)
        return means(
            query_gallery_values(rank_matches(x, labels, cameras=cameras, distance=distance, **rows))
        )

    return {BARE: bare(x, x, max(1, 2**25 // count)), "hap2s_jax, re-ranked": ours}


CASES = {"market": market, "sop": sop, "million": million, "rerank": rerank}


def _reference(folder: str, module: str) -> tuple[Any, Any]:
    """The rank function of a checkout, and its compiled one where it has been built."""
    root = pathlib.Path(os.environ.get("HAP2S_REFERENCE_CODE", "")) / folder
    path = root / (module.replace(".", "/") + ".py")
    if not path.is_file():
        return None, None
    spec = importlib.util.spec_from_file_location(f"{folder}_rank", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(loaded)
    compiled = None
    for built in path.parent.glob("rank_cylib/rank_cy*.so"):
        extension = importlib.util.spec_from_file_location("rank_cy", built)
        if extension is not None and extension.loader is not None:
            library = importlib.util.module_from_spec(extension)
            extension.loader.exec_module(library)
            compiled = functools.partial(_swap, library.evaluate_cy)
    return loaded.evaluate_rank, compiled


def _swap(evaluate: Callable[..., Any], *arguments: Any) -> Any:
    flag, *rest = arguments
    return evaluate(*rest, flag)


def times(contestants: dict[str, Contestant], rounds: int, budget: float) -> list[dict[str, Any]]:
    """A row for each contestant: median seconds by clock and CPU, their ratios to the bare matmul, the first run."""
    runs: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            if sum(clock for clock, _ in runs[name].values()) > budget:
                continue
            begin = time.perf_counter(), time.process_time()
            run()
            runs[name][number] = (time.perf_counter() - begin[0], time.process_time() - begin[1])
    warm = {name: {n: r for n, r in of.items() if n or len(of) == 1} for name, of in runs.items()}
    rows = []
    for name, of in warm.items():
        row: dict[str, Any] = {"contestant": name}
        for place, clock in enumerate(("seconds", "CPU seconds")):
            row[clock] = statistics.median(run[place] for run in of.values())
            usual = statistics.median(run[place] for run in warm[BARE].values())
            ratios = [run[place] / warm[BARE].get(n, (usual, usual))[place] for n, run in of.items()]
            row["x bare" if place == 0 else "x bare, CPU"] = statistics.median(ratios)
        rows.append({**row, "first": runs[name][0][0], "runs": len(of)})
    return rows
