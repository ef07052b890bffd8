"""What an encoder is worth on data sets that it was not trained on: one is trained on each, and on several together.

    python experiments/glyphs.py                                    # the second data set, once
    python experiments/cross_sets.py --minutes=30                   # the same command goes on
    python experiments/cross_sets.py --animals=FOLDER               # and the photographs of nyalas and lions

FOLDER holds clones of two public repositories, tvanzyl/wildlife_reidentification (the photographs) and
WildlifeDatasets/wildlife-tools (their closed split); small copies of the photographs go to data/animals. Every encoder
is tested on every set: drawings by mAP across vendors or families, animals by the share of test photographs whose
nearest training photograph shows the same animal (`closed_set_top-1`). One recipe, that of configs/emoji.py in 400
steps and without quarter turns, with the last weights; no test class or photograph is trained on.
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import ml_collections
from PIL import Image, ImageOps

from hap2s_jax.errors import UserError
from hap2s_jax.main import run
from hap2s_jax.reporting.table import to_markdown
from hap2s_jax.run import config_file

DRAWINGS, ANIMALS = ("emoji", "glyphs"), ("nyala", "lion")
# In the repository of the photographs, and in that of the splits.
METADATA = {"nyala": "NyalaData", "lion": "LionData"}
SIDE = 96  # pixels of a copy's shorter side


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing, and writes the table."""
    parser = argparse.ArgumentParser(description="Trains on each data set and on several, and tests on all.")
    parser.add_argument(
        "--data", type=pathlib.Path, default=pathlib.Path("data"), help="the data sets' folder"
    )
    parser.add_argument("--animals", type=pathlib.Path, help="where the two clones lie")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/cross_sets"))
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("experiments/results/cross_sets.json")
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=32, help="of the encoder")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no training after so many")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    if options.animals:
        copy_animals(options.animals, options.data / "animals")
    sets = places(options.data)
    found: dict[str, dict[int, Any]] = {}
    for seed in map(int, options.seeds.split(",")):
        for title, (names, batch) in variants(sets).items():
            workdir = options.workdir / re.sub(r"\W+", "-", title) / f"seed{seed}"
            finished = workdir / "results.json"
            if not finished.is_file() and time.monotonic() - began < 60 * options.minutes:
                run(config_of(sets, names, batch, options, seed), str(workdir))
            if finished.is_file():
                found.setdefault(title, {})[seed] = json.loads(finished.read_text())
    write(sets, found, options)


def places(data: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The data sets that are there, as a config names them."""
    files = {"glyphs": data / "glyphs" / "glyphs.csv", **{a: data / "animals" / f"{a}.csv" for a in ANIMALS}}
    there = {
        name: {"name": "folder", "data_dir": str(file), "options": {"test_fraction": 0.5}}
        for name, file in files.items()
        if file.is_file()
    }
    return {"emoji": {}, **there}


def variants(sets: dict[str, Any]) -> dict[str, tuple[tuple[str, ...], dict[str, str]]]:
    """What is trained: title -> the sets, and how batches mix them."""
    alone = {name: ((name,), {}) for name in sets}
    more: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}
    if "glyphs" in sets:
        more["emoji + glyphs"] = (DRAWINGS, {})
        more["emoji + glyphs, evenly"] = (DRAWINGS, {"mixing": "sets"})
        more["emoji + glyphs, evenly, a set a batch"] = (DRAWINGS, {"mixing": "sets", "sets": "one"})
    if {*ANIMALS} <= {*sets}:
        more["nyala + lion"] = (ANIMALS, {})
    if len(sets) == 4:
        more["all four, evenly, a set a batch"] = (tuple(sets), {"mixing": "sets", "sets": "one"})
    return alone | more


def config_of(
    sets: dict[str, Any],
    names: Sequence[str],
    batch: dict[str, str],
    options: argparse.Namespace,
    seed: int,
) -> ml_collections.ConfigDict:
    """The config of one training."""
    config = config_file.read(["--config=emoji"])
    config.name, config.seed, config.steps = "cross_sets", seed, options.steps
    config.data.quarter_turns = False  # of a letter or an animal they are no other classes
    config.data.validation_fraction = 0.0
    config.data.sources = ml_collections.ConfigDict({name: sets[name] for name in names})
    config.batch.update(batch)
    config.encoder.width = options.width
    config.schedule.warmup_steps = options.steps // 12
    config.evaluate.on = ml_collections.ConfigDict(sets)
    config.evaluate.every_steps = config.checkpoint.every_steps = options.steps
    config.evaluate.zooms = config.evaluate.untrained = False
    config.checkpoint.best_metric = "map@r"  # which all sets have
    return config


def copy_animals(clones: pathlib.Path, folder: pathlib.Path) -> None:
    """Small copies of the photographs, and a CSV of each set with the split that wildlife-tools has."""
    photographs = clones / "wildlife_reidentification"
    metadata = clones / "wildlife-tools" / "baselines" / "data" / "metadata" / "datasets"
    for name, of in METADATA.items():
        if (folder / f"{name}.csv").is_file():
            continue
        rows = [("path", "label", "split")]
        with (metadata / of / "metadata.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                # There the file's name ends in a digest, and the repository is called as its archive unpacks.
                _, _, path = re.sub(r"_[0-9a-f]{16}(?=\.\w+$)", "", row["path"]).partition("/")
                copy = (folder / path).with_suffix(".png")
                copy.parent.mkdir(parents=True, exist_ok=True)
                image = ImageOps.exif_transpose(Image.open(photographs / path)).convert("RGB")
                scale = SIDE / min(image.size)
                image.resize([round(scale * side) for side in image.size], Image.Resampling.BOX).save(copy)
                rows.append((copy.relative_to(folder).as_posix(), row["identity"], row["split"]))
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def write(sets: dict[str, Any], found: dict[str, dict[int, Any]], options: argparse.Namespace) -> None:
    """The table: a row for what was trained on, a column for what was tested on; means over seeds."""
    metrics = {name: "closed_set_top-1" if name in ANIMALS else "mAP" for name in sets}
    rows: dict[str, dict[str, float]] = {}
    for title, by_seed in found.items():
        each = [{s: r["tests"][s][m] for s, m in metrics.items()} for r in by_seed.values()]
        rows[title] = {s: statistics.fmean(e[s] for e in each) for s in metrics}
    summary = {
        "command": f"python {' '.join(sys.argv)}",
        "metrics": metrics,
        "rows": rows,
        "seeds": {
            title: {seed: r["tests"] for seed, r in by_seed.items()} for title, by_seed in found.items()
        },
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(summary, indent=2) + "\n")
    options.output.with_suffix(".md").write_text(to_markdown(rows, columns=tuple(metrics)))
    print(options.output.with_suffix(".md").read_text())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
