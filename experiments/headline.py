"""The claims again, at 2,400 steps and with a search in stages for every loss: a day or more of two cores.

    python experiments/glyphs.py                                # the second data set and the foreign images, once
    python experiments/headline.py --estimate                   # what is left to train, table by table
    python experiments/headline.py --minutes=170 --cores=2      # begins no cell after that; the same command goes on
    python experiments/headline.py --report-only

Every loss gets the same search on held-out training classes: four learning rates, then four values of its own
parameters, each setting by the mean of two seeds at 600 steps; grids whose best value is their first or last go on, at
most twice. The best two settings train for 2,400 steps, and the best of those with five seeds on all training classes;
with `--seeds=0,1,2` the tables are whole earlier, and further seeds add to them. Beside softmax a loss keeps its
setting, and four weights of the softmax are tried, with one seed. Glyphs and outliers have the same search as the
losses alone, with one seed, and train for 600 steps, with three seeds.

The tables come in the order of PARTS, a table before the next where one process trains. Each finished cell is written
at once. With --cores each core has a process of its own, at low priority; what one trains, the others pass over.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accuracy import ENTRIES, suffix
from flexibility import register_weightings
from robustness import GLYPHS, noisy
from study import figures, report
from study.cells import Setting, Study, parser, start
from study.estimate import Estimate
from study.rows import BASELINE, Row, collect
from study.search import Axis, Budget, staged
from study.workers import workers

from hap2s_jax.errors import UserError, unknown_name

LONG = {"steps": 2400, "schedule.warmup_steps": 200}
_FEW_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss and what its search tries.

    Attributes:
      setting: as the search begins with it.
      axes: of its own parameters.
      others: changes to try that are no grid; with the axes four values in all.
    """

    setting: Setting
    axes: Sequence[Axis]
    others: Sequence[Mapping[str, Any]] = ()


_SIGMAS, _ALPHAS = Axis("sigma", (0.15, 0.25, 0.35, 0.7)), Axis("alpha", (3.0, 5.0, 20.0, 30.0))
_SOFT = ({"soft_margin": True, "margin": 0.0},)
_MARGINS = Axis("margin", (0.1, 0.2, 0.6))
# Class weights learn at a rate of their own, this times the trunk's.
_CLASS_RATES = Axis("optimizer.loss_factor", (4.0, 16.0))


def _known(name: str, *axes: Axis, others: Sequence[Mapping[str, Any]] = ()) -> dict[str, Loss]:
    """A loss from the setting with which the search of `accuracy` begins too."""
    return {name: Loss(ENTRIES[name][0], axes, others)}


def _further(name: str, *axes: Axis) -> dict[str, Loss]:
    return {name: Loss(Setting(name, name), axes)}


# The most telling first: the study may be stopped before the last.
NAMED: dict[str, Loss] = {
    **_known("batch_hard", _MARGINS, others=_SOFT),
    **_known("hap2s_e", _SIGMAS),
    **_known("hap2s_p", _ALPHAS),
    **_known("nt_xent (n-pair)", Axis("temperature", (0.05, 0.07, 0.14, 0.2))),
    **_known("contrastive", Axis("margin", (0.7, 0.85, 1.15, 1.3), below=2.0)),
    **_known("softmax", _CLASS_RATES, Axis("scale", (8.0, 32.0))),
    **_further("hap2s_hardest", Axis("count", (2, 5, 8, 16))),
    **_known("multi_similarity", Axis("base", (0.1, 0.3)), Axis("beta", (25.0, 100.0))),
    **_further("hap2s_ranked", Axis("ratio", (0.3, 0.4, 0.65, 0.8), below=1.0)),
    **_further("hap2s_e detached", _SIGMAS),
    **_further("hap2s_p detached", _ALPHAS),
    **_known("arcface", _CLASS_RATES, Axis("margin", (0.1, 0.4), below=1.5)),
    **_known("proxy_nca", Axis("optimizer.loss_factor", (10.0, 100.0)), Axis("scale", (6.0, 12.0))),
    **_known("point_to_set_mean", _MARGINS, others=_SOFT),
}
JOINT = ("hap2s_e", "hap2s_p", "nt_xent (n-pair)", "multi_similarity", BASELINE)
_WEIGHTS = Axis("identification", (0.03, 0.3, 1.0))
FEW = (BASELINE, "hap2s_e", "hap2s_p", "nt_xent (n-pair)", "contrastive", "softmax")
# With eight images a class "the three hardest" are fewer than all positives, as they are not with four.
EIGHT: Mapping[str, Any] = {"batch.classes": 8, "batch.images_per_class": 8}
_NOISE = 0.2


def _longer(study: Study) -> Mapping[str, Any]:
    return {} if study.options.tiny else LONG


def chosen(study: Study, name: str) -> Setting | None:
    """The setting that the search in stages has chosen for a loss."""
    loss = NAMED[name]
    return staged(study, loss.setting, loss.axes, Budget(), others=loss.others, longer=_longer(study))


def headline(study: Study, seeds: Sequence[int]) -> report.Tables:
    """The losses alone."""
    names = _some(study, study.options.losses.split(","))
    rows = [collect(study, name, chosen(study, name), seeds) for name in names]
    return {"2,400 steps": (rows, rows[0])}


