"""Embeddings in a file, so that people with another framework can use the metrics too."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from hap2s_jax import formats
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation.inputs import DISTANCES

SPLITS = ("query", "gallery", "both", "views")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is evaluated, wherever it came from; rows are None where every image asks and answers.

    Attributes:
      images: rows -> uint8 `[n, h, w, 3]`, where there are any.
      step: the checkpoint that the embeddings are of, where it is one.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    cameras: np.ndarray | None
    query: np.ndarray | None
    gallery: np.ndarray | None
    views: np.ndarray | None
    protocols: tuple[str, ...]
    distance: str
    images: Callable[[np.ndarray], np.ndarray] | None = None
    step: int | None = None


def from_npz(path: str) -> Inputs:
    """Reads an .npz file of `embeddings [n, d]`, `labels [n]` and, where there are any, `cameras [n]` and `split [n]`.

    `split` is text out of SPLITS. With cameras or a split the protocol is query_gallery, else class. Distances are
    Euclidean unless the file was written by `hap2s_jax.embed` with an encoder that compares by another.

    Raises:
      UserError: naming the file and what it lacks; or a later version of `hap2s_jax.embed` wrote it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {
                name: file[name]
                for name in file.files
                if name in ("embeddings", "labels", "cameras", "split")
            }
            distance = _distance(file, path)
    except formats.NewerFormatError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"--embeddings: there is no file {path}.") from error
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, TypeError, EOFError) as error:
        raise UserError(
            f"--embeddings: {path} is not an .npz file of plain arrays, as numpy.savez writes it ({error})."
        ) from error
    for name in ("embeddings", "labels"):
        if name not in arrays:
            raise UserError(
                f"--embeddings: {path} has no array {name!r}; save with numpy.savez(path, {name}=...)."
            )
    query = gallery = views = None
    if "split" in arrays:
        split = arrays["split"].astype(str)
        if split.shape != (len(arrays["embeddings"]),):
            raise UserError(f"--embeddings: split in {path} must have one entry for each embedding.")
        strange = sorted(set(split) - set(SPLITS))
        if strange:
            raise UserError(
                f"--embeddings: split in {path} holds {str(strange[0])!r}; it may hold {', '.join(SPLITS)}."
            )
        query = np.flatnonzero((split == "query") | (split == "both"))
        gallery = np.flatnonzero((split == "gallery") | (split == "both"))
        views = np.flatnonzero(split == "views") if (split == "views").any() else None
    paired = "split" in arrays or "cameras" in arrays
    return Inputs(
        arrays["embeddings"],
        arrays["labels"],
        arrays.get("cameras"),
        query,
        gallery,
        views,
        ("query_gallery",) if paired else ("class",),
        distance,
    )


def _distance(file: Mapping[str, np.ndarray], path: str) -> str:
    """What `hap2s_jax.embed` says, in the JSON that it keeps beside its embeddings, that they are compared by."""
    try:
        model = json.loads(str(file["model"]))
        chosen = (formats.upgraded(model, path) if "fingerprint" in model else model)["distance"]
    except formats.NewerFormatError:
        raise
    except (ValueError, KeyError, TypeError):  # no such entry, or one of somebody else's
        return DISTANCES[0]
    return chosen if chosen in DISTANCES else DISTANCES[0]
