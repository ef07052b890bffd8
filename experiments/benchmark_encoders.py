"""Images per second of our encoders beside torch's, forward and train step, same threads and shapes.

    python experiments/benchmark_encoders.py --names=resnet18,resnet50 --batch=16 --size=224 --threads=2

Both sides take turns, round by round, so that a busy machine slows both; the ratio is the median over rounds. torch
runs transformers' ResNet (needs the bench extra; without it only our side is timed), on the GPU where both have one.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics

from bench.encoders import Ours, Run, theirs
from bench.timing import timed


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", default="resnet18,resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", help="of our computation and, by autocast, of torch's")
    options = parser.parse_args()
    # XLA's CPU client sizes its pool by the CPUs the process may use, which is what torch is given too.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    print("| encoder | what | ours, img/s | torch, img/s | ratio |\n|---|---|---|---|---|")
    for name in options.names.split(","):
        given = (name, options.batch, (options.size, options.size), options.dtype)
        ours, torch = Ours(*given), theirs(*given, threads=options.threads)
        for what in ("forward", "train step"):
            print(f"| {name} | {what} | {_compare(ours.call(what), torch.get(what), options)} |", flush=True)


def _compare(ours: Run, torch: Run | None, options: argparse.Namespace) -> str:
    sides = {"ours": ours} | ({} if torch is None else {"torch": torch})
    for side in sides.values():
        side()
    times = timed(sides, options.rounds, math.inf)
    medians = {side: f"{options.batch / statistics.median(taken):.1f}" for side, taken in times.items()}
    if torch is None:
        return f"{medians['ours']} | - | -"
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["torch"], strict=True))
    return f"{medians['ours']} | {medians['torch']} | {ratio:.2f}"


if __name__ == "__main__":
    main()
