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
# What animal data sets write for an individual that nobody recognised.
_UNKNOWN = ("unknown", "unidentified", "new_individual", "nan")
_OF_UNKNOWN = ("junk", "open_set", "class")
_NO_SPLIT = "no split"
_KINDS = ("auto", "disjoint", "closed")


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

    def where(self, kept: list[bool]) -> _Rows:
        chosen = _Rows()
        for field, values in vars(self).items():
            setattr(
                chosen, field, [v for v, keep in zip(values, kept, strict=True) if keep] if values else []
            )
        return chosen

    def join(self, other: _Rows) -> _Rows:
        both = _Rows()
        for field in vars(both):
            setattr(both, field, getattr(self, field) + getattr(other, field))
        return both


def read_folder(
    root: Path,
    *,
    test_fraction: float = 0.5,
    columns: str = "",
    split: str = "auto",
    unknown: str = "junk",
    seed: int = 0,
) -> Parts:
    """A folder with a folder of images per class, or a CSV file.

    Folders named train and test (or query and gallery, also called database), and perhaps validation, are taken for
    the split, with the classes inside them. With query and gallery alone the gallery is trained on too. Otherwise the
    classes are split by `test_fraction` and `seed`. An image may lie at any depth in its class's folder.

    Args:
      root: the folder, or a CSV file with the columns path, label and, as wished, split, camera, x1, y1, x2, y2.
      test_fraction: share of the classes to test on, where the data names no split; 1 is for data that are not trained
        on, and gives them as both parts.
      columns: what these columns are called in the CSV, see `read_table`.
      split: "disjoint": test classes are not trained on. "closed": test images ask the gallery, or without one the
        training and validation images, for their individual (protocol closed_set). "auto": closed where at least half
        of the test classes have training or validation images.
      unknown: images labelled "unknown" and the like, and in a closed split test images of individuals that are not in
        the database: "junk" leaves them out, "open_set" asks them as queries of unknown classes, "class" takes those
        labelled so for a class like any other.
      seed: which classes those are.

    Raises:
      UserError: there are no images, or too few classes to split, or the CSV is malformed.
    """
    if columns and not root.is_file():
        raise UserError(f"data.options.columns: {columns!r} is for a CSV file, and {root} is a folder")
    for name, value, known in (("split", split, _KINDS), ("unknown", unknown, _OF_UNKNOWN)):
        if value not in known:
            raise UserError(f"data.options.{name}: must be one of {', '.join(known)}, found {value!r}")
    parts, remarks = _csv_rows(root, columns) if root.is_file() else _folder_rows(root)
    base = root.parent if root.is_file() else root
    parts, strangers, more = _take_out_unknown(parts, unknown)
    remarks += more
    if "all" in parts and test_fraction == 1:
        parts, split = {"train": parts["all"], "test": parts["all"]}, "disjoint"
    elif "all" in parts:
        parts = _split(parts["all"], root, test_fraction, seed)
    if "train" not in parts and {"query", "gallery"} <= parts.keys():
        parts["train"] = parts["gallery"]
    if "train" not in parts or not parts.keys() & {"test", "query"}:
        raise UserError(
            f"{root}: needs a part named train, and one named test or the two named query and gallery"
        )
    train = parts["train"].source("own train", base)
    validation = parts["validation"].source("own validation", base) if "validation" in parts else None
    known = parts["train"].join(parts.get("validation", _Rows()))
    asking, database = parts.get("test", parts.get("query", _Rows())), parts.get("gallery")
    database = None if "test" in parts else database
    seen, classes = {*asking.classes} & {*known.classes}, {*asking.classes}
    if split == "closed" or (split == "auto" and 2 * len(seen) >= len(classes) and seen):
        asking, line = _known_only(asking, database or known, unknown, given=database is not None)
        remarks += (line,)
        protocols = ("closed_set",) if database is None else ("class", "query_gallery", "closed_set")
        database = database or known
    elif database is None and "query" in parts:
        raise UserError(
            f"{root}: has queries of unseen classes, and no part named gallery that they could ask"
        )
    else:
        protocols = None
    if (strangers.paths and database is not None) or (protocols and unknown == "open_set"):
        protocols = (*(protocols or ("class", "query_gallery")), "open_set")
        asking = asking.join(strangers)
    query = gallery = None
    if database is not None:
        query, gallery = np.split(np.arange(len(asking.paths) + len(database.paths)), [len(asking.paths)])
        asking = asking.join(database)
    return _judged(train, validation, asking.source("own test", base), query, gallery, protocols, remarks)


def _take_out_unknown(
    parts: dict[str, _Rows], unknown: str
) -> tuple[dict[str, _Rows], _Rows, tuple[str, ...]]:
    """The parts without images of unknown individuals; those of them that can be queries; and remarks."""
    strangers, kept, dropped = _Rows(), {}, 0
    for name, rows in parts.items():
        nobody = [c.strip().lower() in _UNKNOWN and unknown != "class" for c in rows.classes]
        if name not in ("train", "validation", "gallery") and unknown == "open_set":
            strangers = strangers.join(rows.where(nobody))
        else:
            dropped += sum(nobody)
        if not all(nobody):
            kept[name] = rows.where([not n for n in nobody])
    lines = []
    if dropped:
        lines.append(
            f"{dropped:,} images are of an unknown individual and are left out; data.options.unknown=open_set asks "
            "those that are for testing, as queries that nothing answers"
        )
    if rest := kept.pop(_NO_SPLIT, None):
        lines.append(f"{len(rest.paths):,} images name no split and are left out, such as {rest.paths[0]}")
    return kept, strangers, tuple(lines)


def _known_only(asking: _Rows, database: _Rows, unknown: str, *, given: bool) -> tuple[_Rows, str]:
    """The queries of a closed split, and a line that says how they are judged."""
    inside = {*database.classes}
    classes = {*asking.classes}
    strange = classes - inside
    what = "gallery" if given else "training or validation"
    line = (
        f"{len(classes & inside):,} of the {len(classes):,} test classes have {what} images too: "
        f"{'an open' if strange else 'a closed'} split, so each test image asks those {len(database.paths):,}"
    )
    if not strange:
        return asking, f"{line} (protocol closed_set; data.options.split=disjoint judges otherwise)"
    if unknown == "open_set":
        return asking, f"{line}; images of the other classes should find nothing (protocol open_set)"
    kept = [c in inside for c in asking.classes]
    return asking.where(kept), (
        f"{line}; {kept.count(False):,} images of the other classes are left out (data.options.unknown=open_set asks "
        "them too)"
    )


def _judged(
    train: FileSource,
    validation: FileSource | None,
    test: FileSource,
    query: np.ndarray | None,
    gallery: np.ndarray | None,
    protocols: tuple[str, ...] | None,
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
    protocols = protocols or (("class", "query_gallery") if paired else ("class",))
    remarks += matches.describe(test.labels, test.cameras, query=query, gallery=gallery, protocols=protocols)
    return Parts(train, test, query, gallery, validation, protocols=protocols, remarks=remarks)


def _csv_rows(path: Path, columns: str) -> tuple[dict[str, _Rows], tuple[str, ...]]:
    """The rows of a CSV by part ("all" without a split column), and remarks."""
    table = read_table(path, columns)
    parts: dict[str, _Rows] = {}
    for n, line in enumerate(table.lines):
        split = table.splits[n].lower()
        name = _SPLITS.get(split, "" if split else _NO_SPLIT) if table.has_split else "all"
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
