"""The users' own images: a folder of class folders, or a CSV."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hap2s_jax.data import matches
from hap2s_jax.data.draws import permutation
from hap2s_jax.data.readers.files import FileSource, Parts, list_folders, name_others, walk_files
from hap2s_jax.data.readers.table import read_table
from hap2s_jax.errors import UserError

_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
_SPLITS |= {"test": "test", "query": "query", "gallery": "gallery", "database": "gallery"}


class _Rows:
    """Images of one part, as they are collected."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.classes: list[str] = []
        self.cameras: list[int] = []
        self.boxes: list[np.ndarray] = []

    def source(self, name: str, root: Path) -> FileSource:
        cameras = self.cameras if any(camera >= 0 for camera in self.cameras) else None  # below 0: not known
        return FileSource(
            name, root, self.paths, self.classes, cameras, np.array(self.boxes) if self.boxes else None
        )

    def join(self, other: _Rows) -> _Rows:
        both = _Rows()
        for field in vars(both):
            setattr(both, field, getattr(self, field) + getattr(other, field))
        return both


def read_folder(root: Path, *, test_fraction: float = 0.5, columns: str = "", seed: int = 0) -> Parts:
    """A folder with a folder of images per class, or a CSV file.

    Folders named train and test (or query and gallery), and perhaps validation, are taken for the split, with the
    classes inside them. Otherwise the classes are split by `test_fraction` and `seed`. An image may lie at any depth in
    its class's folder.

    Args:
      root: the folder, or a CSV file with the columns path, label and, as wished, split, camera, x1, y1, x2, y2.
      test_fraction: share of the classes to test on, where the data names no split.
      columns: what these columns are called in the CSV, see `read_table`.
      seed: which classes those are.

    Raises:
      UserError: there are no images, or too few classes to split, or the CSV is malformed.
    """
    if columns and not root.is_file():
        raise UserError(f"data.options.columns: {columns!r} is for a CSV file, and {root} is a folder")
    parts, remarks = _csv_rows(root, columns) if root.is_file() else _folder_rows(root)
    base = root.parent if root.is_file() else root
    if "all" in parts:
        parts = _split(parts["all"], root, test_fraction, seed)
    if "train" not in parts or not ("test" in parts or {"query", "gallery"} <= parts.keys()):
        raise UserError(
            f"{root}: needs a part named train, and one named test or the two named query and gallery"
        )
    train = parts["train"].source("own train", base)
    validation = parts["validation"].source("own validation", base) if "validation" in parts else None
    query = gallery = None
    if "test" in parts:
        test = parts["test"].source("own test", base)
    else:
        queries = len(parts["query"].paths)
        test = parts["query"].join(parts["gallery"]).source("own test", base)
        query, gallery = np.arange(queries), np.arange(queries, len(test))
    return _judged(train, validation, test, query, gallery, remarks)


def _judged(
    train: FileSource,
    validation: FileSource | None,
    test: FileSource,
    query: np.ndarray | None,
    gallery: np.ndarray | None,
    remarks: tuple[str, ...],
) -> Parts:
    """The parts with how they can be judged, and remarks on what cannot."""
    for source in (train, validation, test):
        if source is not None and matches.one_camera(source.cameras, source.labels):
            source.cameras = None
            remarks += (matches.ONE_CAMERA,) if source is test else ()
    if np.bincount(train.labels).max() == 1:
        remarks += (
            "no training class has two images: a batch repeats one, and only the random changes differ",
        )
    # Own images with queries or cameras are judged in both ways; validation classes have no queries.
    paired = query is not None or test.cameras is not None
    protocols = ("class", "query_gallery") if paired else ("class",)
    remarks += matches.describe(test.labels, test.cameras, query=query, gallery=gallery, protocols=protocols)
    return Parts(train, test, query, gallery, validation, protocols=protocols, remarks=remarks)


def _csv_rows(path: Path, columns: str) -> tuple[dict[str, _Rows], tuple[str, ...]]:
    """The rows of a CSV by part ("all" without a split column), and remarks."""
    table = read_table(path, columns)
    parts: dict[str, _Rows] = {}
    for n, line in enumerate(table.lines):
        split = table.splits[n].lower()
        name = _SPLITS.get(split, "") if table.has_split else "all"
        if not name:
            raise UserError(
                f"{path}, line {line}: split must be one of {', '.join(_SPLITS)}, found {split!r}"
            )
        rows = parts.setdefault(name, _Rows())
        rows.paths.append(table.paths[n])
        rows.classes.append(table.labels[n])
        if table.cameras is not None:
            rows.cameras.append(int(table.cameras[n]))
        if table.boxes is not None:
            rows.boxes.append(table.boxes[n])
    return parts, table.remarks


def _folder_rows(root: Path) -> tuple[dict[str, _Rows], tuple[str, ...]]:
    """The images by part, and what was left out."""
    names = list_folders(root)
    by_part = {_SPLITS[n.lower()]: n for n in names if n.lower() in _SPLITS}
    # A class may well be called "test"; only together are the names a split.
    if "train" in by_part and ("test" in by_part or {"query", "gallery"} <= by_part.keys()):
        folders = by_part
    else:
        folders = {"all": ""}
    parts, loose, others, direct = {part: _Rows() for part in folders}, [], [], 0
    for part, folder in folders.items():
        images, beside = walk_files(root / folder)
        others += [other for other in beside if "/" in other]
        for path in images:
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
    remarks = name_others(others)
    # Images that all lie deeper lie in folders of something else than classes.
    if not direct:
        raise UserError(
            f"{root}: found no image in a folder of its own class, such as {root}/CLASS/IMAGE.jpg"
            + "".join(f"; {remark}" for remark in remarks)
        )
    if loose:
        remarks += (
            f"{len(loose):,} images lie in no folder of a class and are left out, such as {loose[0]}",
        )
    return parts, remarks


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
