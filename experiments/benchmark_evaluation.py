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
extra `bench` is installed. A processor that the OpenBLAS in faiss's wheel does not know slows both down several times;
OPENBLAS_CORETYPE (SkylakeX, Zen) names one that it knows.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import resource
import subprocess
import sys
from typing import Any

from bench.evaluation import BARE, CASES, times

from hap2s_jax.reporting import environment
from hap2s_jax.reporting.table import to_markdown

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


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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
        devices = ", ".join(f"{count} x {kind}" for kind, count in facts["devices"].items())
        rows = {
            row["contestant"]: {k: v for k, v in row.items() if k != "contestant"} for row in known["rows"]
        }
        text += f"## {name}\n\n`{known['command']}`\n\n{facts['cpu']}, {facts['cpus']} cores, {devices}; "
        text += f"Python {facts['python']}, {environment.versions(facts)}.\n\n{to_markdown(rows)}\n"
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
    parser.add_argument("--shrink", type=int, default=1, help="divides the sizes of all but rerank")
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
    if core := os.environ.get("OPENBLAS_CORETYPE"):
        command = f"OPENBLAS_CORETYPE={core} {command}"
    mode = options.mode + ("-memory" if options.memory else "")
    write(pathlib.Path(options.output), mode, {"command": command, "environment": facts, "rows": rows})
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
