"""Embeddings in a file, so that people with another framework can use the metrics too."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable

import numpy as np

from hap2s_jax import formats
from hap2s_jax.data.places import place
from hap2s_jax.data.readers.dialects import read_text
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation.inputs import DISTANCES
from hap2s_jax.evaluation.stored import DamagedError, check_labels, read_model, read_npz

SPLITS = ("query", "gallery", "both", "views")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Embeddings to evaluate, from any source; rows are None if every image is query and gallery.

    Attributes:
      images: rows -> uint8 `[n, h, w, 3]`, where there are any.
      step: the checkpoint that the embeddings are of, where it is one.
      name: of the data set.
      others: further data sets that the same encoder is judged on.
      remarks: lines on the data set, such as which split it is and what was left out.
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
    name: str = ""
    others: tuple[Inputs, ...] = ()
    remarks: tuple[str, ...] = ()


def from_npz(path: str) -> Inputs:
    """Reads an .npz file of `embeddings [n, d]`, `labels [n]` and, where there are any, `cameras [n]` and `split [n]`.

    `split` is text out of SPLITS. With cameras or a split the protocol is query_gallery, else class. Distances are
    Euclidean unless the file was written by `hap2s_jax.embed` with an encoder that compares by another.

    Raises:
      UserError: naming the file and what it lacks; or a later version of `hap2s_jax.embed` wrote it.
    """
    try:
        arrays = read_npz(place(path), ("embeddings", "labels"), ("cameras", "split"))
    except FileNotFoundError as error:
        raise UserError(f"--embeddings: there is no file {path}.") from error
    except KeyError as error:
        name = error.args[0]
        raise UserError(
            f"--embeddings: {path} has no array {name!r}; save with numpy.savez(path, {name}=...)."
        ) from error
    except (OSError, DamagedError) as error:
        raise UserError(
            f"--embeddings: {path} is not an .npz file of plain arrays, as numpy.savez writes it ({error})."
        ) from error
    check_labels(arrays["labels"], None, path)
    distance = _distance(path, arrays["labels"])
    query = gallery = views = None
    if "split" in arrays:
        split = arrays["split"].astype(str)
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


def _distance(path: str, labels: np.ndarray) -> str:
    """The distance that `hap2s_jax.embed` wrote beside its embeddings; Euclidean for other files.

    Files of `hap2s_jax.embed` are checked as `hap2s_jax.search` checks them: their labels are numbers of their classes.
    """
    try:
        found = read_npz(place(path), ("model",), ("class_names",))
        chosen = read_model(found["model"], path)["distance"]
    except formats.NewerFormatError:
        raise
    except (ValueError, KeyError):  # no such entry, or not one of ours
        return DISTANCES[0]
    if "class_names" in found:
        check_labels(labels, found["class_names"], path)
    return chosen if chosen in DISTANCES else DISTANCES[0]


def read_pairs(path: str) -> np.ndarray:
    """Reads pairs of rows, int `[p, 2 or 3]`: the array `pairs` of an .npz file, or a CSV.

    A CSV has two columns of row numbers and, as wished, one of 1 for a pair of one class and 0 for others; its first
    line may name them.

    Raises:
      UserError: naming the file and the line.
    """
    try:
        if path.lower().endswith(".npz"):
            return read_npz(place(path), ("pairs",))["pairs"]
        lines = list(csv.reader(read_text(place(path)).splitlines()))
    except KeyError:
        raise UserError(
            f"--pairs: {path} has no array 'pairs'; save with numpy.savez(path, pairs=...)."
        ) from None
    except UserError as error:
        raise UserError(f"--pairs: {error}") from None
    except (OSError, DamagedError, csv.Error) as error:
        raise UserError(f"--pairs: {path} cannot be read: {error}.") from None
    pairs: list[list[int]] = []
    for number, line in enumerate(lines, 1):
        try:
            pairs += [[int(cell) for cell in line]] if any(cell.strip() for cell in line) else []
            if pairs and (
                len(pairs[-1]) not in (2, 3)
                or len(pairs[-1]) != len(pairs[0])
                or max(map(abs, pairs[-1])) >= 2**31
            ):
                raise ValueError
        except ValueError:
            if number > 1 or pairs:
                raise UserError(
                    f"--pairs: {path}, line {number}: should be two row numbers, or these and 1 or 0, found "
                    f"{','.join(line)!r}."
                ) from None
    return np.array(pairs, int).reshape(len(pairs), -1)
