"""The users' own images, from rows to parts: split, unknown individuals, possible protocols."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hap2s_jax.data import matches
from hap2s_jax.data.draws import permutation
from hap2s_jax.data.readers.files import FileSource, Parts
from hap2s_jax.data.readers.table import Table
from hap2s_jax.errors import UserError

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
SPLITS |= {"test": "test", "query": "query", "gallery": "gallery", "database": "gallery"}
# Labels that animal data sets give to unrecognised individuals.
_UNKNOWN = ("", "?", "unknown", "unidentified", "new_individual", "nan", "n/a")
_OF_UNKNOWN = ("junk", "open_set", "class")
NO_SPLIT = "no split"
_KINDS = ("auto", "disjoint", "closed")


class Rows:
    """Images of one part, as they are collected."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.classes: list[str] = []
        self.cameras: list[int] = []
        self.boxes: list[np.ndarray] = []
        self.numbers: list[int] = []  # of rows of a table

    def source(self, name: str, root: Path | str, make: Callable[..., FileSource] = FileSource) -> FileSource:
        """The images, by a class with `FileSource`'s arguments."""
        cameras = self.cameras if any(camera >= 0 for camera in self.cameras) else None  # below 0: not known
        boxes = np.array(self.boxes) if self.boxes else None
        return make(name, root, self.paths, self.classes, cameras, boxes)

    def where(self, kept: list[bool]) -> Rows:
        """The rows to keep."""
        chosen = Rows()
        for field, values in vars(self).items():
            setattr(
                chosen, field, [v for v, keep in zip(values, kept, strict=True) if keep] if values else []
            )
        return chosen

    def join(self, other: Rows) -> Rows:
        """These rows followed by others."""
        both = Rows()
        for field in vars(both):
            setattr(both, field, getattr(self, field) + getattr(other, field))
        return both


