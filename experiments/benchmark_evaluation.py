"""Speed and memory of the evaluation against the bare distance matmul and against other people's evaluators.

    python experiments/benchmark_evaluation.py market           # 3,368 x 19,732, 2048-d: CMC, mAP, mINP
    python experiments/benchmark_evaluation.py sop-128          # 60,502 images, 128-d: Recall@1 to 8
    python experiments/benchmark_evaluation.py sop-512
    python experiments/benchmark_evaluation.py million          # 1,000 queries, a gallery of 1,000,000
    python experiments/benchmark_evaluation.py rerank           # Market-1501's size, k-reciprocal
    python experiments/benchmark_evaluation.py rerank-msmt17    # 93,820 images; a quarter of an hour
    python experiments/benchmark_evaluation.py tiny             # seconds: only shows that it runs
    python experiments/benchmark_evaluation.py market --memory  # peak memory instead of time, in any mode

A mode takes less than four minutes of two idle cores where not said otherwise; each adds its rows to
``experiments/results/benchmark_evaluation.json`` and writes the table of all modes beside it.

Random embeddings around random class centres, the same for all. Every round runs every contestant once, in turn,
so that a busy machine slows all alike; the table shows medians, and ratios to the bare jitted matmul of the same
round, by the clock and by CPU time (which a busy machine distorts less). "first" includes compilation; whoever has
used up --budget seconds is not run again, and with a single run that one counts. Distances are included everywhere.
Peak memory is a process of its own per contestant, and includes the inputs.

torchreid and fastreid take part where HAP2S_REFERENCE_CODE names a folder with checkouts `deep-person-reid` and
`fast-reid` (their compiled rank functions too, where built there); faiss and pytorch-metric-learning where the
extra `bench` is installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hap2s_jax.evaluation.protocols import class_figures, query_gallery_figures
from hap2s_jax.evaluation.reranking import KReciprocal
from hap2s_jax.evaluation.retrieval import rank_matches
from hap2s_jax.reporting import environment
from hap2s_jax.reporting.table import to_markdown

Contestant = Callable[[], Any]
BARE = "bare jitted matmul"
PEERS = ("torch", "faiss-cpu", "pytorch-metric-learning")
_MODULE_OF = {"faiss-cpu": "faiss", "pytorch-metric-learning": "pytorch_metric_learning"}

# The case that a mode runs, and its options.
MODES: dict[str, dict[str, Any]] = {
    "market": {"case": "market", "dim": 2048},
    "sop-128": {"case": "sop", "dim": 128},
    "sop-512": {"case": "sop", "dim": 512},
    "million": {"case": "million", "dim": 128},
    "rerank": {"case": "rerank", "dim": 2048, "images": 23100, "queries": 3368},
    "rerank-msmt17": {"case": "rerank", "dim": 2048, "images": 93820, "queries": 11659},
    "tiny": {"case": "market", "dim": 16, "shrink": 50, "rounds": 1},
}


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
        return query_gallery_figures(results)

    def theirs(evaluate: Callable[..., Any]) -> Any:
        import torch

        a, b = torch.from_numpy(x[query]), torch.from_numpy(x[gallery])
        distances = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        arguments = (labels[query], labels[gallery], cameras[query], cameras[gallery])
        return evaluate(distances.numpy(), *arguments, 50)

    found: dict[str, Contestant] = {BARE: bare(x[query], x[gallery], queries), "hap2s_jax, all figures": ours}
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
    labels = np.sort(np.arange(60502) % 11316)
    x = embeddings(labels, options.dim)

    def ours(first_only: bool) -> Any:
        results = rank_matches(x, labels, first_only=first_only)
        return [results.hit(k).mean() for k in (1, 2, 4, 8)] if first_only else class_figures(results)

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
    }
    if importlib.util.find_spec("faiss"):
        found["faiss exact search, Recall@K"] = faiss_flat
        if importlib.util.find_spec("pytorch_metric_learning"):
            found["pytorch-metric-learning, P@1, R-Precision, MAP@R"] = metric_learning
    return found


def million(options: argparse.Namespace) -> dict[str, Contestant]:
    """All figures of 1,000 queries against 1,000,000 images."""
    labels = np.concatenate([np.arange(1000), np.arange(1_000_000) % 50_000])
    x = embeddings(labels, options.dim)
    query, gallery = np.arange(1000), np.arange(1000, len(labels))

    def ours() -> dict[str, float]:
        return query_gallery_figures(rank_matches(x, labels, query=query, gallery=gallery))

    return {BARE: bare(x[query], x[gallery], 32), "hap2s_jax, all figures": ours}


def rerank(options: argparse.Namespace) -> dict[str, Contestant]:
    """k-reciprocal re-ranking and the figures after it."""
    count, queries = options.images, options.queries
    labels = np.arange(count) % (count // 15)
    cameras = np.random.default_rng(1).integers(0, 6, count)
    x = embeddings(labels, options.dim)
    rows: dict[str, Any] = {"query": np.arange(queries), "gallery": np.arange(queries, count)}

    def ours() -> dict[str, float]:
        distance = KReciprocal(x, **rows)
        return query_gallery_figures(rank_matches(x, labels, cameras=cameras, distance=distance, **rows))

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


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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


def peak_memory(names: list[str]) -> list[dict[str, Any]]:
    """A row for each contestant: MiB of a process that runs it alone, in all and for the inputs."""
    rows = []
    for name in names:
        command = [sys.executable, __file__, *sys.argv[1:], f"--alone={name}"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        rows.append({"contestant": name, "peak MiB": int(output[-1]), "inputs MiB": int(output[-2])})
    return rows


def write(path: pathlib.Path, mode: str, record: dict[str, Any]) -> None:
    """Adds a mode's rows to the file of results, and writes the table of all modes beside it."""
    modes = json.loads(path.read_text()) if path.is_file() else {}
    modes[mode] = record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(modes, indent=1) + "\n")
    text = ""
    for name, known in modes.items():
        facts = known["environment"]
        versions = ", ".join(f"{package} {version}" for package, version in facts["packages"].items())
        devices = ", ".join(f"{count} x {kind}" for kind, count in facts["devices"].items())
        rows = {
            row["contestant"]: {k: v for k, v in row.items() if k != "contestant"} for row in known["rows"]
        }
        text += f"## {name}\n\n`{known['command']}`\n\n{facts['cpu']}, {facts['cpus']} cores, {devices}; "
        text += f"Python {facts['python']}, {versions}.\n\n{to_markdown(rows)}\n"
    path.with_suffix(".md").write_text(text.rstrip() + "\n")


