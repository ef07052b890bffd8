"""The paper's first claim: HAP2S retrieves better than other losses.

    python experiments/accuracy.py                                  # the headline table, about two hours of two cores
    python experiments/accuracy.py --losses=headline,others         # and eight more
    python experiments/accuracy.py --losses=later                   # and nine later ones
    python experiments/accuracy.py --minutes=50                     # as far as it comes; again to go on
    python experiments/accuracy.py --dataset=emoji:gpu              # the GPU-sized study
    python experiments/accuracy.py --dataset=market1501

All losses train the same encoder on the same batches for the same number of steps. Each gets seven trials on one half
of the training classes, judged on the other half: four learning rates at the loss's defaults (and up to two more while
the best lies at the edge of those tried), then three other values of its own hyperparameters at the best rate. The
winner trains on all training classes with every seed and is measured on the test classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from study import figures, report
from study.cells import Setting, Study, parser, start
from study.rows import BASELINE, collect
from study.search import search

_MARGINS = ({"margin": 0.1}, {"margin": 0.6}, {"soft_margin": True, "margin": 0.0})
# Embeddings have length 1 here, so the identification loss is a softmax over scaled cosines.
_SOFTMAX = Setting("softmax", "arcface", {"margin": 0.0, "scale": 16.0})
_SCALES = ({"scale": 8.0}, {"scale": 24.0}, {"scale": 32.0})
Entry = tuple[Setting, Sequence[Mapping[str, Any]]]


def _with_softmax(loss: str) -> Setting:
    return Setting(f"{loss} + softmax", loss, identification=0.1)


# The losses that the paper names, the uniform mean, and HAP2S beside an identification loss. Three alternatives each.
HEADLINE: dict[str, Entry] = {
    "softmax": (_SOFTMAX, _SCALES),
    # Close to pytorch-metric-learning's default, which averages over the near negatives of a whole batch at once. Two
    # searches with squares, as in its paper, failed before this form was taken; but for MSML, none had a second chance.
    "contrastive": (
        Setting("contrastive", "contrastive", {"active_only": True, "power": 1}),
        ({"margin": 0.7}, {"margin": 1.3}, {"power": 2}),
    ),
    "triplet (semi-hard)": (
        Setting("triplet (semi-hard)", "semi_hard"),
        ({"margin": 0.1}, {"margin": 0.4}, {"distance": "euclidean"}),
    ),
    "quadruplet": (
        Setting("quadruplet", "quadruplet"),
        (
            {"margin": 0.1, "second_margin": 0.05},
            {"margin": 0.6, "second_margin": 0.3},
            {"second_margin": 0.05},
        ),
    ),
    "batch_hard": (Setting("batch_hard", "batch_hard"), _MARGINS),
    "point_to_set_mean": (Setting("point_to_set_mean", "point_to_set_mean"), _MARGINS),
    "hap2s_e": (Setting("hap2s_e", "hap2s_e"), ({"sigma": 0.1}, {"margin": 0.6}, _MARGINS[2])),
    "hap2s_p": (Setting("hap2s_p", "hap2s_p"), ({"alpha": 30.0}, {"margin": 0.6}, _MARGINS[2])),
    "hap2s_p + softmax": (
        _with_softmax("hap2s_p"),
        ({"alpha": 30.0}, {"margin": 0.6}, _MARGINS[2]),
    ),
}
OTHERS: dict[str, Entry] = {
    "triplet (random)": (
        Setting("triplet (random)", "random_triplet"),
        ({"margin": 0.1}, {"margin": 0.6}, {"margin": 1.0}),
    ),
    "triplet (batch all)": (
        Setting("triplet (batch all)", "batch_all"),
        ({"margin": 0.1}, {"margin": 0.6}, {"margin": 1.0}),
    ),
    # Its one hinge never closes here, so that margins make no difference.
    "msml": (
        Setting("msml", "msml"),
        ({"margin": 0.6}, {"distance": "squared_euclidean"}, {"distance": "cosine"}),
    ),
    "lifted_structure": (
        Setting("lifted_structure", "lifted_structure"),
        ({"margin": 0.5}, {"margin": 1.5}, {"distance": "squared_euclidean"}),
    ),
    # On unit vectors inner products need a temperature, which makes it NT-Xent.
    "nt_xent (n-pair)": (
        Setting("nt_xent (n-pair)", "nt_xent"),
        ({"temperature": 0.05}, {"temperature": 0.2}, {"temperature": 0.5}),
    ),
    "margin": (Setting("margin", "margin"), ({"alpha": 0.1}, {"alpha": 0.3}, {"nu": 0.01})),
    "multi_similarity": (
        Setting("multi_similarity", "multi_similarity"),
        ({"base": 0.3}, {"beta": 20.0}, {"alpha": 10.0}),
    ),
    "circle": (Setting("circle", "circle"), ({"gamma": 32.0}, {"gamma": 64.0}, {"margin": 0.4})),
}
_CLASS_RATES = tuple({"optimizer.loss_factor": factor} for factor in (4.0, 16.0))
_ANGLES = {"margin": 0.2, "scale": 16.0}
_ADASP = ({"temperature": 0.02}, {"temperature": 0.08}, {"temperature": 0.16})
_SMOOTH_AP = ({"temperature": 0.02}, {"temperature": 0.04}, {"temperature": 0.08})
# Those of which a comparison today must speak. Where classes have weights, the alternatives are of their learning rate.
LATER: dict[str, Entry] = {
    # The trunk learns a hundred times as fast here as in its paper, so that the proxies need not learn yet faster.
    "proxy_anchor": (
        Setting("proxy_anchor", "proxy_anchor", overrides={"optimizer.loss_factor": 0.01}),
        ({"optimizer.loss_factor": 0.003}, {"optimizer.loss_factor": 0.04}, {"alpha": 16.0}),
    ),
    "adasp": (Setting("adasp", "adasp"), _ADASP),
    "adasp + softmax": (_with_softmax("adasp"), _ADASP),
    "smooth_ap": (Setting("smooth_ap", "smooth_ap"), _SMOOTH_AP),
    "smooth_ap + softmax": (_with_softmax("smooth_ap"), _SMOOTH_AP),
    "sub-centre arcface": (
        Setting("sub-centre arcface", "subcenter_arcface", _ANGLES),
        (*_CLASS_RATES, {"margin": 0.4}),
    ),
    "supervised_contrastive": (
        Setting("supervised_contrastive", "supervised_contrastive"),
        ({"temperature": 0.05}, {"temperature": 0.2}, {"temperature": 0.5}),
    ),
    "arcface": (Setting("arcface", "arcface", _ANGLES), (*_CLASS_RATES, {"margin": 0.4})),
    "proxy_nca": (Setting("proxy_nca", "proxy_nca"), (*_CLASS_RATES, {"scale": 12.0})),
}
ENTRIES = {**HEADLINE, **OTHERS, **LATER}
# The encoder before its first step, for scale.
UNTRAINED = Setting("untrained", "batch_hard", rate=0.0, overrides={"steps": 0, "schedule.warmup_steps": 0})


def chosen_setting(study: Study, name: str) -> Setting | None:
    """The setting that a loss's search has chosen, on the options' data set."""
    return search(study, *ENTRIES[name])


def main(arguments: Sequence[str] | None = None) -> None:
    """Searches, trains, and writes the table."""
    options = parser("Accuracy of the losses under equal budgets.", "0,1,2,3,4")
    options.add_argument(
        "--losses", default="headline", help="names, headline, others, later or all; comma-separated"
    )
    study = Study(options.parse_args(arguments))
    names = _names(study.options.losses, study.options.tiny)

    def tables(seeds: Sequence[int]) -> report.Tables:
        # A report shows what earlier calls have finished too.
        known = ENTRIES if study.options.report_only else names
        rows = {name: collect(study, name, chosen_setting(study, name), seeds) for name in known}
        shown = {
            t: [rows[n] for n in e if n in names or (n in rows and len(rows[n].outcomes) == len(seeds))]
            for t, e in _TABLES.items()
        }
        if not study.options.tiny:
            untrained = collect(study, UNTRAINED.label, UNTRAINED, seeds)
            shown[next(iter(_TABLES))] += [untrained] if untrained.outcomes else []
        return {title: (found, rows.get(BASELINE)) for title, found in shown.items() if found}

    def drawn(tables: report.Tables) -> dict[str, Any]:
        rows = [row for found, _ in tables.values() for row in found]
        return {"": figures.dots({"Equal budgets": rows}, steps=study.plain.steps)}

    report.carry_out(study, "accuracy" + suffix(study), [tables], drawn)


_TABLES = {"The losses that the paper names": HEADLINE, "Other losses": OTHERS, "Later losses": LATER}


def suffix(study: Study) -> str:
    """A suffix that keeps the files of other data sets and of overridden configs apart from emoji's."""
    name = study.options.dataset.replace(":", "-")
    text = "" if name == "emoji" else f"-{name}"
    if study.options.set:
        text += "-set-" + hashlib.sha256(json.dumps(sorted(study.options.set)).encode()).hexdigest()[:6]
    return text


def _names(losses: str, tiny: bool) -> list[str]:
    if tiny:
        return ["batch_hard", "hap2s_e"]
    groups = {"headline": HEADLINE, "others": OTHERS, "later": LATER, "all": ENTRIES}
    names = [name for part in losses.split(",") for name in groups.get(part, [part])]
    if unknown := sorted(set(names) - {*ENTRIES}):
        raise SystemExit(f"error: --losses {unknown[0]!r} is unknown; known: {', '.join(ENTRIES)}")
    return names


if __name__ == "__main__":
    start(main)
