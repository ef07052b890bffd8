"""Details behind the means of one protocol, for `hap2s_jax.evaluate`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

import numpy as np

from hap2s_jax.errors import UserError
from hap2s_jax.evaluation import pairs, protocols
from hap2s_jax.evaluation.archive import Inputs
from hap2s_jax.evaluation.reranking import KReciprocal
from hap2s_jax.evaluation.retrieval import nearest, rank_matches
from hap2s_jax.evaluation.statistics import by_group, confidence_intervals, means, worst
from hap2s_jax.reporting.atomic import replacing

_WORST_SHOWN, _NEIGHBORS_SHOWN = 12, 10


def closer(
    name: str, inputs: Inputs, distance: Any, options: Any
) -> dict[str, Mapping[str, Any]]:  # a name or a function; flags; figures and intervals
    """Intervals, tables, a file of queries and a picture of the worst, re-ranked if asked for.

    Args:
      name: "class" or "query_gallery".
      inputs: what is evaluated.
      distance: how embeddings are compared.
      options: the command's.

    Returns:
      Tables of figures by their titles.

    Raises:
      UserError: an option asks for what the inputs do not have.
    """
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
        values = protocols.query_gallery_values(results, options.ranks or protocols.RANKS)
    else:
        values = protocols.class_values(results, options.recall_at or protocols.RECALL_AT)
    title = f"{name}, re-ranked" if options.rerank else name
    labels = np.asarray(inputs.labels)[results.query]
    seen_by = None if inputs.cameras is None else np.asarray(inputs.cameras)[results.query]
    shown: dict[str, Mapping[str, Any]] = {title: means(values)} if options.rerank else {}
    if options.confidence:
        groups = labels if options.resample == "class" else None
        bounds = confidence_intervals(values, groups=groups, level=options.confidence, seed=options.seed)
        for end, side in enumerate(("low", "high")):
            shown[f"{title}, {options.confidence:.0%} {side}"] = {k: v[end] for k, v in bounds.items()}
    if options.by:
        groups = labels if options.by == "class" else seen_by
        if groups is None:
            raise UserError("--by=camera: the embeddings come without cameras.")
        table = by_group(values, groups)
        shown |= {f"{title}, {options.by} {group}": row for group, row in table.items()}
    if options.per_query:
        columns = {"row": results.query, "label": labels} | ({} if seen_by is None else {"camera": seen_by})
        columns |= {key: getattr(results, key) for key in ("matches", "first_rank", "last_rank")} | dict(
            values
        )
        _write_csv(options.per_query, columns)
    if options.worst:
        lowest = results.query[worst(results.average_precision, _WORST_SHOWN)]
        _draw(options.worst, inputs, lowest, cameras, distance, rows)
    return shown


def _draw(
    path: str,
    inputs: Inputs,
    lowest: np.ndarray,
    cameras: np.ndarray | None,
    distance: Any,  # a name or a function
    rows: Mapping[str, Any],  # arguments of `nearest`
) -> None:
    """Draws the worst queries and what they found instead."""
    if inputs.images is None:
        raise UserError("--worst: an .npz file holds no images; use --workdir.")
    if callable(distance):
        raise UserError("--worst shows plain neighbours; leave out --rerank.")
    from hap2s_jax.reporting.pictures import retrievals

    size = len(inputs.labels) if rows.get("gallery") is None else len(rows["gallery"])
    # Arguments of `nearest`.
    settings: dict[str, Any] = {**rows, "query": lowest, "cameras": cameras, "distance": distance}
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


def _write_csv(path: str, columns: Mapping[str, np.ndarray]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def draw_roc(
    path: str, inputs: Inputs, distance: str, chosen: np.ndarray | None, *, level: float, seed: int
) -> None:
    """Draws the ROC curve of all pairs of images, or of the `chosen` ones, with intervals by class."""
    from hap2s_jax.reporting.error_rates import roc_curve

    given = inputs.embeddings, inputs.labels, chosen
    curve = pairs.roc(*given, distance=distance)
    bands = pairs.intervals(*given, distance=distance, level=level, seed=seed)
    words = ", ".join(
        f"{name} {value:.4f}" for name, value in curve.figures().items() if name in ("auc", "eer")
    )
    roc_curve(path, curve.far, curve.tar, bands=bands, level=level, title=f"Verification: {words}")
