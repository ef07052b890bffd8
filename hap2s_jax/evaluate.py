"""Evaluates embeddings from any framework, or a run's checkpoint.

    python -m hap2s_jax.evaluate --embeddings=mine.npz
    python -m hap2s_jax.evaluate --embeddings=market.npz --distance=cosine --rerank --confidence=0.95
    python -m hap2s_jax.evaluate --embeddings=faces.npz --pairs=pairs.csv --roc=roc.png
    python -m hap2s_jax.evaluate --workdir=runs/emoji --by=camera
    python -m hap2s_jax.evaluate --workdir=runs/market1501 --data=msmt17:data --data=photos.csv
    python -m hap2s_jax.evaluate --workdir=runs/market1501 --views=flip --feature=embedding --distance=cosine

An .npz file holds `embeddings [n, d]` and `labels [n]`, and optionally `cameras [n]` and `split [n]` ("query",
"gallery", "both" or "views", the images that multi-query pools from). Label -1 is junk. The base install is enough
for .npz files.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hap2s_jax import cli, extras
from hap2s_jax.data import matches
from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation import protocols as definitions
from hap2s_jax.evaluation.archive import Inputs, from_npz, read_pairs
from hap2s_jax.evaluation.closer import closer, draw_roc
from hap2s_jax.evaluation.expansion import expand
from hap2s_jax.evaluation.inputs import DISTANCES
from hap2s_jax.evaluation.retrieval import TIES
from hap2s_jax.reporting import outputs
from hap2s_jax.reporting.outputs import Output
from hap2s_jax.reporting.table import print_metrics

_SHOWN_TABLES = 30  # on the terminal; --json has all
_FILES = ("json", "per_query", "worst", "roc")
_RANKED = ("class", "query_gallery")  # protocols that --per_query and --worst show closer
_COUNTS = ("_queries", "_queries_without_match", "_pairs")


def from_workdir(workdir: str, step: int | None = None, **choices: Any) -> Inputs:
    """As `hap2s_jax.serving.judged.from_workdir`."""
    # Not above, since it is slow to import and --embeddings does not need it.
    from hap2s_jax.serving import judged

    return judged.from_workdir(workdir, step, **choices)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.start(_measure, _parser(), arguments)


def _measure(options: argparse.Namespace) -> None:
    found = {}
    try:
        outputs.check(options, _endings(options))
        if options.roc:
            extras.load("--roc", "matplotlib", "use")
        first = _inputs(options)
        sets = (first, *first.others)
        words = _words([one.name for one in sets])
        own = {name: _of(word, options, *_FILES) if first.others else options for name, word in words.items()}
        for choices in own.values():
            outputs.check(choices, _RANKED)
        for one in sets:
            if first.others:
                print(f"\n{one.name}")
            found[one.name] = _run(one, own[one.name])
    except (ValueError, TypeError) as error:  # embeddings from elsewhere may not fit
        raise UserError(str(error)) from error
    if len(found) > 1:
        _compare(found)


def _words(names: Sequence[str]) -> dict[str, str]:
    """A word for each data set that is fit for a file's name; numbered if two have the same."""
    words = [*map(_word, names)]
    numbered = (f"{word}_{n}" if words.count(word) > 1 else word for n, word in enumerate(words, 1))
    return dict(zip(names, numbered, strict=True))


