"""The paper's fourth claim: HAP2S does well on data of other kinds.

    python experiments/glyphs.py                                # the second data set, once
    python experiments/generality.py
    python experiments/generality.py --datasets=emoji,glyphs,cub,market1501

The settings that accuracy.py has chosen on the options' data set (emoji) train, unchanged, on every other data set that
is on the machine; on the options' data set also for four times as long and with other backbones. Of emoji and glyphs,
mAP and rank-1 count matches across vendors or families only, Recall@1 and MAP@R all matches.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from accuracy import chosen_setting, suffix
from study import figures, report
from study.cells import PLAIN, Study, parser, start
from study.kept import of_the_outcome
from study.rows import Row, collect

from hap2s_jax.errors import UserError

DATASETS = "emoji,glyphs"
LOSSES = ("batch_hard", "point_to_set_mean", "hap2s_e", "hap2s_p", "softmax", "contrastive")
BACKBONES: dict[str, Mapping[str, Any]] = {
    "ResNet-18": {"encoder.name": "resnet18"},
    "ResNet-26, bottlenecks": {"encoder.name": "resnet26"},
    "pooling over the whole map": {"encoder.pooling": "gap"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains on all data sets and with all variants, and writes the tables."""
    options = parser("The same settings on other data, with other encoders, and for longer.", "0,1,2")
    options.add_argument("--datasets", default=DATASETS, help="configs to train on, comma-separated")
    study = Study(options.parse_args(arguments))
    steps, warmup = study.plain.steps, study.plain.schedule.warmup_steps
    longer = {"steps": 4 * steps, "schedule.warmup_steps": 4 * warmup}
    names, variants = LOSSES, {"four times the steps": longer, **BACKBONES}
    if study.options.tiny:
        names, variants = ("batch_hard",), {"narrow": {"encoder.width": 2}}
    own = study.options.dataset
    asked: list[str] = study.options.datasets.split(",")
    shown = [own, *([] if study.options.tiny else DATASETS.split(",")), *asked]
    for name in shown:
        study.config(PLAIN, 0, name)  # A name without a config is reported before hours of cells.
    places: dict[str, tuple[str, Mapping[str, Any]]] = {name: (name, {}) for name in shown}
    # What the data set's config has anyway is no variant of it.
    places |= {f"{own}, {title}": (own, v) for title, v in variants.items() if _changes(study, v)}
    left_out: dict[str, str] = {}

    def rows(title: str, seeds: Sequence[int]) -> list[Row]:
        dataset, overrides = places[title]
        found = []
        for name in names:
            setting = chosen_setting(study, name)
            setting = None if setting is None else setting.but(overrides=overrides)
            found.append(collect(study, name, setting, seeds, dataset=dataset))
        return found

    def tables(seeds: Sequence[int]) -> report.Tables:
        found = {}
        for title in places:
            reporting = study.options.report_only
            if not reporting and (title in left_out or places[title][0] not in (own, *asked)):
                continue
            try:
                made = rows(title, seeds)
            except UserError as e:
                left_out[title] = str(e)
                print(f"{title} is left out: {e}", file=sys.stderr)
                continue
            if title not in left_out or any(row.outcomes for row in made):
                found[title] = (made, made[0])
        return found

    def drawn(tables: report.Tables) -> dict[str, Any]:
        return {"": figures.dots({title: found for title, (found, _) in tables.items()}, steps=steps)}

    def remarks() -> list[str]:
        return [f"{title} was left out by this call: {why}" for title, why in left_out.items()]

    report.carry_out(study, "generality" + suffix(study), [tables], drawn, remarks)


def _changes(study: Study, overrides: Mapping[str, Any]) -> bool:
    changed = study.config(PLAIN.but(overrides=overrides), 0, study.options.dataset)
    return of_the_outcome(changed) != of_the_outcome(study.plain)


if __name__ == "__main__":
    start(main)
