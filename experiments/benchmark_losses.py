"""Time and memory of the losses, value and gradient, beside the bare matrix products and the best-known
peers.

    python experiments/benchmark_losses.py                             # 128 to 8,192 anchors, two threads
    python experiments/benchmark_losses.py --sizes 65536 --dims 128    # minutes
    python experiments/benchmark_losses.py --peers ""                  # without torch

What is compared, in one process, in turn, so that a noisy machine disturbs all alike; ratios are medians over
rounds of the ratio within a round:

    matmul    the three float32 products of a plain exact method, X X^T and twice the matrix times X, at the
    same
              precision, in blocks of anchors above 8,192
    hap2s     hap2s_loss with its defaults
    pml_bh    pytorch-metric-learning's TripletMarginLoss with BatchHardMiner
    pml_ms    its MultiSimilarityLoss

Peak memory is that of a process of its own for each, above what its imports need.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGES_PER_CLASS = 4


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time and memory of metric losses.")
    parser.add_argument("--sizes", default="128,512,2048,8192", help="anchors, comma-separated")
    parser.add_argument("--dims", default="128,512", help="widths of the embeddings")
    parser.add_argument("--peers", default="pml_bh,pml_ms", help="peers to time; '' for none")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true", help="leave the processes for peak memory out")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--measure-memory", nargs=3, metavar=("METHOD", "N", "D"), help=argparse.SUPPRESS)
    return parser.parse_args()


def batch(n: int, d: int) -> tuple[Any, Any]:
    """Embeddings `[n, d]` of about unit length in shuffled classes of four."""
    import numpy as np

    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(n) // IMAGES_PER_CLASS).astype(np.int32)
    centres = random.normal(size=(labels.max() + 1, d))
    x = (centres[labels] + random.normal(size=(n, d))) / (2 * d) ** 0.5
    return x.astype(np.float32), labels


def jax_method(name: str, n: int, d: int) -> Callable[[], Any]:
    """A call that runs `name` to its end."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from hap2s_jax import hap2s_loss

    x, labels = (jnp.asarray(part) for part in batch(n, d))

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision="highest")

    def matmul(x: jax.Array, labels: jax.Array) -> jax.Array:
        del labels
        if n <= 8192:
            gram = product(x, x.T)
            return product(gram, x) + product(gram.T, x)

        def step(total: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            gram = product(rows, x.T)
            return total + product(gram.T, rows), product(gram, x)

        total, parts = lax.scan(step, jnp.zeros_like(x), x.reshape(-1, 512, d))
        return total + parts.reshape(n, d)

    call = jax.jit(matmul if name == "matmul" else jax.value_and_grad(hap2s_loss))
    return lambda: jax.block_until_ready(call(x, labels))


def torch_method(name: str, n: int, d: int, threads: int) -> Callable[[], Any]:
    """A call that runs a peer's value and gradient."""
    import torch
    from pytorch_metric_learning import distances, losses, miners

    torch.set_num_threads(threads)
    x, labels = batch(n, d)
    target = torch.from_numpy(labels).long()
    euclidean = distances.LpDistance(normalize_embeddings=False)
    if name == "pml_bh":
        loss, miner = (
            losses.TripletMarginLoss(0.3, distance=euclidean),
            miners.BatchHardMiner(distance=euclidean),
        )
    else:
        loss, miner = losses.MultiSimilarityLoss(), None

    def call() -> Any:
        embeddings = torch.from_numpy(x).requires_grad_()
        value = loss(embeddings, target, miner(embeddings, target) if miner else None)
        value.backward()
        return embeddings.grad

    return call


def method(name: str, n: int, d: int, threads: int) -> Callable[[], Any]:
    """A call of any method."""
    return torch_method(name, n, d, threads) if name.startswith("pml") else jax_method(name, n, d)


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
    """Times all methods in turn, `rounds` times, after one call each to compile."""
    calls = {name: method(name, n, d, options.threads) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for call in calls.values():
        call()
    for _ in range(options.rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    rows = []
    for name in names:
        against = {
            other: statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))
            for other in ("matmul", "hap2s")
        }
        row = {"n": n, "d": d, "method": name, "ms": 1e3 * statistics.median(times[name]), **against}
        if not options.no_memory:
            row["gb_above_imports"], row["gb_in_all"] = memory_of(name, n, d, options.threads)
        rows.append(row)
    return rows


def main() -> None:
    """Runs the table."""
    options = arguments()
    # Before anything imports jax: the same number of threads for both libraries.
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    if options.measure_memory:
        name, n, d = options.measure_memory
        return measure_memory(name, int(n), int(d), options.threads)
    names = ["matmul", "hap2s", *(p for p in options.peers.split(",") if p)]
    rows: list[dict[str, Any]] = []
    print(
        f"{'n':>6} {'d':>4} {'method':>7} {'ms':>10} {'x matmul':>9} {'x hap2s':>8} {'GB above':>9} {'GB all':>7}"
    )
    for n in map(int, options.sizes.split(",")):
        for d in map(int, options.dims.split(",")):
            for row in compare(n, d, names, options):
                rows.append(row)
                memory = f"{row.get('gb_above_imports', 0):9.3f} {row.get('gb_in_all', 0):7.3f}"
                ratios = f"{row['matmul']:9.2f} {row['hap2s']:8.2f}"
                print(f"{n:6d} {d:4d} {row['method']:>7} {row['ms']:10.2f} {ratios} {memory}", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    return None


if __name__ == "__main__":
    main()