def _word(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _of(word: str, options: argparse.Namespace, *names: str) -> argparse.Namespace:
    """The options with a word, of a data set or protocol, in the names of these files that are written."""
    paths = {name: place(path) for name in names if (path := getattr(options, name))}
    own = {name: outputs.Output(path.with_stem(f"{path.stem}_{word}")) for name, path in paths.items()}
    return argparse.Namespace(**{**vars(options), **own})


def _endings(options: argparse.Namespace) -> list[str]:
    """The words that `_of` may be called with, as far as they are known before there are embeddings."""
    several = options.data if len(options.data or ()) > 1 else ()
    sets = [_word(name) for text in several for name in (text, text.partition(":")[0])]
    return [*_RANKED, *sets, *(f"{word}_{name}" for word in sets for name in _RANKED)]


def _compare(found: Mapping[str, Mapping[str, float]]) -> None:
    """Prints one table of all data sets, with their mean if all have the same protocols."""
    rows = {name: {k: v for k, v in row.items() if not k.endswith(_COUNTS)} for name, row in found.items()}
    columns = list(dict.fromkeys(k for row in rows.values() for k in row))
    if all(len(row) == len(columns) for row in rows.values()):
        rows["average"] = {k: float(np.mean([row[k] for row in rows.values()])) for k in columns}
    print_metrics(rows, columns=columns, title="All data sets")


def _inputs(options: argparse.Namespace) -> Inputs:
    chosen = {name: getattr(options, name) for name in ("step", "views", "feature", "data_dir", "data")}
    if options.workdir:
        extras.require("evaluate --workdir", "train")
        consent = {"own_code": options.own_code, "strict": options.strict}
        return from_workdir(options.workdir, **chosen, distance=options.distance, **consent)
    if given := [name for name, value in chosen.items() if value is not None]:
        raise UserError(f"--{given[0]} needs the encoder and the images: use it with --workdir.")
    with contextlib.suppress(ImportError):  # packages needed to read the run's data
        from hap2s_jax.serving import seen

        for remark in seen.remarks(options.embeddings):
            print(f"warning: {remark}")
    return from_npz(options.embeddings)


def _run(inputs: Inputs, options: argparse.Namespace) -> Mapping[str, float]:
    chosen = tuple(options.protocols or inputs.protocols)
    pairs = read_pairs(options.pairs) if options.pairs else None
    if (options.pairs or options.roc) and "verification" not in chosen:
        chosen += ("verification",)
    distance = options.distance or inputs.distance
    rows: dict[str, Any] = {"query": inputs.query, "gallery": inputs.gallery}
    if options.expand:
        expanded = expand(inputs.embeddings, k=options.expand, alpha=options.alpha, **rows)
        inputs, distance = dataclasses.replace(inputs, embeddings=expanded), "cosine"
    shown: dict[str, Mapping[str, Any]] = {}
    shown["figures"] = definitions.evaluate(
        inputs.embeddings,
        inputs.labels,
        inputs.cameras,
        views=inputs.views,
        protocols=chosen,
        distance=distance,
        ties=options.ties,
        recall_at=options.recall_at,
        ranks=options.ranks,
        cluster=options.cluster,
        seed=options.seed,
        repeats=options.repeats,
        pairs=pairs,
        threshold=options.threshold,
        **rows,
    )
    if options.roc:
        draw_roc(options.roc, inputs, distance, pairs, level=options.confidence or 0.95, seed=options.seed)
    if options.rerank or options.confidence or options.by or options.per_query or options.worst:
        ranked = [name for name in chosen if name in _RANKED]
        if not ranked:
            raise UserError(
                "--rerank, --confidence, --by, --per_query and --worst need class or query_gallery."
            )
        for name in ranked:
            its = options if len(ranked) == 1 else _of(name, options, "per_query", "worst")
            shown |= closer(name, inputs, distance, its)
    settings = {"protocols": chosen, "distance": distance, "ties": options.ties}
    settings |= {} if inputs.step is None else {"weights of step": inputs.step}
    _report(shown, settings, options.json)
    unanswered = matches.describe(inputs.labels, inputs.cameras, protocols=chosen, **rows)
    for remark in dict.fromkeys((*inputs.remarks, *unanswered)):  # for own images both say the same
        print(f"note: {remark}")
    return shown["figures"]


def _report(shown: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], path: str | None) -> None:
    for title, figures in list(shown.items())[:_SHOWN_TABLES]:
        print(title)
        for name, value in figures.items():
            counted = name.startswith("queries") or name.endswith(_COUNTS)
            print(f"  {name:<42}{value:>10.0f}" if counted else f"  {name:<42}{value:>10.4f}")
    if len(shown) > _SHOWN_TABLES:
        print(f"... and {len(shown) - _SHOWN_TABLES} tables more; --json=FILE writes all")
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    if path:
        # JSON knows no NaN; a mean over nothing is null.
        known = {
            title: {k: None if v != v else v for k, v in figures.items()} for title, figures in shown.items()
        }
        place(path).write_text(json.dumps({"settings": settings, **known}, indent=2) + "\n")


