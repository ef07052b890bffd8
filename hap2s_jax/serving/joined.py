"""Several files of embeddings as one gallery: parts of one (`hap2s_jax.embed --part`), or files of several folders."""

from __future__ import annotations

import glob
import itertools
import os
import pathlib
from typing import Any

import numpy as np

from hap2s_jax.data.places import local
from hap2s_jax.errors import UserError
from hap2s_jax.serving import vectors


def read(name: str | os.PathLike[str]) -> vectors.Vectors:
    """Reads a file that `hap2s_jax.embed` wrote, or all that a pattern such as "vectors-*.npz" names.

    Parts of one listing stand in its order, so that the result is what one machine would have written; other files in
    the order of their names. Classes of one name are one class.

    Raises:
      UserError: a file is missing, damaged, or of other weights than the first; or a part is missing or there twice.
    """
    pattern = str(local(name))
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return vectors.read(name)
    files = sorted(glob.glob(pattern))
    if not files:
        raise UserError(
            f"there are no files {os.fspath(name)}; python -m hap2s_jax.embed --part=1/2 makes one of two"
        )
    found = [(file, vectors.read(file)) for file in files]
    for file, gallery in found:
        _check_same(files[0], found[0][1].model, file, gallery.model)
    found.sort(key=lambda pair: _part(pair[1].model)[0])  # stable: files that are not parts keep their order
    _check_complete(found)
    galleries = [gallery for _, gallery in found]
    if len(galleries) == 1:
        return galleries[0]
    class_names = sorted(set().union(*(map(str, gallery.class_names) for gallery in galleries)))
    labels = []
    for gallery in galleries:
        number = (
            np.searchsorted(class_names, gallery.class_names)
            if len(gallery.class_names)
            else np.zeros(1, int)
        )
        labels.append(np.where(gallery.labels >= 0, number[gallery.labels], -1))
    cameras = None
    if any(gallery.cameras is not None for gallery in galleries):
        known = (np.full(len(g.paths), -1) if g.cameras is None else g.cameras for g in galleries)
        cameras = np.concatenate([*known])
    root, paths = _paths(galleries)
    return vectors.Vectors(
        np.concatenate([gallery.embeddings for gallery in galleries]),
        paths,
        np.concatenate(labels),
        np.array(class_names, str),
        {**galleries[0].model, "images": root, "count": len(paths), "part": None},
        cameras,
    )


def _check_same(first: str, expected: dict[str, Any], file: str, model: dict[str, Any]) -> None:
    for key in ("fingerprint", "distance"):
        if model.get(key) != expected.get(key):
            raise UserError(
                f"{file} was embedded with another encoder than {first}: its {key} is {model.get(key)!r}, and not "
                f"{expected.get(key)!r}; embed both with the same --workdir and --checkpoint"
            )


def _part(model: dict[str, Any]) -> tuple[int, int]:
    """(number, of how many) of a part of a listing; (0, 0) for a whole one."""
    number, _, count = str(model.get("part") or "0/0").partition("/")
    known = number.isdecimal() and count.isdecimal() and len(number + count) < 20
    return (int(number), int(count)) if known else (0, 0)


def _check_complete(found: list[tuple[str, vectors.Vectors]]) -> None:
    """Raises a UserError unless the parts of a listing are there once each."""
    there: dict[int, str] = {}
    counts = {count for _, gallery in found if (count := _part(gallery.model)[1])}
    if not counts:
        return
    for file, gallery in found:
        number, count = _part(gallery.model)
        if count != max(counts):
            raise UserError(f"{file} is not a part of {max(counts)}, unlike the other files; leave it out")
        if number in there:
            raise UserError(f"{file} and {there[number]} are both part {number} of {count}; name one of them")
        there[number] = file
    lacking = (number for number in range(1, max(counts) + 1) if number not in there)
    if missing := list(itertools.islice(lacking, 5)):
        raise UserError(
            f"of {max(counts)} parts number {', '.join(map(str, missing))} is missing; make it with "
            f"python -m hap2s_jax.embed --part={missing[0]}/{max(counts)}"
        )


def _paths(galleries: list[vectors.Vectors]) -> tuple[str, np.ndarray]:
    """The folder below which all images lie, and their paths relative to it."""
    roots = [str(gallery.model.get("images") or "") for gallery in galleries]
    if len(set(roots)) == 1:
        return roots[0], np.concatenate([gallery.paths for gallery in galleries])
    try:
        common = os.path.commonpath(roots)
    except ValueError as error:  # on different drives, or not absolute
        raise UserError(
            f"the images of these files have no folder in common: {', '.join(sorted(set(roots)))}"
        ) from error
    inside = [pathlib.PurePath(root).relative_to(common).as_posix() for root in roots]
    pairs = zip(inside, galleries, strict=True)
    return common, np.array(
        [(f"{folder}/{path}".removeprefix("./")) for folder, g in pairs for path in g.paths], str
    )