def rows_of_table(table: Table, where: Path | str) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The rows of a table by part ("all" without a split column), and remarks."""
    parts: dict[str, Rows] = {}
    for n, line in enumerate(table.lines):
        split = table.splits[n].lower()
        name = SPLITS.get(split, "" if split else NO_SPLIT) if table.has_split else "all"
        if not name:
            raise UserError(
                f"{where}, line {line}: split must be one of {', '.join(SPLITS)}, found {split!r}"
            )
        rows = parts.setdefault(name, Rows())
        rows.paths.append(table.paths[n])
        rows.classes.append(table.labels[n])
        rows.numbers.append(n)
        if table.cameras is not None:
            rows.cameras.append(int(table.cameras[n]))
        if table.boxes is not None:
            rows.boxes.append(table.boxes[n])
    return parts, table.remarks


def arrange(
    parts: dict[str, Rows],
    remarks: tuple[str, ...],
    root: Path | str,
    source: Callable[[Rows, str], FileSource],
    *,
    test_fraction: float,
    split: str,
    unknown: str,
    seed: int,
) -> Parts:
    """Makes the data set of these rows.

    Args:
      parts: rows by the name of their part; "all" where there is no split, `NO_SPLIT` for those that name none.
      remarks: lines on what was left out before.
      root: what messages call the data.
      source: (rows, name of the part) -> their images.
      test_fraction, split, unknown, seed: of `own.read_folder`.

    Raises:
      UserError: a value is unknown, or parts are missing.
    """
    for name, value, known in (("split", split, _KINDS), ("unknown", unknown, _OF_UNKNOWN)):
        if value not in known:
            raise UserError(f"data.options.{name}: must be one of {', '.join(known)}, found {value!r}")
    parts, strangers, more = _take_out_unknown(parts, unknown)
    more += _nearly_alike({c for rows in parts.values() for c in rows.classes})
    remarks += more
    if {"test", "query"} <= parts.keys():
        raise UserError(f"{root}: has a part named test and one named query; name both query")
    if {"test", "gallery"} <= parts.keys():
        parts["query"] = parts.pop("test")
    whole = parts.get("all", parts.get("test"))
    only_tested = whole is not None and "train" not in parts and test_fraction == 1
    if only_tested:
        parts, split = dict.fromkeys(("train", "test"), whole or Rows()), "disjoint"
    elif "all" in parts:
        parts = _split(parts["all"], root, test_fraction, seed)
    if "train" not in parts and {"query", "gallery"} <= parts.keys():
        parts["train"] = parts["gallery"]
    if "train" not in parts or not parts.keys() & {"test", "query"}:
        raise _lacking(parts, root, more)
    train = source(parts["train"], "train")
    validation = source(parts["validation"], "validation") if "validation" in parts else None
    known = parts["train"].join(parts.get("validation", Rows()))
    asking, database = parts.get("test", parts.get("query", Rows())), parts.get("gallery")
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
    test = source(asking, "test")
    more = {"protocols": protocols, "remarks": remarks, "only_tested": only_tested}
    return judged(Parts(train, test, query, gallery, validation, **more))


def _lacking(parts: Mapping[str, Rows], root: Path | str, remarks: Sequence[str]) -> UserError:
    """The error of data without images to train on, or without those to test on."""
    rename = (
        "; to test on the validation images, call them test" if {*parts} == {"train", "validation"} else ""
    )
    return UserError(
        f"{root}: needs a part named train, and one named test or the two named query and gallery; found images in "
        f"{' and '.join(parts) or 'none'}{rename}" + "".join(f"; {line}" for line in remarks)
    )


def is_unknown(label: str) -> bool:
    """Whether a label says that nobody recognised the individual."""
    return label.strip().lower() in _UNKNOWN


def _take_out_unknown(parts: dict[str, Rows], unknown: str) -> tuple[dict[str, Rows], Rows, tuple[str, ...]]:
    """The parts without images of unknown individuals; such images that can be queries; and remarks."""
    strangers, kept, dropped = Rows(), {}, []
    for name, rows in parts.items():
        nobody = [not c or (is_unknown(c) and unknown != "class") for c in rows.classes]
        if name not in ("train", "validation", "gallery") and unknown == "open_set":
            strangers = strangers.join(rows.where(nobody))
        else:
            dropped += rows.where(nobody).classes
        if not all(nobody):
            kept[name] = rows.where([not n for n in nobody])
    lines = []
    if dropped:
        named = ", ".join(c or "no label" for c in sorted({*dropped}))
        lines.append(
            f"{len(dropped):,} images are of an unknown individual ({named}) and are left out; "
            "data.options.unknown=open_set asks those that are for testing, as queries that nothing answers"
        )
    if rest := kept.pop(NO_SPLIT, None):
        lines.append(f"{len(rest.paths):,} images name no split and are left out, such as {rest.paths[0]}")
    return kept, strangers, tuple(lines)


def _nearly_alike(labels: set[str]) -> tuple[str, ...]:
    """A line about labels that are probably the same class, mistyped or turned into a number by a spreadsheet."""
    alike: dict[str, list[str]] = {}
    for label in sorted(labels):
        plain = re.sub(r"[.,]0+$", "", unicodedata.normalize("NFKC", label).casefold())
        plain = re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\W_]+", " ", plain)).strip()
        alike.setdefault(plain or label, []).append(label)
    groups = [group for group in alike.values() if len(group) > 1]
    if not groups:
        return ()
    line = (
        f"{sum(map(len, groups)):,} labels differ only in capitals, spaces, signs or zeros and count as different "
        f"classes, such as {' and '.join(map(repr, groups[0][:2]))}"
    )
    return (line,)


def _known_only(asking: Rows, database: Rows, unknown: str, *, given: bool) -> tuple[Rows, str]:
    """The queries of a closed split, and a line that says how they are judged."""
    inside = {*database.classes}
    classes = {*asking.classes}
    strange = classes - inside
    what = "gallery" if given else "training or validation"
    if strange == classes:
        raise UserError(
            f"data.options.split: is closed, and none of the {len(classes):,} test classes has {what} images"
        )
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


def judged(parts: Parts) -> Parts:
    """Own images with their possible protocols, and remarks on impossible ones."""
    remarks = parts.remarks
    for source in (parts.train, parts.validation, parts.test):
        if isinstance(source, FileSource) and matches.one_camera(source.cameras, source.labels):
            source.cameras = None
            remarks += (matches.ONE_CAMERA,) if source is parts.test else ()
    if np.bincount(parts.train.labels).max() == 1:
        remarks += (
            "no training class has two images: a batch repeats one, and only the random changes differ",
        )
    # Own images with queries or cameras get both protocols; validation classes have no queries.
    test, asked = parts.test, {"query": parts.query, "gallery": parts.gallery}
    paired = parts.query is not None or test.cameras is not None
    protocols = parts.protocols or (("class", "query_gallery") if paired else ("class",))
    remarks += matches.describe(test.labels, test.cameras, **asked, protocols=protocols)
    return dataclasses.replace(parts, protocols=protocols, remarks=remarks)


def _split(rows: Rows, root: Path | str, test_fraction: float, seed: int) -> dict[str, Rows]:
    classes = sorted(set(rows.classes))
    tested = round(len(classes) * test_fraction)
    if not 0 < test_fraction < 1 or min(tested, len(classes) - tested) < 2:
        raise UserError(
            f"data.options.test_fraction: {test_fraction} of the {len(classes)} classes in {root} must leave at least "
            "two classes to train on and two to test on; with fewer than four, name the split yourself: folders train "
            "and test, or a column split"
        )
    chosen = {classes[i] for i in permutation(len(classes), seed)[:tested]}
    parts = {"train": Rows(), "test": Rows()}
    for i, c in enumerate(rows.classes):
        part = parts["test" if c in chosen else "train"]
        for field, values in vars(rows).items():
            if values:
                getattr(part, field).append(values[i])
    return parts
