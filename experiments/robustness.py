"""The paper's second claim: outliers hurt HAP2S less than other losses.

    python experiments/glyphs.py                                # the foreign images, once
    python experiments/robustness.py
    python experiments/robustness.py --kinds=labels --minutes=50

How the paper made its outliers is not known. Here a share of the training images gets the label of another class
("labels"), or is swapped for images that belong to no class ("images": glyphs among emoji, emoji among all others).
Every loss keeps the setting that accuracy.py has chosen on clean data; validation and test stay clean.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from accuracy import chosen_setting, suffix
from study import figures, report
from study.cells import Setting, Study, parser, start
from study.rows import Row, collect

from hap2s_jax.errors import UserError, unknown_name

LOSSES = (
    "batch_hard",
    "point_to_set_mean",
    "hap2s_e",
    "hap2s_p",
    "triplet (semi-hard)",
    "contrastive",
    "softmax",
)
FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3)
TITLES = {"labels": "Flipped labels", "images": "Foreign images"}
GLYPHS = pathlib.Path("data/glyphs/glyphs.csv")


def noisy(setting: Setting, kind: str, fraction: float, seed: int, dataset: str) -> Setting:
    """The setting under noise; without any it is the very cell of accuracy.py."""
    if not fraction:
        return setting
    noise: dict[str, Any] = {"kind": kind, "fraction": fraction, "seed": seed}
    if kind == "images" and dataset.startswith("emoji"):
        noise |= {"foreign": "folder", "foreign_dir": str(GLYPHS)}
    return setting.but(overrides={f"data.noise.{name}": value for name, value in noise.items()})


def row(study: Study, name: str, kind: str, fraction: float, seeds: Sequence[int]) -> Row:
    """One loss at one fraction."""
    setting, dataset = chosen_setting(study, name), study.options.dataset
    if setting is None:
        return collect(study, name, None, seeds)
    rows = [collect(study, name, noisy(setting, kind, fraction, s, dataset), [s]) for s in seeds]
    outcomes = {seed: outcome for found in rows for seed, outcome in found.outcomes.items()}
    return Row(name, setting, outcomes, tuple(seeds), rows[0].families)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains under noise, and writes tables and curves."""
    options = parser("Accuracy of the losses against outliers in training.", "0,1,2")
    options.add_argument("--kinds", default="labels,images", help="kinds of noise, comma-separated")
    options.add_argument(
        "--fractions",
        default=",".join(map(str, FRACTIONS)),
        help="of the training images that are to be run; the tables have all that there are",
    )
    study = Study(options.parse_args(arguments))
    kinds = study.options.kinds.split(",")
    for kind in kinds:
        if kind not in TITLES:
            raise unknown_name("kind of noise in --kinds", kind, TITLES)
    try:
        wanted = [float(fraction) for fraction in study.options.fractions.split(",")]
    except ValueError:
        raise UserError(f"--fractions {study.options.fractions!r}: give numbers, as in 0,0.1,0.3") from None
    if not all(0 <= fraction <= 1 for fraction in wanted):
        raise UserError(f"--fractions {study.options.fractions!r}: a fraction lies between 0 and 1")
    names, fractions = LOSSES, tuple(sorted({*FRACTIONS, *wanted}))
    if study.options.tiny:
        names, wanted, fractions = ("batch_hard", "hap2s_e"), [0.0, 0.3], (0.0, 0.3)
    needs_glyphs = "images" in kinds and study.options.dataset.startswith("emoji")
    if needs_glyphs and not study.options.report_only and not GLYPHS.is_file():
        raise UserError(
            f"{GLYPHS} is not there; make it with: python experiments/glyphs.py, or give --kinds=labels"
        )
    lines: dict[str, dict[str, dict[float, Row]]] = {}

    def tables(seeds: Sequence[int]) -> report.Tables:
        reporting, found = study.options.report_only, {}
        # Cells of the other kind may be there from another call.
        for kind in TITLES if reporting and not study.options.tiny else kinds:
            line = lines.setdefault(f"{TITLES[kind]}, % of the training images", {})
            for fraction in fractions if reporting else wanted:
                rows = [row(study, name, kind, fraction, seeds) for name in names]
                found[f"{TITLES[kind]}, {100 * fraction:g}%"] = (rows, rows[0])
                for each in rows:
                    line.setdefault(each.label, {})[100 * fraction] = each
        return found

    report.carry_out(
        study,
        "robustness" + suffix(study),
        [tables],
        lambda _: {"": figures.curves(lines, steps=study.plain.steps)},
    )


if __name__ == "__main__":
    start(main)