def eight(study: Study, seeds: Sequence[int]) -> report.Tables:
    """Glyphs with eight images of a class in a batch."""
    names = [*FEW, "hap2s_hardest", "point_to_set_mean"]
    return _own_search(study, "glyphs, K = 8", names, seeds, EIGHT)


def four(study: Study, seeds: Sequence[int]) -> report.Tables:
    """Glyphs with four images of a class in a batch, as everywhere else."""
    return _own_search(study, "glyphs, K = 4", FEW, seeds, {})


def outliers(study: Study, seeds: Sequence[int]) -> report.Tables:
    """A fifth of the labels flipped, and a fifth of the images foreign."""
    titles = {"labels": "20 % of the labels flipped", "images": "20 % of the images foreign"}
    found: dict[str, Any] = {}
    for kind, title in titles.items():
        rows = []
        for name in _some(study, FEW):
            dataset = study.options.dataset
            noise = noisy(Setting("", "hap2s_e"), kind, _NOISE, 0, dataset).overrides
            setting = _searched(study, name, None, noise)
            each = [
                collect(study, name, setting and noisy(setting, kind, _NOISE, seed, dataset), [seed])
                for seed in seeds[:_FEW_SEEDS]
            ]
            outcomes = {s: o for row in each for s, o in row.outcomes.items()}
            rows.append(Row(name, setting, outcomes, tuple(seeds[:_FEW_SEEDS]), each[0].families))
        found[title] = (rows, rows[0])
    return found


def joint(study: Study, seeds: Sequence[int]) -> report.Tables:
    """The losses with a softmax beside them, whose weight is searched for, from the settings chosen for them alone."""
    rows = [collect(study, BASELINE, chosen(study, BASELINE), seeds)]
    for name in _some(study, JOINT):
        alone = chosen(study, name)
        label = f"{name} + softmax"
        setting = None
        if alone is not None:
            overrides = {k: v for k, v in alone.overrides.items() if k not in LONG}
            base = dataclasses.replace(alone, label=label, identification=0.1, overrides=overrides)
            setting = staged(study, base, (_WEIGHTS,), Budget(seeds=(0,)), rates=(1.0,))
        rows.append(collect(study, label, setting and setting.but(overrides=_longer(study)), seeds))
    return {"2,400 steps, with softmax": (rows, rows[0])}


Part = Callable[[Study, Sequence[int]], report.Tables]
PARTS: dict[str, Part] = {
    "headline": headline,
    "outliers": outliers,
    "glyphs": four,
    "eight": eight,
    "joint": joint,
}


def _own_search(
    study: Study,
    title: str,
    names: Sequence[str],
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
) -> report.Tables:
    rows = []
    for name in _some(study, names):
        setting = _searched(study, name, "glyphs", overrides)
        setting = setting and setting.but(overrides=overrides)
        rows.append(collect(study, name, setting, seeds[:_FEW_SEEDS], dataset="glyphs"))
    return {title: (rows, rows[0])}


def _searched(study: Study, name: str, dataset: str | None, overrides: Mapping[str, Any]) -> Setting | None:
    loss = NAMED[name]
    budget = Budget(seeds=(0,), dataset=dataset, overrides=overrides)
    return staged(study, loss.setting, loss.axes, budget, others=loss.others)


def _some(study: Study, names: Any) -> list[str]:
    """All names, or of a tiny study the first two."""
    return list(names)[: 2 if study.options.tiny else None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, packs and writes the tables."""
    options = parser(__doc__, "0,1,2,3,4")
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument(
        "--parts", default=",".join(PARTS), help="tables to make, comma-separated, in this order"
    )
    options.add_argument(
        "--losses",
        default=",".join(NAMED),
        help="of the first table, comma-separated, which are compared with the first of them; all by default",
    )
    options.add_argument("--cores", type=int, default=1, help="processes, each on a core of its own")
    options.add_argument("--estimate", action="store_true", help="only say what is left to train")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    register_weightings()
    study = Study(options.parse_args(arguments))
    names = study.options.parts.split(",")
    for what, given, known in (
        ("table in --parts", names, PARTS),
        ("loss in --losses", study.options.losses.split(","), NAMED),
    ):
        for name in given:
            if name not in known:
                raise unknown_name(what, name, known)
    if study.options.estimate:
        return print(Estimate(study.options).of({name: PARTS[name] for name in names}))
    if not study.options.report_only and {"eight", "outliers", "glyphs"} & {*names} and not GLYPHS.is_file():
        raise UserError(f"{GLYPHS} is not there; make it with: python experiments/glyphs.py")
    parts = [functools.partial(PARTS[name], study) for name in names]
    if study.options.worker:
        return report.run(study, parts)
    if not study.options.report_only:
        workers(__file__, arguments, study.options.cores) if study.options.cores > 1 else report.run(
            study, parts
        )
        study.kept.pack()
        study.options.report_only = True

    def drawn(tables: report.Tables) -> dict[str, Any]:
        return {
            "": figures.dots({title: rows for title, (rows, _) in tables.items()}, steps=study.plain.steps)
        }

    return report.carry_out(study, "headline" + suffix(study), parts, drawn)


if __name__ == "__main__":
    start(main)
