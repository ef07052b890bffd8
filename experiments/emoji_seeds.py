"""The main job on the embedded data over several seeds: accuracy, wall-clock time and memory.

    python experiments/emoji_seeds.py --seeds=0,1,2
    python experiments/emoji_seeds.py --seeds=0 --config=configs/emoji.py:tiny --output=/tmp/tiny.json

Each seed is the README's own command in a process of its own, timed from its start to its end, so that
importing, compiling, evaluating and drawing count. Cells that are finished are not run again.
"""

from __future__ import annotations

import json
import pathlib
import re
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import app, flags

from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.reporting.table import print_metrics, to_markdown

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds to run.")
_CONFIG = flags.DEFINE_string("config", "configs/emoji.py", "The config, its argument included.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/emoji_seeds", "Folder of the runs.")
_OUTPUT = flags.DEFINE_string("output", "experiments/results/emoji_seeds.json", "Where the figures go.")

COLUMNS = ("mAP", "rank-1", "recall@1", "map@r", "nmi")


def run_seed(config: str, seed: int, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs one seed, unless it is finished, and returns its results with ``seconds`` of wall-clock time.

    The time is that of all calls that the run has taken, those that were interrupted too.
    """
    clock = workdir / "seconds.json"
    spent = json.loads(clock.read_text()) if clock.is_file() else {"seconds": 0.0, "finished": False}
    if not spent["finished"]:
        began = time.perf_counter()
        command = [sys.executable, "-m", "hap2s_jax.main", f"--config={config}", f"--config.seed={seed}"]
        try:
            subprocess.run([*command, f"--workdir={workdir}"], check=True)
            spent["finished"] = True
        except subprocess.CalledProcessError as e:
            raise SystemExit(e.returncode) from None  # what was wrong it has said itself
        finally:
            spent["seconds"] += time.perf_counter() - began
            with replacing(clock) as temporary:
                temporary.write_text(json.dumps(spent))
    results = json.loads((workdir / "results.json").read_text())
    return {**results, "seed": seed, "seconds": spent["seconds"]}


def main(argv: list[str]) -> None:
    """Runs all seeds and writes the table."""
    del argv
    # A folder for each config and argument: a tiny run is never taken for the whole one.
    root = pathlib.Path(_WORKDIR.value) / re.sub(r"[^\w=.-]+", "-", _CONFIG.value.removesuffix(".py"))
    runs = [run_seed(_CONFIG.value, int(seed), root / f"seed{seed}") for seed in _SEEDS.value]
    first = runs[0]
    rows = dict(first["baselines"])
    rows |= {f"untrained, seed {r['seed']}": r["untrained"] for r in runs}
    rows |= {f"trained, seed {r['seed']}": r["test"] for r in runs}
    rows["trained, worst"] = {c: min(r["test"][c] for r in runs) for c in COLUMNS}
    rows["trained, mean"] = {c: statistics.fmean(r["test"][c] for r in runs) for c in COLUMNS}
    print_metrics(rows, columns=COLUMNS, title="Test classes")
    summary = {
        "command": "python experiments/emoji_seeds.py " + " ".join(sys.argv[1:]),
        "config": first["config"],
        "environment": first["environment"],
        "rows": {name: {c: values[c] for c in COLUMNS if c in values} for name, values in rows.items()},
        "seconds": {r["seed"]: round(r["seconds"], 1) for r in runs},
        "host_gib": {r["seed"]: round(r["peak_memory"]["host_gib"], 2) for r in runs},
    }
    output = pathlib.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(summary, indent=2, default=list) + "\n")
    output.with_suffix(".md").write_text(to_markdown(rows, columns=COLUMNS))
    print(f"seconds a run: {summary['seconds']}; peak GiB: {summary['host_gib']}; written to {output}")


if __name__ == "__main__":
    app.run(main)
