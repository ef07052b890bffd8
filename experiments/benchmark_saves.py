"""What do digests cost a save?

    python experiments/benchmark_saves.py                            # 100 MB, half a minute
    python experiments/benchmark_saves.py --megabytes=1000 --folder=/mnt/disk --seconds=60

Saves with digests and without take turns, after the disk has been told to write what it holds. The table has how long
training waits, how long it takes until the checkpoint has its name, and the digests' own share of that: what is left to
do once all files are written. Ratios are medians over turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hap2s_jax.reporting.table import to_markdown
from hap2s_jax.training import checkpoint, digests

# Relative sizes of a ResNet-50's arrays, about; with Adam's moments there are three of each.
SIZES = np.array([9408.0, *[64.0] * 40, *[2359296.0] * 6, *[262144.0] * 20, *[1048576.0] * 6, 4194304.0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """What a checkpoint holds."""

    step: Any
    arrays: Any


def measure(megabytes: int, folder: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Rows of the table: medians of the turns with digests, those without, and their ratios."""
    random, counts = np.random.default_rng(0), SIZES * (megabytes * 2**20 / 4 / 3 / SIZES.sum())
    arrays = [random.standard_normal(max(int(count), 1), np.float32) for count in np.tile(counts, 3)]
    write, own = digests.write, [0.0]

    def timed(*arguments: Any) -> None:
        began = time.perf_counter()
        write(*arguments)
        own[0] = time.perf_counter() - began

    savers = {name: checkpoint.Checkpointer(folder / name, keep_last=1) for name in ("with", "without")}
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in savers}
    until, turn = time.monotonic() + seconds, 0
    while turn < 3 or time.monotonic() < until:
        turn += 1
        for name in sorted(savers, reverse=bool(turn % 2)):
            digests.write, own[0] = (timed if name == "with" else lambda *_: None), 0.0
            os.sync()
            began = time.perf_counter()
            savers[name].save(State(np.int32(turn), arrays))
            blocked = time.perf_counter() - began
            savers[name]._wait()
            whole = time.perf_counter() - began
            taken[name].append((blocked, whole, own[0] / whole))
    digests.write = write
    for saver in savers.values():
        saver.close()
    rows = {}
    for place, what in enumerate(("training waits, s", "until it has its name, s")):
        ours, bare = ([turn[place] for turn in taken[name][1:]] for name in savers)
        ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
        rows[what] = {"with": statistics.median(ours), "without": statistics.median(bare), "ratio": ratio}
    share = statistics.median(turn[2] for turn in taken["with"][1:])
    return {**rows, f"digests' own share ({turn - 1} turns)": {"ratio": share}}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where to save; a temporary folder by default")
    parser.add_argument("--seconds", type=float, default=25.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(options.megabytes, Path(folder), options.seconds)
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
