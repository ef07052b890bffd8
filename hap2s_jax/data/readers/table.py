"""Tables as people have them: names of columns, cameras and boxes.

Training (`own`, `hf`) and embedding (`hap2s_jax.serving.listing`) read the same tables in the same way.
"""

from __future__ import annotations

import itertools
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hap2s_jax.data.readers.boxes import Boxes
from hap2s_jax.data.readers.dialects import open_csv
from hap2s_jax.data.readers.foreign_paths import Folder
from hap2s_jax.errors import UserError, did_you_mean

_COLUMNS = ("path", "label", "split", "camera", "box")
_CORNERS = ("x1", "y1", "x2", "y2")
# Other names for these columns. They are suggested but not used: they may mean something else.
_SYNONYMS = {
    "path": (
        *(
            "file",
            "filename",
            "file_name",
            "filepath",
            "file_path",
            "image",
            "image_path",
            "img",
            "image_name",
        ),
        *("image_file", "photo", "photo_name", "picture", "relative_path"),
    ),
    "label": (
        *("identity", "individual", "individual_id", "individual_name", "animal", "animal_id", "animal_name"),
        *(
            "labels",
            "class",
            "class_name",
            "class_id",
            "category",
            "pid",
            "person",
            "person_id",
            "target",
            "name",
        ),
        "id",
    ),
    "split": ("set", "subset", "partition", "fold"),
    "camera": ("cam", "camid", "camera_id", "cam_id", "camera_name"),
}
_BOXES = (
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "width", "height"),
    ("x_center", "y_center", "width", "height"),
    ("cx", "cy", "w", "h"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
    ("bbox",),
    ("bounding_box",),
)


