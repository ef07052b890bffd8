"""The threshold of a run: calibrated on validation classes or other labelled images, kept beside its checkpoints.

``thresholds.json`` holds the error rates over thresholds, and which weights they are of; ``thresholds.png`` draws them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hap2s_jax import formats
from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError, reason
from hap2s_jax.evaluation.thresholds import ErrorRates, error_rates
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.serving.trained import fingerprint

if TYPE_CHECKING:
    from hap2s_jax.data.source import Source
    from hap2s_jax.run.config import Config
    from hap2s_jax.run.evaluator import Evaluator

PyTree = Any

FILE_NAME = "thresholds.json"
PICTURE = "thresholds.png"


def calibrate(
    evaluator: Evaluator,
    variables: PyTree,
    workdir: str | os.PathLike[str],
    step: int,
    *,
    with_test: bool = False,
) -> ErrorRates:
    """Embeds the validation classes of a run and writes their error rates to `workdir`.

    Args:
      evaluator: the run's.
      variables: of the encoder, ``{"params", "batch_stats"}``.
      workdir: where to write.
      step: of the checkpoint that the variables are of, for the record.
      with_test: whether test classes are taken too, whose figures are then no longer held out.

    Raises:
      UserError: the run set no validation classes aside, or they are too few.
    """
    data, found = evaluator.dataset, []
    if data.validation is None and not with_test:
        raise UserError(
            "thresholds are calibrated on validation classes, and this run has none; set data.validation_fraction, "
            "calibrate on images of your own with --gallery=FILE, or give --threshold=NUMBER"
        )
    placed = evaluator.parallel.replicate(variables)
    for source in (data.validation, data.test if with_test else None):
        if source is not None:
            found.append(Labelled.of_source(evaluator, source, *evaluator.embed_source(placed, source)))
    name = "validation and test classes" if with_test else "validation classes"
    return write(Labelled.joined(found), evaluator.config, variables, workdir, step, f"{name} of {data.name}")


class Labelled(NamedTuple):
    """Embeddings to calibrate on: `[n, d]`, labels `[n]`, -1 for junk, and cameras `[n]` or None."""

    embeddings: np.ndarray
    labels: np.ndarray
    cameras: np.ndarray | None

    @classmethod
    def of_source(
        cls, evaluator: Evaluator, source: Source, embeddings: np.ndarray, present: np.ndarray
    ) -> Labelled:
        """The embeddings of a run's own images, without those that could not be read (not `present` [n])."""
        cameras = source.cameras if "query_gallery" in evaluator.dataset.protocols else None
        return cls(embeddings, np.where(present, source.labels, -1), cameras)

    @classmethod
    def joined(cls, parts: Sequence[Labelled]) -> Labelled:
        """Joins parts; no two of them have a class in common."""
        labels, before = [], 0
        for part in parts:
            labels.append(np.where(part.labels < 0, -1, part.labels + before))
            before += int(part.labels.max()) + 1
        cameras = [part.cameras for part in parts if part.cameras is not None]
        known = np.concatenate(cameras) if len(cameras) == len(parts) else None
        return cls(np.concatenate([part.embeddings for part in parts]), np.concatenate(labels), known)


def write(
    images: Labelled,
    config: Config,
    variables: PyTree,
    workdir: str | os.PathLike[str],
    step: int,
    data: str,
) -> ErrorRates:
    """Writes the error rates of labelled embeddings to `workdir`; `data` says in words what they are of."""
    from hap2s_jax.reporting.error_rates import error_rates as draw

    distance = config.evaluate.distance
    try:
        rates = dataclasses.replace(error_rates(*images, distance=distance), data=data)
    except ValueError as error:
        raise UserError(f"{data}: {error}") from error
    record = {
        "weights": fingerprint(variables, config),
        "step": step,
        "distance": distance,
        **rates.to_json(),
    }
    path = place(workdir)
    with replacing(path / FILE_NAME) as temporary:
        temporary.write_text(json.dumps(formats.stamped(record)) + "\n")
    draw(
        path / PICTURE,
        rates.thresholds,
        rates.false_accepts,
        rates.false_rejects,
        chosen=rates.default(),
        distance=distance,
        title=f"{data[:1].upper()}{data[1:]}: {rates.known:,} queries of {rates.known_classes:,} classes",
    )
    return rates


def read(workdir: str | os.PathLike[str], weights: str) -> ErrorRates | None:
    """The error rates in a working directory, None if there are none for these `weights` (a fingerprint).

    Older files, without counts of classes, are ignored.

    Raises:
      UserError: the file is damaged, or of a later version.
    """
    path = place(workdir) / FILE_NAME
    if not path.exists():
        return None
    try:
        record = formats.read(path)
        if record["weights"] != weights or "known_classes" not in record:
            return None
        return ErrorRates.from_json(record)
    except formats.NewerFormatError:
        raise
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path} is damaged ({reason(error)}); make it again with python -m hap2s_jax.search --calibrate"
        ) from error
