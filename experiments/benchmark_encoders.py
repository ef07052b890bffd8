"""Images per second of our encoders beside torch's, forward and train step, same threads and shapes.

    python experiments/benchmark_encoders.py --names=resnet18,resnet50 --batch=16 --size=224 --threads=2
    python experiments/benchmark_encoders.py --names=emoji --batch=64 --size=64 --parts
    python experiments/benchmark_encoders.py --names=resnet50 --size=160 --profile

Both sides take turns, round by round; the ratio is the median over rounds. A machine that does other work slows torch
more than us. torch runs the same network (bench/torch_encoder.py; without torch only our side is timed), on the GPU
where both have one. A name that is no architecture is a config's: `emoji` is the main job's encoder.

`--parts` times each kind of layer with its gradient instead, by the shapes that the encoder has; `--profile` lists the
HLO instructions of the train step that take the most time, with what they were compiled from. Instructions run beside
one another, so their times may add up to more than the step's.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import pathlib
import re
import statistics
import tempfile
import time

from bench.encoders import Ours, Run, theirs
from bench.layers import layers
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
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--parts", action="store_true", help="layer by layer")
    kind.add_argument("--profile", action="store_true", help="our train step by HLO instruction")
    options = parser.parse_args()
    # XLA's CPU client sizes its pool by the CPUs the process may use, which is what torch is given too.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    unit = "ms" if options.parts else "img/s"
    if not options.profile:
        print(f"| encoder | what | ours, {unit} | torch, {unit} | ratio |\n|---|---|---|---|---|")
    for name in options.names.split(","):
        sizes = (options.batch, (options.size, options.size))
        if options.profile:
            _print_profile(name, Ours(name, *sizes, options.dtype), options.rounds)
            continue
        if options.parts:
            sides = layers(name, *sizes)
        else:
            ours = Ours(name, *sizes, options.dtype)
            torch = theirs(name, *sizes, options.dtype, threads=options.threads)
            sides = {what: (ours.call(what), torch.get(what)) for what in ("forward", "train step")}
        for what, pair in sides.items():
            print(f"| {name} | {what} | {_compare(*pair, options)} |", flush=True)


def _compare(ours: Run, torch: Run | None, options: argparse.Namespace) -> str:
    sides = {"ours": ours} | ({} if torch is None else {"torch": torch})
    for side in sides.values():
        side()
    times = timed(sides, options.rounds, math.inf)
    medians = {side: statistics.median(taken) for side, taken in times.items()}
    shown = {
        side: f"{1e3 * s:.1f}" if options.parts else f"{options.batch / s:.1f}" for side, s in medians.items()
    }
    if torch is None:
        return f"{shown['ours']} | - | -"
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["torch"], strict=True))
    return f"{shown['ours']} | {shown['torch']} | {ratio:.2f}"


def _print_profile(name: str, ours: Ours, rounds: int, most: int = 30) -> None:
    """The instructions of the compiled step, by the time that they take."""
    import jax

    step = ours.call("train step")
    step()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(rounds):
                step()
        wall = (time.perf_counter() - began) / rounds
        [file] = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    spent: collections.Counter[str] = collections.Counter()
    for event in (e for plane in data.planes for line in plane.lines for e in line.events):
        if instruction := dict(event.stats).get("hlo_op"):
            spent[str(instruction)] += event.duration_ns / 1e6 / rounds
    described = dict(
        re.findall(
            r"^ *(?:ROOT )?%?([\w.-]+) = (.*)$", ours.compiled("train step").as_text() or "", re.MULTILINE
        )
    )
    print(f"{name}: {1e3 * wall:.1f} ms a step, {sum(spent.values()):.1f} ms in {len(spent)} instructions\n")
    print("| ms | instruction | shape | from |\n|---:|---|---|---|")
    for instruction, ms in spent.most_common(most):
        text = described.get(instruction, "")
        source = re.search(r'op_name="([^"]*)"', text)
        shape = re.match(r"\(?[\w\[\],]+", text)
        print(f"| {ms:.2f} | {instruction} | {shape[0] if shape else ''} | {source[1] if source else ''} |")


if __name__ == "__main__":
    main()