def arguments() -> argparse.Namespace:
    """The command line; a mode sets the other options' defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=MODES, help="comes first")
    parser.add_argument("--dim", type=int, help="dimension of the embeddings")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds after which none is run again")
    parser.add_argument("--only", help="contestants whose name contains this (and the bare matmul)")
    parser.add_argument("--images", type=int, help="of rerank, queries included")
    parser.add_argument("--queries", type=int, help="of rerank")
    parser.add_argument("--shrink", type=int, default=1, help="divides the sizes of market")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument(
        "--output", default=str(pathlib.Path(__file__).parent / "results" / "benchmark_evaluation.json")
    )
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    mode = next((name for name in sys.argv[1:] if name in MODES), None)
    parser.set_defaults(**({} if mode is None else MODES[mode]))
    return parser.parse_args()


def main() -> None:
    """Runs one mode."""
    options = arguments()
    contestants = CASES[options.case](options)
    if options.alone:
        before = _peak_mib()
        contestants[options.alone]()
        print(f"{before:.0f} {_peak_mib():.0f}")
        return
    chosen = {n: f for n, f in contestants.items() if n == BARE or not options.only or options.only in n}
    rows = peak_memory(list(chosen)) if options.memory else times(chosen, options.rounds, options.budget)
    for row in rows:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    facts = environment.describe()
    facts["packages"] |= {
        name: importlib.metadata.version(name)
        for name in PEERS
        if importlib.util.find_spec(_MODULE_OF.get(name, name))
    }
    command = "python experiments/benchmark_evaluation.py " + " ".join(sys.argv[1:])
    mode = options.mode + ("-memory" if options.memory else "")
    write(pathlib.Path(options.output), mode, {"command": command, "environment": facts, "rows": rows})
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