@dataclass
class Table:
    """The rows of a CSV, a list for each column; empty texts where a column is not there.

    Attributes:
      lines: each row's line in the file.
      paths: with forward slashes, relative to the file's folder or absolute.
      cameras: their numbers, below 0 and all different where a camera is not known; None where none is.
      boxes: int32 `[n, 4]` left, top, right, bottom, the last two exclusive; None without any.
      has_split: whether there is such a column.
      others: the cameras and every column that means nothing here, by their names in lower case, as texts.
      remarks: lines for the user.
    """

    lines: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    cameras: np.ndarray | None = None
    boxes: np.ndarray | None = None
    has_split: bool = False
    others: dict[str, list[str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def read_table(file: Path, columns: str = "", needed: Sequence[str] = ("path", "label")) -> Table:
    """Reads a CSV.

    Commas, semicolons, tabs or bars between the fields; UTF-8, UTF-16 or Windows-1252; blank lines are passed over.
    Without a column `label`, one called `identity` is taken for it, as the package wildlife-datasets has it. A label
    may be empty: nobody knows whose image it is.

    Args:
      file: the file.
      columns: what the columns are called here, as in ``label=person,path=file,box=x+y+w+h``; "camera=" takes none.
        A box is four columns of corners, or of a corner (or centre), width and height where they are called so, or one
        column that holds x, y, width and height. Other columns may be joined too: ``path=folder+file`` with a slash,
        ``label=herd+number`` with a space.
      needed: the columns without which there is nothing to do.

    Raises:
      UserError: names the line and what is wrong in it.
    """
    head, rows = open_csv(file, {**{name: name for name in needed}, **dict(named_columns(columns))})
    return table_of(file, head, rows, columns, needed, Folder(file.parent).find)


def table_of(
    file: Path | str,
    head: list[str],
    rows: Iterable[tuple[int, list[str]]],
    columns: str,
    needed: Sequence[str] = ("path", "label"),
    find: Callable[[str], str | None] = str,
) -> Table:
    """As `read_table`, from rows: each with its line, and a text for each column of the header.

    `find` gives the path under which an image is there, or None.
    """
    found = _find_columns(file, head, columns, needed)
    table, cameras, unnamed, absent = Table(has_split="split" in found), [], 0, []
    where = found.pop("box", None)
    boxes = None if where is None else Boxes(file, [head[n] for n in where])
    used = {n for places in (*found.values(), where or []) for n in places}
    others: dict[str, int] = {}
    for place, name in enumerate(head):
        if name and place not in used:
            names = itertools.chain([name], (f"{name} ({n})" for n in itertools.count(2)))
            others[next(own for own in names if own not in others)] = place
    table.others = {name: [] for name in (*others, *(["camera"] if "camera" in found else []))}
    for line, row in rows:
        values = {
            name: ("/" if name == "path" else " ").join(filter(None, (row[n].strip() for n in places)))
            for name, places in found.items()
        }
        label = unicodedata.normalize("NFC", values.get("label", ""))
        if not values["path"] and not label:
            unnamed += 1
            continue
        if not values["path"] or "\0" in values["path"]:
            what = "holds a zero byte" if values["path"] else "must not be empty"
            raise UserError(f"{file}, line {line}: path {what}")
        here = find(values["path"])
        if here is None:
            absent.append(values["path"])
        table.lines.append(line)
        table.paths.append(here or values["path"])
        table.labels.append(label)
        table.splits.append(values.get("split", ""))
        cameras.append(values.get("camera", ""))
        for name, texts in table.others.items():
            texts.append(row[others[name]].strip() if name in others else cameras[-1])
        if boxes is not None and where is not None:
            boxes.add(line, [row[n] for n in where])
    if not table.paths:
        raise UserError(f"{file}: has no rows")
    if unnamed:
        table.remarks += (f"{unnamed:,} rows have neither path nor label and are left out",)
    if absent:
        line = (
            f"{len(absent):,} of {len(table.paths):,} images are not there, such as {absent[0]}; paths should be "
            f"absolute, or relative to the CSV's folder, {Path(file).parent}"
        )
        table.remarks += (line,)
    table.cameras = _number_cameras(cameras)
    if boxes is not None:
        table.boxes, remarks = boxes.array(table.lines)
        table.remarks += remarks
    table.remarks += tuple(_hints(head, {*found, *(["box"] if where else [])}, used))
    return table


def named_columns(columns: str) -> Iterator[tuple[str, str]]:
    """Our columns -> the user's names, from text such as ``label=person,path=file``."""
    for item in filter(None, columns.split(",")):
        name, equals, actual = item.partition("=")
        name = name.strip().lower()
        if not equals or name not in _COLUMNS:
            raise UserError(
                f"columns (data.options.columns): {item!r} should be one of {', '.join(_COLUMNS)}, an equals sign and "
                f"the column's name here, as in label=identity,path=file{did_you_mean(name, _COLUMNS)}"
            )
        yield name, actual.strip().lower()


def _find_columns(
    file: Path | str, head: list[str], columns: str, needed: Sequence[str]
) -> dict[str, list[int]]:
    """The positions of each present column: four or one for a box, and for others as many as are joined."""
    given = dict(named_columns(columns))
    found: dict[str, list[int]] = {}
    for name in _COLUMNS:
        parts = list(_CORNERS) if name == "box" else [name]
        if name in given:
            parts = [given[name]] if given[name] in head else given[name].split("+")
        if name == "label" and name not in given and name not in head and "identity" in head:
            parts = ["identity"]
        if all(part in head for part in parts) and parts != [""]:
            found[name] = [head.index(part) for part in parts]
            if twice := next((part for part in parts if head.count(part) > 1), None):
                raise UserError(
                    f"{file}: has {head.count(twice)} columns {twice!r}; give them different names"
                )
        elif given.get(name):
            lacking = next(part for part in parts if part not in head)
            raise UserError(
                f"columns: {file} has no column {lacking!r}{did_you_mean(lacking, head)}; its first line names "
                f"{', '.join(filter(None, head)) or 'none'}"
            )
        if name == "box" and name not in given and name not in found and {*parts[2:]} & {*head}:
            lacking = next(part for part in parts if part not in head)
            raise UserError(
                f"{file}: a box has the columns {', '.join(_CORNERS)}, and {lacking} is not there"
            )
        if name == "box" and name in found and len(parts) not in (1, 4):
            raise UserError(f"columns: box={given[name]} should be four columns, as in box=x1+y1+x2+y2")
    if lacking := [name for name in needed if name not in found]:
        taken = {n for places in found.values() for n in places}
        likely = [f"{name}={like}" for name in lacking if (like := _like(name, head, taken))]
        columns = shlex.quote(",".join(likely or [f"{lacking[0]}=NAME"]))
        raise UserError(
            f"{file}: needs the columns {' and '.join(needed)}, found {', '.join(filter(None, head)) or 'none'}; say "
            f"which they are: columns={columns} (in a config, data.options.columns)"
        )
    return found


def _like(name: str, head: list[str], used: set[int]) -> str:
    """The column that is not used and is called as others call ours, or ""."""
    called = {re.sub(r"[\s-]+", "_", column): column for n, column in enumerate(head) if n not in used}
    return next((called[synonym] for synonym in _SYNONYMS[name] if synonym in called), "")


def _number_cameras(names: list[str]) -> np.ndarray | None:
    """Whole numbers stay, other names are numbered in sorted order; unknown ones get different numbers below 0."""
    known = {name for name in names if name}
    try:
        numbers = {name: int(name) for name in known}
        if any(not -(2**31) <= number < 2**31 for number in numbers.values()):
            raise ValueError
    except ValueError:
        numbers = {name: place for place, name in enumerate(sorted(known))}
    cameras = np.array([numbers.get(name, -1) for name in names], np.int32)
    if not (cameras >= 0).any():
        return None
    unknown = np.flatnonzero(cameras < 0)
    # Each its own camera: two unknown ones must not count as the same.
    cameras[unknown] = -1 - np.arange(len(unknown))
    return cameras


def _hints(head: list[str], found: set[str], used: set[int]) -> Iterator[str]:
    """Columns that look like ours under another name."""
    for name in _SYNONYMS:
        if name not in found and (like := _like(name, head, used)):
            columns = shlex.quote(f"{name}={like}")
            yield f"there is no column {name}, and {like} is not used; if that is it: columns={columns}"
    if "box" not in found and (like := next((s for s in _BOXES if {*s} <= {*head}), None)):
        one = len(like) == 1
        yield (
            f"the column{'' if one else 's'} {', '.join(like)} {'is' if one else 'are'} not used; if "
            f"{'it is' if one else 'they are'} a box: columns=box={'+'.join(like)}"
        )