def _parser() -> cli.Parser:
    parser = cli.Parser("evaluate", __doc__)
    _add_sources(parser)
    _add_figures(parser)
    return parser


def _add_sources(parser: cli.Parser) -> None:
    """The flags for what is judged."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--embeddings", help="an .npz file")
    source.add_argument("--workdir", help="the working directory of a run")
    parser.add_argument("--data_dir", help="where the data of --workdir is now, if it has moved")
    parser.add_argument(
        "--data",
        action="append",
        metavar="DATA",
        help="test --workdir on other images: NAME:DIR of a data set (check_data lists the names), a folder or "
        "a CSV; repeat it for several",
    )
    parser.add_switch(
        "own_code",
        default=False,
        help="import and run the code that --workdir's config names as its encoder; only for runs that you trust",
    )
    parser.add_strict()
    parser.add_argument(
        "--step", type=int, help="checkpoint of --workdir; by default the one that evaluate.weights names"
    )
    parser.add_argument(
        "--views",
        type=_names,
        help="views to average for each image of --workdir: flip, five_crops, zooms (comma-separated), or none; by "
        "default the run's",
    )
    parser.add_argument(
        "--feature",
        help="feature of --workdir to compare: retrieval, embedding (before BNNeck) or features; by default the run's",
    )


def _add_figures(parser: cli.Parser) -> None:
    """The flags for how it is judged, and for output."""
    parser.add_argument(
        "--protocols", type=_names, help=f"comma-separated: {', '.join(definitions.PROTOCOLS)}"
    )
    parser.add_argument("--distance", choices=DISTANCES, help="by default the run's, else euclidean")
    parser.add_argument("--ties", choices=TIES, default=TIES[0], help="optimistic: right images first")
    parser.add_argument("--recall_at", type=_integers, help="k of recall@k, comma-separated")
    parser.add_argument("--ranks", type=_integers, help="k of rank-k, comma-separated")
    parser.add_switch("rerank", default=False, help="also re-rank by k-reciprocal neighbours")
    parser.add_argument("--k1", type=int, default=20, help="--rerank: reciprocal neighbours")
    parser.add_argument("--k2", type=int, default=6, help="--rerank: neighbours to average over")
    parser.add_argument("--mixing", type=float, default=0.3, help="--rerank: weight of the original distance")
    parser.add_argument("--expand", type=int, metavar="K", help="average each embedding with its K nearest")
    parser.add_argument("--alpha", type=float, default=3.0, help="--expand: power of the similarity")
    parser.add_argument(
        "--confidence", type=float, metavar="LEVEL", help="bootstrap confidence intervals, for example 0.95"
    )
    parser.add_argument(
        "--resample", choices=("query", "class"), default="query", help="what the bootstrap draws"
    )
    parser.add_argument("--by", choices=("class", "camera"), help="print a table with a row for each")
    parser.add_argument(
        "--per_query", type=Output, metavar="FILE", help="write every query's results to a CSV file"
    )
    parser.add_argument(
        "--worst", type=Output, metavar="FILE", help="draw the worst queries of --workdir as a PNG file"
    )
    parser.add_argument(
        "--pairs",
        metavar="FILE",
        help="verification on the pairs of rows in this .npz or CSV file, not on all pairs",
    )
    parser.add_argument(
        "--roc", type=Output, metavar="FILE", help="verification, with the ROC curve as a PNG file"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="distance up to which open_set answers a query, calibrated on other data",
    )
    parser.add_argument("--json", type=Output, metavar="FILE", help="write all figures to a JSON file")
    parser.add_switch("overwrite", default=False, help=outputs.OVERWRITE)
    parser.add_switch("cluster", default=True, help="run k-means, for nmi, ami and f1")
    parser.add_argument("--repeats", type=int, default=10, help="number of galleries of single_gallery_shot")
    parser.add_argument("--seed", type=int, default=0, help="seed of k-means, galleries and the bootstrap")


def _names(text: str) -> list[str]:
    return [] if text == "none" else [part.strip() for part in text.split(",")]


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} should be whole numbers such as 1,5,10") from None


if __name__ == "__main__":
    sys.exit(main())
