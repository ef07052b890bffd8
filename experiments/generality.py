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
from study import report
from study.cells import OutOfTime, Study, parser, start

from hap2s_jax.errors import UserError

LOSSES = ("batch_hard", "point_to_set_mean", "hap2s_e", "hap2s_p", "softmax", "contrastive")
BACKBONES: dict[str, Mapping[str, Any]] = {
    "ResNet-18": {"encoder.name": "resnet18"},
    "ResNet-26, bottlenecks": {"encoder.name": "resnet26"},
    "pooling over the whole map": {"encoder.pooling": "gap"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains on all data sets and with all variants, and writes the tables."""
    options = parser("The same settings on other data, with other encoders, and for longer.", "0,1,2")
    options.add_argument("--datasets", default="emoji,glyphs", help="configs to train on, comma-separated")
    study = Study(options.parse_args(arguments))
    seeds = study.options.seeds
    steps, warmup = study.plain.steps, study.plain.schedule.warmup_steps
    longer = {"steps": 4 * steps, "schedule.warmup_steps": 4 * warmup}
    names, variants = LOSSES, {"four times the steps": longer, **BACKBONES}
    if study.options.tiny:
        names, variants = ("batch_hard",), {"narrow": {"encoder.width": 2}}
    places = {name: (name, {}) for name in study.options.datasets.split(",")}
    places |= {
        f"{study.options.dataset}, {title}": (study.options.dataset, v) for title, v in variants.items()
    }
    absent = set()

    def rows(title: str, seeds: Sequence[int]) -> list[report.Row]:
        dataset, overrides = places[title]
        found = []
        for name in names:
            setting = chosen_setting(study, name)
            setting = None if setting is None else setting.but(overrides=overrides)
            found.append(report.collect(study, name, setting, seeds, dataset=dataset))
        return found

    def rows_if_there(title: str, seeds: Sequence[int]) -> list[report.Row]:
        if title in absent:
            return []
        try:
            return rows(title, seeds)
        except UserError as e:
            print(f"{title} is left out: {e}", file=sys.stderr)
            absent.add(title)
            return []

    try:
        for count in range(1, len(seeds) + 1):
            for title in places:
                rows_if_there(title, seeds[:count])
    except OutOfTime:
        print("out of time; the same command goes on")
    study.options.report_only = True
    tables = {}
    for title in places:
        if found := rows_if_there(title, seeds):
            tables[title] = (found, found[0])
    figure = report.dots({title: found for title, (found, _) in tables.items()})
    report.write(study, "generality" + suffix(study), tables, figure, f"python {' '.join(sys.argv)}")


if __name__ == "__main__":
    start(main)
