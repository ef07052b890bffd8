"""Evidence from an accelerator in ten minutes: is it right there, how fast, does it learn?

    python experiments/accelerator.py --toy                        # every part at toy size on this CPU, under a minute
    python experiments/accelerator.py --minutes=9.5                # as many parts as fit, in order of value
    python experiments/accelerator.py --only=job,study --minutes=9.5
    python experiments/accelerator.py --report                     # the tables again, from the rows that are there

Neither network nor TensorFlow is needed. Every part is a process of its own and appends a line to --output after each
measurement, so that an interruption loses the running one at most:

    right       losses, metrics, ties, precision, shards and resuming on the device
    loss        value and gradient beside the bare products, plain torch and pytorch-metric-learning
    step        training steps beside torch's
    evaluation  retrieval at the sizes of the benchmarks, beside the bare product and torch's topk
    job         configs/emoji.py:gpu to its end, seed by seed
    study       cells of the studies at GPU size

A part gets the minutes beside it in PARTS, or what is left. The last lines compare figures with their goals.

The machine needs Python 3.11 or later with JAX for its card, flax, optax, orbax-checkpoint, OpenCV (headless),
matplotlib, scikit-learn, safetensors, rich, pytest, pytest-xdist and hypothesis; to compare, torch and transformers.
Bring pure-Python packages that it lacks as wheels, 0.2 MB, for its version of Python:

    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d runs/wheels \\
      ml-collections==1.1.0 pytorch-metric-learning==2.9.0
    python -m pip install -q --no-index --no-deps --target /tmp/site runs/wheels/*.whl       # on the machine
    export PYTHONPATH=/tmp/site

Run there with --output=OUT/accelerator.jsonl, a file that comes back, and --commit=`git rev-parse HEAD` of here. Then:

    cat OUT/*.jsonl >> experiments/results/accelerator.jsonl
    tar -C experiments/results -xf OUT/accelerator_cells.tar      # the study's cells, where it ran
    python experiments/accelerator.py --report                    # writes results/accelerator.md

Commit all lines, those that failed or missed a goal too. Then update README.md ("What has not been run"),
docs/measurements.md, and the tolerances in tests/device_tolerances.py for what the suite found.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Scripts find each other, the package and the configs, installed or not.
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

from accelerator_parts.record import OutOfTime, Record, environment, report

# Part: minutes that it may take of a call.
PARTS = {"right": 3.0, "loss": 2.5, "step": 2.5, "evaluation": 1.5, "job": 9.0, "study": 9.0}
RESULTS = ROOT / "experiments" / "results" / "accelerator.jsonl"
TOY_RESULTS = ROOT / "runs" / "accelerator_toy.jsonl"
# Memory is taken as it is needed, since torch wants its share; a run can be repeated bit for bit in the first part.
SETTINGS = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_GRACE = 10.0  # seconds between a part's own end and its being killed


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, comma-separated")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument("--output", help=f"lines of JSON are appended here; by default {RESULTS.name}")
    parser.add_argument("--toy", action="store_true", help="seconds a part: only shows that it runs")
    parser.add_argument("--seeds", default="0,1,2", help="of the main job and of the study")
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--report", action="store_true", help="run nothing, write the tables again")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output = Path(options.output or (TOY_RESULTS if options.toy else RESULTS)).absolute()
    unknown = [name for name in options.only.split(",") if name not in PARTS]
    if unknown:
        raise SystemExit(f"error: --only {unknown[0]!r} is no part; the parts are {', '.join(PARTS)}")
    return options


def run_part(options: argparse.Namespace) -> None:
    """A part, in this process, until it is done or its time is over."""
    # As on a machine without it: its import costs seconds, and the batches are the same.
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    record = Record(options.output, options.run, options.part, options.deadline, options.toy)
    command = "python experiments/accelerator.py " + " ".join(options.command)
    record.row("start", command=command, environment=environment(options.commit))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    part = importlib.import_module(f"accelerator_parts.{options.part}")
    began = time.monotonic()
    try:
        part.run(record, seeds)
        status = "finished"
    except OutOfTime as left_out:
        status = f"out of time before {left_out}"
    record.row("end", status=status, seconds=round(time.monotonic() - began, 1))


def start_part(name: str, options: argparse.Namespace, run: str, seconds: float) -> None:
    """A part in a process of its own, killed where it does not end in time; what it starts ends before."""
    own = [f"--part={name}", f"--run={run}", f"--deadline={time.time() + seconds - _GRACE}"]
    command = [sys.executable, __file__, *options.command, *own]
    settings = {
        **os.environ,
        **SETTINGS,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    if options.toy:
        settings["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling is most of what a toy costs
    if name == "right":
        settings["XLA_FLAGS"] = f"{settings.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    process = subprocess.Popen(command, cwd=ROOT, env=settings)
    try:
        code = process.wait(timeout=seconds)
        status = f"ended with {code}" if code else None
    except subprocess.TimeoutExpired:
        status = f"killed after {seconds:.0f} s"
    finally:
        process.kill()
        process.wait()
    if status:
        Record(options.output, run, name, 0, options.toy).row("end", status=status)


def main() -> None:
    """The command."""
    options = arguments()
    options.command = sys.argv[1:]
    if options.part:
        options.command = [word for word in options.command if word.split("=")[0] not in _OWN]
        return run_part(options)
    # Whoever stops this stops the running part too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    deadline = time.monotonic() + 60 * options.minutes
    for name in [] if options.report else options.only.split(","):
        left = deadline - time.monotonic()
        if left > 2 * _GRACE:
            start_part(name, options, run, left if options.toy else min(left, 60 * PARTS[name]))
    print(report(options.output, None if options.report else run))
    return None


_OWN = ("--part", "--run", "--deadline")

if __name__ == "__main__":
    main()
