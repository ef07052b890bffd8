"""Evaluates embeddings from anywhere, or a run's checkpoint.

    python -m hap2s_jax.evaluate --embeddings=mine.npz
    python -m hap2s_jax.evaluate --embeddings=market.npz --distance=cosine --rerank --confidence=0.95
    python -m hap2s_jax.evaluate --workdir=runs/emoji --by=camera
    python -m hap2s_jax.evaluate --workdir=runs/market1501 --views=flip --feature=embedding --distance=cosine

An .npz file holds `embeddings [n, d]` and `labels [n]`, and where there are any `cameras [n]` and `split [n]`,
the latter text: "query", "gallery", "both" or "views" (images that multi-query pools from). Label -1 is junk.
Only the base install is needed for it: neither TensorFlow nor flax.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hap2s_jax import cli, extras
from hap2s_jax.data import matches
from hap2s_jax.errors import UserError, unknown_name
from hap2s_jax.evaluation import protocols as definitions
from hap2s_jax.evaluation.archive import Inputs, from_npz
from hap2s_jax.evaluation.expansion import expand
from hap2s_jax.evaluation.reranking import KReciprocal
from hap2s_jax.evaluation.retrieval import TIES, nearest, rank_matches
from hap2s_jax.evaluation.statistics import by_group, confidence_intervals, means, worst

_SHOWN_TABLES = 30  # on the terminal; --json has all
_WORST_SHOWN, _NEIGHBORS_SHOWN = 12, 10


def from_workdir(
    workdir: str,
    step: int | None = None,
    *,
    views: Sequence[str] | None = None,
    feature: str | None = None,
    distance: str | None = None,
    data_dir: str | None = None,
    own_code: bool = False,
    strict: bool = False,
) -> Inputs:
    """Embeds the test images of a run with the checkpoint that `evaluate.weights` names, and changes nothing there.

    Args:
      workdir: of a run that may still be going on.
      step: another checkpoint than that one.
      views, feature, distance: other values than the run's own `evaluate.flip`, `evaluate.five_crops` and
        `evaluate.zooms`, `evaluate.feature`, `evaluate.distance`; () for no views.
      own_code, strict: see `hap2s_jax.load`.
      data_dir: where the run's data lie on this machine, if elsewhere than `data.data_dir` says.

    Raises:
      UserError: there is no run, no checkpoint, or no data.
    """
    # Everything heavy is loaded here and not before: whoever brings embeddings needs none of it.
    from hap2s_jax.distributed import devices
    from hap2s_jax.evaluation.test_time import VIEWS
    from hap2s_jax.run import config as configs
    from hap2s_jax.run import facts, foreign
    from hap2s_jax.run.evaluator import Evaluator
    from hap2s_jax.run.trainer import use_compilation_cache
    from hap2s_jax.serving import loading

    config: Any = foreign.load(workdir, data_dir=data_dir)
    with configs.written_by(workdir), config.unlocked():
        if views is not None:
            if unknown := set(views) - set(VIEWS):
                raise unknown_name("view (--views)", min(unknown), VIEWS)
            for name in VIEWS:
                config.evaluate[name] = name in views
        config.evaluate.feature = feature or config.evaluate.feature
        config.evaluate.distance = distance or config.evaluate.distance
    devices.expect_no_tpu()
    with configs.written_by(workdir):
        use_compilation_cache(config)
        devices.use_cores(config.evaluate.batch_size)
        encoder = loading.load(workdir, checkpoint=step, own_code=own_code, strict=strict)
        evaluator = Evaluator.of_run(config, encoder.module)
        facts.warn_of_changed_data(evaluator.dataset, encoder.workdir)
    test = evaluator.dataset.test
    embeddings, present = evaluator.embed_source(evaluator.parallel.replicate(encoder.variables), test)
    query, gallery = evaluator.query_and_gallery(test)
    labels = np.where(present, test.labels, -1)
    return Inputs(
        embeddings,
        labels,
        test.cameras,
        query,
        gallery,
        evaluator.dataset.views,
        evaluator.dataset.protocols,
        config.evaluate.distance,
        functools.partial(evaluator.images, test),
        encoder.step,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.start(_measure, _parser(), arguments)


def _measure(options: argparse.Namespace) -> None:
    try:
        _run(_inputs(options), options)
    except (ValueError, TypeError) as error:  # what embeddings from anywhere do not fit
        raise UserError(str(error)) from error


def _inputs(options: argparse.Namespace) -> Inputs:
    chosen = {name: getattr(options, name) for name in ("step", "views", "feature", "data_dir")}
    if options.workdir:
        extras.require("evaluate --workdir", "train")
        consent = {"own_code": options.own_code, "strict": options.strict}
        return from_workdir(options.workdir, **chosen, distance=options.distance, **consent)
    if given := [name for name, value in chosen.items() if value is not None]:
        raise UserError(f"--{given[0]} needs the encoder and the images: use it with --workdir.")
    return from_npz(options.embeddings)


def _run(inputs: Inputs, options: argparse.Namespace) -> None:
    chosen = tuple(options.protocols or inputs.protocols)
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
        **rows,
    )
    if options.rerank or options.confidence or options.by or options.per_query or options.worst:
        closer = [name for name in chosen if name in ("class", "query_gallery")]
        if not closer:
            raise UserError(
                "--rerank, --confidence, --by, --per_query and --worst need class or query_gallery."
            )
        for name in closer:
            shown |= _closer(name, inputs, distance, options, alone=len(closer) == 1)
    settings = {"protocols": chosen, "distance": distance, "ties": options.ties}
    settings |= {} if inputs.step is None else {"weights of step": inputs.step}
    _report(shown, settings, options.json)
    for remark in matches.describe(inputs.labels, inputs.cameras, protocols=chosen, **rows):
        print(f"note: {remark}")


def _closer(
    name: str, inputs: Inputs, distance: Any, options: argparse.Namespace, *, alone: bool
) -> dict[str, Mapping[str, Any]]:
    """What stands behind the means of one protocol, re-ranked if asked for: intervals, tables, a file of queries."""
    paired = name == "query_gallery"
    rows: dict[str, Any] = {"query": inputs.query, "gallery": inputs.gallery} if paired else {}
    if options.rerank:
        settings = {"k1": options.k1, "k2": options.k2, "mixing": options.mixing}
        distance = KReciprocal(inputs.embeddings, distance=distance, **settings, **rows)
    cameras = inputs.cameras if paired else None
    results = rank_matches(
        inputs.embeddings, inputs.labels, cameras=cameras, distance=distance, ties=options.ties, **rows
    )
    if paired:
        values = definitions.query_gallery_values(results, options.ranks or definitions.RANKS)
    else:
        values = definitions.class_values(results, options.recall_at or definitions.RECALL_AT)
    title = f"{name}, re-ranked" if options.rerank else name
    labels = np.asarray(inputs.labels)[results.query]
    seen_by = None if inputs.cameras is None else np.asarray(inputs.cameras)[results.query]
    shown: dict[str, Mapping[str, Any]] = {title: means(values)} if options.rerank else {}
    if options.confidence:
        groups = labels if options.resample == "class" else None
        bounds = confidence_intervals(values, groups=groups, level=options.confidence, seed=options.seed)
        for place, side in enumerate(("low", "high")):
            shown[f"{title}, {options.confidence:.0%} {side}"] = {k: v[place] for k, v in bounds.items()}
    if options.by:
        groups = labels if options.by == "class" else seen_by
        if groups is None:
            raise UserError("--by=camera: the embeddings come without cameras.")
        table = by_group(values, groups)
        shown |= {f"{title}, {options.by} {group}": row for group, row in table.items()}
    if options.per_query:
        path = pathlib.Path(options.per_query)
        columns = {"row": results.query, "label": labels} | ({} if seen_by is None else {"camera": seen_by})
        columns |= {key: getattr(results, key) for key in ("matches", "first_rank", "last_rank")} | dict(
            values
        )
        _write_csv(path if alone else path.with_stem(f"{path.stem}_{name}"), columns)
    if options.worst:
        path = pathlib.Path(options.worst)
        lowest = results.query[worst(results.average_precision, _WORST_SHOWN)]
        _draw(
            path if alone else path.with_stem(f"{path.stem}_{name}"), inputs, lowest, cameras, distance, rows
        )
    return shown


def _draw(
    path: pathlib.Path,
    inputs: Inputs,
    lowest: np.ndarray,
    cameras: np.ndarray | None,
    distance: Any,
    rows: Mapping[str, Any],
) -> None:
    """Draws the worst queries and what they found instead."""
    if inputs.images is None:
        raise UserError("--worst: an .npz file holds no images; use --workdir.")
    if callable(distance):
        raise UserError("--worst shows plain neighbours; leave out --rerank.")
    from hap2s_jax.reporting.pictures import retrievals

    size = len(inputs.labels) if rows.get("gallery") is None else len(rows["gallery"])
    settings = {**rows, "query": lowest, "cameras": cameras, "distance": distance}
    found = nearest(inputs.embeddings, inputs.labels, k=min(_NEIGHBORS_SHOWN, size), **settings)
    lowest, found = lowest[(found >= 0).all(axis=1)], found[(found >= 0).all(axis=1)]
    if len(lowest) == 0:
        raise UserError("--worst: no query has a match, so none is the worst.")
    images = inputs.images(found.reshape(-1))
    retrievals(
        path,
        inputs.images(lowest),
        images.reshape(*found.shape, *images.shape[1:]),
        inputs.labels[found] == inputs.labels[lowest][:, None],
        title="The queries of lowest average precision, and what they found",
    )


def _write_csv(path: pathlib.Path, columns: Mapping[str, np.ndarray]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def _report(shown: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], path: str | None) -> None:
    for title, figures in list(shown.items())[:_SHOWN_TABLES]:
        print(title)
        for name, value in figures.items():
            counted = name.startswith("queries") or name.endswith(("_queries", "_queries_without_match"))
            print(f"  {name:<42}{value:>10.0f}" if counted else f"  {name:<42}{value:>10.4f}")
    if len(shown) > _SHOWN_TABLES:
        print(f"... and {len(shown) - _SHOWN_TABLES} tables more; --json=FILE writes all")
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    if path:
        # JSON knows no NaN; a mean over nothing is null.
        known = {
            title: {k: None if v != v else v for k, v in figures.items()} for title, figures in shown.items()
        }
        pathlib.Path(path).write_text(json.dumps({"settings": settings, **known}, indent=2) + "\n")


def _parser() -> cli.Parser:
    parser = cli.Parser("evaluate", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--embeddings", help="an .npz file")
    source.add_argument("--workdir", help="the workdir of a run")
    parser.add_argument(
        "--data_dir", help="where the data of --workdir lie here, if not where the run found them"
    )
    parser.add_switch(
        "own_code",
        default=False,
        help="import and run the code that --workdir's config names as its encoder; only for runs that you trust",
    )
    parser.add_strict()
    parser.add_argument(
        "--step", type=int, help="checkpoint of --workdir; unless given, what evaluate.weights names"
    )
    parser.add_argument(
        "--views",
        type=_names,
        help="of each image of --workdir, averaged: flip, five_crops, zooms, several with commas, or none; as the run "
        "had it",
    )
    parser.add_argument(
        "--feature", help="of --workdir: retrieval, embedding (before BNNeck) or features; as the run had it"
    )
    parser.add_argument(
        "--protocols", type=_names, help=f"comma-separated: {', '.join(definitions.PROTOCOLS)}"
    )
    parser.add_argument("--distance", choices=("euclidean", "cosine"))
    parser.add_argument("--ties", choices=TIES, default=TIES[0])
    parser.add_argument("--recall_at", type=_integers, help="k of recall@k, comma-separated")
    parser.add_argument("--ranks", type=_integers, help="k of rank-k, comma-separated")
    parser.add_switch("rerank", default=False, help="also rank by k-reciprocal neighbours")
    parser.add_argument("--k1", type=int, default=20)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--mixing", type=float, default=0.3, help="weight of the original distance")
    parser.add_argument("--expand", type=int, metavar="K", help="first expand every image by its K nearest")
    parser.add_argument("--alpha", type=float, default=3.0, help="power of the similarity in --expand")
    parser.add_argument(
        "--confidence", type=float, metavar="LEVEL", help="bootstrap intervals, for example 0.95"
    )
    parser.add_argument(
        "--resample", choices=("query", "class"), default="query", help="what the bootstrap draws"
    )
    parser.add_argument("--by", choices=("class", "camera"), help="a table of figures for each")
    parser.add_argument("--per_query", metavar="FILE", help="write every query's results to a CSV file")
    parser.add_argument("--worst", metavar="FILE", help="draw the worst queries of --workdir as a PNG file")
    parser.add_argument("--json", metavar="FILE", help="write all figures to a JSON file")
    parser.add_switch("cluster", default=True, help="k-means, for nmi, ami and f1")
    parser.add_argument("--repeats", type=int, default=10, help="galleries of single_gallery_shot")
    parser.add_argument("--seed", type=int, default=0, help="of k-means, galleries and the bootstrap")
    return parser


def _names(text: str) -> list[str]:
    return [] if text == "none" else [part.strip() for part in text.split(",")]


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers such as 1,5,10 are wanted, not {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
