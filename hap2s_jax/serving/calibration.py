"""The threshold of a run: calibrated on its validation classes, kept beside its checkpoints.

``thresholds.json`` holds the error rates over thresholds, and which weights they are of; ``thresholds.png`` draws them.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np

from hap2s_jax import formats
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation.thresholds import ErrorRates, error_rates
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.serving.trained import fingerprint

FILE_NAME = "thresholds.json"
PICTURE = "thresholds.png"


def calibrate(evaluator: Any, variables: Any, workdir: str | os.PathLike[str], step: int) -> ErrorRates:
    """Embeds the validation classes of a run and writes their error rates to `workdir`.

    Args:
      evaluator: the run's `Evaluator`.
      variables: of the encoder, ``{"params", "batch_stats"}``.
      workdir: where to write.
      step: of the checkpoint that the variables are of, for the record.

    Raises:
      UserError: the run set no validation classes aside, or they are too few.
    """
    source = evaluator.dataset.validation
    if source is None:
        raise UserError(
            "thresholds are calibrated on validation classes, and this run has none; set data.validation_fraction, or "
            "give --threshold=NUMBER"
        )
    embeddings, present = evaluator.embed_source(evaluator.parallel.replicate(variables), source)
    return from_embeddings(evaluator, variables, embeddings, present, workdir, step)


def from_embeddings(
    evaluator: Any,
    variables: Any,
    embeddings: np.ndarray,
    present: np.ndarray,
    workdir: str | os.PathLike[str],
    step: int,
) -> ErrorRates:
    """As `calibrate`, where the validation classes are embedded already."""
    from hap2s_jax.reporting.error_rates import error_rates as draw

    source, distance = evaluator.dataset.validation, evaluator.config.evaluate.distance
    labels = np.where(present, source.labels, -1)
    cameras = source.cameras if "query_gallery" in evaluator.dataset.protocols else None
    try:
        rates = error_rates(embeddings, labels, cameras, distance=distance)
    except ValueError as error:
        raise UserError(f"{source.name}: {error}") from error
    record = {
        "weights": fingerprint(variables, evaluator.config),
        "step": step,
        "distance": distance,
        "data": source.name,
        **rates.to_json(),
    }
    path = pathlib.Path(workdir)
    with replacing(path / FILE_NAME) as temporary:
        temporary.write_text(json.dumps(formats.stamped(record)) + "\n")
    draw(
        path / PICTURE,
        rates.thresholds,
        rates.false_accepts,
        rates.false_rejects,
        chosen=rates.equal(),
        distance=distance,
        title=f"Validation classes of {evaluator.dataset.name}: {rates.known:,} queries, {rates.gallery:,} images",
    )
    return rates


def read(workdir: str | os.PathLike[str], weights: str) -> ErrorRates | None:
    """The error rates in a working directory, None where there are none of these `weights` (a fingerprint).

    Raises:
      UserError: the file is damaged, or of a later version.
    """
    path = pathlib.Path(workdir) / FILE_NAME
    if not path.exists():
        return None
    try:
        record = formats.read(path)
        return ErrorRates.from_json(record) if record["weights"] == weights else None
    except formats.NewerFormatError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); make it again with python -m hap2s_jax.search --calibrate"
        ) from error
