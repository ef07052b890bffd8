"""The users' own images: a folder of class folders, or a CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from hap2s_jax.data.draws import permutation
from hap2s_jax.data.readers.files import FileSource, Parts, list_folders, walk_images
from hap2s_jax.errors import UserError

_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
_SPLITS |= {"test": "test", "query": "query", "gallery": "gallery"}
_BOX = ("x1", "y1", "x2", "y2")


class _Rows:
    """Images of one part, as they are collected."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.classes: list[str] = []
        self.cameras: list[int] = []
        self.boxes: list[list[int]] = []

    def source(self, name: str, root: Path) -> FileSource:
        cameras = self.cameras if any(camera >= 0 for camera in self.cameras) else None  # -1: not known
        return FileSource(
            name, root, self.paths, self.classes, cameras, np.array(self.boxes) if self.boxes else None
        )

    def join(self, other: _Rows) -> _Rows:
        both = _Rows()
        for field in vars(both):
            setattr(both, field, getattr(self, field) + getattr(other, field))
        return both


def read_folder(root: Path, *, test_fraction: float = 0.5, seed: int = 0) -> Parts:
    """A folder with a folder of images per class, or a CSV file.

    Folders named train and test (or query and gallery), and perhaps validation, are taken for the split, with the
    classes inside them. Otherwise the classes are split by `test_fraction` and `seed`. An image may lie at any depth in
    its class's folder.

    Args:
      root: the folder, or a CSV file with the columns path, label and, as wished, split, camera, x1, y1, x2, y2.
      test_fraction: share of the classes to test on, where the data names no split.
      seed: which classes those are.

    Raises:
      UserError: there are no images, or too few classes to split, or the CSV is malformed.
    """
    try:
        parts, remarks = (read_csv_rows(root), ()) if root.is_file() else _folder_rows(root)
    except csv.Error as error:
        raise UserError(f"{root} is no CSV file: {error}") from None
    base = root.parent if root.is_file() else root
    if "all" in parts:
        parts = _split(parts["all"], root, test_fraction, seed)
    if "train" not in parts or not ("test" in parts or {"query", "gallery"} <= parts.keys()):
        raise UserError(
            f"{root}: needs a part named train, and one named test or the two named query and gallery"
        )
    train = parts["train"].source("own train", base)
    validation = parts["validation"].source("own validation", base) if "validation" in parts else None
    if "test" in parts:
        test = parts["test"].source("own test", base)
        return Parts(train, test, validation=validation, remarks=remarks)
    queries = len(parts["query"].paths)
    test = parts["query"].join(parts["gallery"]).source("own test", base)
    query, gallery = np.arange(queries), np.arange(queries, len(test))
    return Parts(train, test, query, gallery, validation, remarks=remarks)


def read_csv_rows(path: Path) -> dict[str, _Rows]:
    """The rows of a CSV by part ("all" without a split column); paths are relative to the CSV's folder."""
    parts: dict[str, _Rows] = {}
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        columns = [c.strip().lower() for c in reader.fieldnames or ()]
        reader.fieldnames = columns
        if not {"path", "label"} <= set(columns):
            raise UserError(f"{path}: needs the columns path and label, found {', '.join(columns) or 'none'}")
        has_boxes = set(_BOX) <= set(columns)
        for number, row in enumerate(reader, start=2):
            split = (row.get("split") or "").strip().lower()
            name = _SPLITS.get(split, "") if "split" in columns else "all"
            if not name:
                raise UserError(
                    f"{path}, line {number}: split must be one of {', '.join(_SPLITS)}, found {split!r}"
                )
            rows = parts.setdefault(name, _Rows())
            try:
                rows.paths.append((row["path"] or "").strip())
                rows.classes.append((row["label"] or "").strip())
                if "camera" in columns:
                    rows.cameras.append(_int32(int(row["camera"])))
                if has_boxes:
                    rows.boxes.append([_int32(round(float(row[c]))) for c in _BOX])
            except (TypeError, ValueError, OverflowError):
                raise UserError(
                    f"{path}, line {number}: camera and box must be numbers of at most 32 bits, found {row}"
                ) from None
            if not rows.paths[-1] or not rows.classes[-1]:
                raise UserError(f"{path}, line {number}: path and label must not be empty")
    if not parts:
        raise UserError(f"{path}: has no rows")
    return parts


def _int32(number: int) -> int:
    if not -(2**31) <= number < 2**31:
        raise OverflowError
    return number


def _folder_rows(root: Path) -> tuple[dict[str, _Rows], tuple[str, ...]]:
    """The images by part, and what was left out."""
    names = list_folders(root)
    by_part = {_SPLITS[n.lower()]: n for n in names if n.lower() in _SPLITS}
    # A class may well be called "test"; only together are the names a split.
    if "train" in by_part and ("test" in by_part or {"query", "gallery"} <= by_part.keys()):
        folders = by_part
    else:
        folders = {"all": ""}
    parts, loose, direct = {part: _Rows() for part in folders}, [], 0
    for part, folder in folders.items():
        for path in walk_images(root / folder):
            path = f"{folder}/{path}" if folder else path
            if not (root / path).is_file():  # a link that leads nowhere
                continue
            name, *inside = path.split("/")[bool(folder) :]
            if inside:
                parts[part].paths.append(path)
                parts[part].classes.append(name)
            else:
                loose.append(path)
            direct += len(inside) == 1
    # Images that all lie deeper lie in folders of something else than classes.
    if not direct:
        raise UserError(
            f"{root}: found no image in a folder of its own class, such as {root}/CLASS/IMAGE.jpg"
        )
    if not loose:
        return parts, ()
    return parts, (f"{len(loose):,} images lie in no folder of a class and are left out, such as {loose[0]}",)


def _split(rows: _Rows, root: Path, test_fraction: float, seed: int) -> dict[str, _Rows]:
    classes = sorted(set(rows.classes))
    tested = round(len(classes) * test_fraction)
    if not 0 < test_fraction < 1 or min(tested, len(classes) - tested) < 2:
        raise UserError(
            f"data.options.test_fraction: {test_fraction} of the {len(classes)} classes in {root} must leave at least "
            "two classes to train on and two to test on"
        )
    chosen = {classes[i] for i in permutation(len(classes), seed)[:tested]}
    parts = {"train": _Rows(), "test": _Rows()}
    for i, c in enumerate(rows.classes):
        part = parts["test" if c in chosen else "train"]
        for field, values in vars(rows).items():
            if values:
                getattr(part, field).append(values[i])
    return parts
