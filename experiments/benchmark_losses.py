"""Time and memory of the losses, value and gradient, beside the bare matrix products and the best-known
peers.

    python experiments/benchmark_losses.py small          # 128 to 2,048 anchors, d = 128 and 512
    python experiments/benchmark_losses.py large          # 8,192 x 128
    python experiments/benchmark_losses.py wide           # 8,192 x 512
    python experiments/benchmark_losses.py huge           # 65,536 x 128, times, without the peers
    python experiments/benchmark_losses.py huge-memory    # the same, memory
    python experiments/benchmark_losses.py later          # 2,048 x 128, times of the losses of 2018 to 2023
    python experiments/benchmark_losses.py later-memory   # the same at 8,192 x 128, memory
    python experiments/benchmark_losses.py tiny           # seconds: only shows that it runs

A mode takes less than five minutes of an idle machine; each adds its rows to
``experiments/results/benchmark_losses.json`` and writes the tables of all modes beside it. The peers need the bench
extra; ``--peers=`` leaves them out.

What is compared, in one process, in turn, so that a noisy machine disturbs all alike; ratios are medians over
rounds of the ratio within a round:

    matmul    the three float32 products of a plain exact method, X X^T and twice the matrix times X, at the
              same precision, in blocks of anchors above 8,192
    hap2s     hap2s_loss with its defaults
    pml_bh    pytorch-metric-learning's TripletMarginLoss with BatchHardMiner
    pml_ms    its MultiSimilarityLoss
    pml_nt    its NTXentLoss
    torch     HAP2S as it is written by hand in torch
    logits@k  the product of the embeddings with k points of each class, and its gradient by both
    proxies   the same with the points in rows, as proxies lie

or any loss by its name; smooth_ap@16 has 16 images a class in place of 4.

Peak memory is that of a process of its own for each, above what its imports and a tiny call need, and in all.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.losses import IMAGES_PER_CLASS, PEERS, logits_of, method
from bench.timing import timed

CLASSES = (
    "arcface,cosface,subcenter_arcface,soft_triple,proxy_nca,proxy_anchor,proxies,logits@1,logits@3,logits@10"
)
PAIRS = (
    "smooth_ap,smooth_ap@8,smooth_ap@16,recall_at_k_surrogate,recall_at_k_surrogate@16,adasp,centroid_triplet"
)
LATER = f"{PAIRS},weighted_regularised_triplet,{CLASSES}"
MODES: dict[str, dict[str, Any]] = {
    "small": {"sizes": "128,512,2048", "dims": "128,512", "seconds": 15.0},
    "large": {"sizes": "8192", "dims": "128", "seconds": 150.0},
    "wide": {"sizes": "8192", "dims": "512", "seconds": 150.0},
    "huge": {"sizes": "65536", "dims": "128", "seconds": 120.0, "peers": "", "memory": False},
    "huge-memory": {"sizes": "65536", "dims": "128", "peers": "", "rounds": 0},
    "later": {"sizes": "2048", "dims": "128", "seconds": 80.0, "peers": LATER, "memory": False},
    "later-memory": {"sizes": "8192", "dims": "128", "peers": LATER, "rounds": 0},
    "tiny": {"sizes": "16", "dims": "8", "peers": "", "rounds": 1, "memory": False},
}


def arguments() -> argparse.Namespace:
    """The command line; a mode sets the other options' defaults."""
    parser = argparse.ArgumentParser(description="Time and memory of metric losses.")
    parser.add_argument("mode", nargs="?", choices=MODES, default="small", help="comes first")
    parser.add_argument("--sizes", help="anchors, comma-separated")
    parser.add_argument("--dims", help="widths of the embeddings")
    parser.add_argument("--peers", default="pml_bh,pml_ms", help="what else to time; '' for nothing")
    parser.add_argument("--rounds", type=int, default=15, help="most rounds of timing; 0 for none")
    parser.add_argument("--seconds", type=float, default=60.0, help="no new round after these, per size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    parser.add_argument("--output", default="experiments/results/benchmark_losses.json")
    parser.add_argument("--measure-memory", nargs=3, metavar=("METHOD", "N", "D"), help=argparse.SUPPRESS)
    parser.set_defaults(**MODES.get("".join(sys.argv[1:2]), MODES["small"]))
    return parser.parse_args()


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count the parent's size, which a child has for a moment before it becomes itself.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(name: str, n: int, d: int, threads: int) -> None:
    """Prints this process's memory after the imports and its peak, in bytes."""
    call = method(name, IMAGES_PER_CLASS * 4, 8, threads)
    call()
    base = peak_memory()
    method(name, n, d, threads)()
    peak = peak_memory()
    print(json.dumps({"base": base, "peak": peak}))


def memory_of(name: str, n: int, d: int, threads: int) -> tuple[float, float]:
    """Peak above the imports and peak in all, in GB, of a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads), "--measure-memory", name, str(n), str(d)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    sizes = json.loads(run.stdout.splitlines()[-1])
    return (sizes["peak"] - sizes["base"]) / 1e9, sizes["peak"] / 1e9


def compare(n: int, d: int, names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Times all methods in turn, after one call each to compile, and measures their memory."""
    rows = {name: {"n": n, "d": d, "method": name} for name in names}
    if options.rounds:
        calls = {name: method(name, n, d, options.threads) for name in names}
        for call in calls.values():
            call()
        times = timed(calls, options.rounds, options.seconds)
        for name, row in rows.items():
            row |= {"ms": 1e3 * statistics.median(times[name]), "rounds": len(times[name])}
            for other in ("matmul", "hap2s", logits_of(name)):
                if other in times:
                    row[f"over_{other.partition('@')[0]}"] = statistics.median(
                        a / b for a, b in zip(times[name], times[other], strict=True)
                    )
    if options.memory:
        for name, row in rows.items():
            row["gb_above_imports"], row["gb_in_all"] = memory_of(name, n, d, options.threads)
    return list(rows.values())


def environment(peers: bool) -> dict[str, Any]:
    """Hardware and versions, the peers' included."""
    import importlib.metadata

    from hap2s_jax.reporting.environment import describe

    facts = describe()
    names = ("torch", "pytorch-metric-learning") if peers else ()
    facts["packages"] |= {name: importlib.metadata.version(name) for name in names}
    return facts


def write(path: Path, mode: str, record: dict[str, Any]) -> None:
    """Adds a mode's rows to the file of results, and writes the tables of all modes beside it."""
    from hap2s_jax.reporting.environment import versions
    from hap2s_jax.reporting.table import to_markdown

    modes = json.loads(path.read_text()) if path.is_file() else {}
    modes[mode] = record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(modes, indent=1) + "\n")
    text = ""
    # Modes may have run on different machines: each stands under its own.
    for name in (name for name in MODES if name in modes):
        known = modes[name]
        facts = known["environment"]
        devices = ", ".join(f"{count} x {kind}" for kind, count in facts["devices"].items())
        rows = {
            f"{row['n']:,} x {row['d']}, {row['method']}": {
                key: value for key, value in row.items() if key not in ("n", "d", "method")
            }
            for row in known["rows"]
        }
        text += (
            f"## {name}\n\n`{known['command']}`\n\n{facts['cpu']}, {known['threads']} threads, {devices}; "
        )
        text += f"Python {facts['python']}, {versions(facts)}.\n\n{to_markdown(rows)}\n"
    path.with_suffix(".md").write_text(text.rstrip() + "\n")


def main() -> None:
    """Runs one mode."""
    options = arguments()
    # Before anything imports jax: the same number of threads for both libraries.
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    if options.measure_memory:
        name, n, d = options.measure_memory
        return measure_memory(name, int(n), int(d), options.threads)
    peers = [name for name in options.peers.split(",") if name]
    rows: list[dict[str, Any]] = []
    for n in map(int, options.sizes.split(",")):
        for d in map(int, options.dims.split(",")):
            for row in compare(n, d, ["matmul", "hap2s", *peers], options):
                rows.append(row)
                print(
                    "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
                )
    record = {
        "command": "python experiments/benchmark_losses.py " + " ".join(sys.argv[1:]),
        "environment": environment(any(name.startswith(PEERS) for name in peers)),
        "threads": options.threads,
        "rows": rows,
    }
    write(Path(options.output), options.mode, record)
    print(f"written to {options.output}")
    return None


if __name__ == "__main__":
    main()
