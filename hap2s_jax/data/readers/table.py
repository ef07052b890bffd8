"""Tables as people have them: names of columns, cameras and boxes.

Training (`own`, `hf`) and embedding (`hap2s_jax.serving.listing`) read the same tables in the same way.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hap2s_jax.data.readers.dialects import open_csv
from hap2s_jax.errors import UserError, did_you_mean

_COLUMNS = ("path", "label", "split", "camera", "box")
_CORNERS = ("x1", "y1", "x2", "y2")
# What others call these columns; suggested, not taken, for they may mean something else.
_SYNONYMS = {
    "path": (
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
    "label": (
        "identity",
        "labels",
        "class",
        "class_name",
        "class_id",
        "category",
        "pid",
        "person_id",
        "target",
        "name",
        "id",
    ),
    "split": ("set", "subset", "partition", "fold"),
    "camera": ("cam", "camid", "camera_id", "cam_id", "camera_name"),
}
_BOXES = (
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "width", "height"),
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

    Commas, semicolons, tabs or bars between the fields; UTF-8 or UTF-16; blank lines are passed over. Without a column
    `label`, one called `identity` is taken for it, as the package wildlife-datasets has it.

    Args:
      file: the file.
      columns: what the columns are called here, as in ``label=person,path=file,box=x+y+w+h``; "camera=" takes none.
        A box is four columns of corners, or of a corner, width and height where the last two are called so, or one
        column that holds x, y, width and height.
      needed: the columns without which there is nothing to do.

    Raises:
      UserError: names the line and what is wrong in it.
    """
    head, rows = open_csv(file, {**{name: name for name in needed}, **dict(named_columns(columns))})
    return table_of(file, head, rows, columns, needed)


def table_of(
    file: Path | str,
    head: list[str],
    rows: Iterable[tuple[int, list[str]]],
    columns: str,
    needed: Sequence[str] = ("path", "label"),
) -> Table:
    """The same of rows that are open already: each with its line, and a text for each column of the head."""
    found = _find_columns(file, head, columns, needed)
    table, cameras, boxes, empty = Table(has_split="split" in found), [], [], []
    largest = 0.0
    used = [n for places in found.values() for n in (places if isinstance(places, list) else [places])]
    others = {name: place for place, name in enumerate(head) if name and place not in used}
    table.others = {name: [] for name in (*others, *(["camera"] if "camera" in found else []))}
    for line, row in rows:
        values = {name: row[place].strip() for name, place in found.items() if isinstance(place, int)}
        if missing := [name for name in needed if not values[name]]:
            raise UserError(f"{file}, line {line}: {' and '.join(missing)} must not be empty")
        if "\0" in values["path"]:
            raise UserError(f"{file}, line {line}: path holds a zero byte")
        table.lines.append(line)
        table.paths.append(_path_here(Path(file).parent, values["path"]))
        table.labels.append(values.get("label", ""))
        table.splits.append(values.get("split", ""))
        cameras.append(values.get("camera", ""))
        for name, texts in table.others.items():
            texts.append(row[others[name]].strip() if name in others else cameras[-1])
        if isinstance(where := found.get("box"), list):
            corners = _box(file, line, [head[n] for n in where], [row[n] for n in where])
            largest = max(largest, *map(abs, corners))
            boxes.append([round(corner) for corner in corners])
            if boxes[-1][2] <= boxes[-1][0] or boxes[-1][3] <= boxes[-1][1]:
                empty.append((line, boxes[-1]))
    if not table.paths:
        raise UserError(f"{file}: has no rows")
    if boxes and largest <= 1:
        raise UserError(
            f"{file}: no box reaches beyond 1, as if they were shares of the image; they should be in pixels"
        )
    if empty:
        raise UserError(
            f"{file}: {len(empty):,} of {len(boxes):,} boxes are empty or turned round, such as line {empty[0][0]}: "
            f"left, top, right, bottom {', '.join(map(str, empty[0][1]))}; where they are x, y, width and height, name "
            "the columns: columns=box=x+y+w+h (in a config, data.options.columns)"
        )
    table.cameras = _number_cameras(cameras)
    table.boxes = np.array(boxes, np.int32) if boxes else None
    table.remarks = tuple(_hints(head, found))
    return table


def named_columns(columns: str) -> Iterator[tuple[str, str]]:
    """Our columns and what they are called, as ``label=person,path=file`` says."""
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
) -> dict[str, int | list[int]]:
    """The place of each column that is there; of a box a list of places."""
    given = dict(named_columns(columns))
    found: dict[str, int | list[int]] = {}
    for name in _COLUMNS:
        parts = given.get(name, name).split("+") if name != "box" or name in given else list(_CORNERS)
        if name == "label" and name not in given and name not in head and "identity" in head:
            parts = ["identity"]
        if all(part in head for part in parts) and parts != [""]:
            places = [head.index(part) for part in parts]
            found[name] = places if name == "box" else places[0]
        elif given.get(name):
            lacking = next(part for part in parts if part not in head)
            raise UserError(
                f"columns: {file} has no column {lacking!r}{did_you_mean(lacking, head)}; it has {', '.join(head)}"
            )
        if name == "box" and name not in given and name not in found and {*parts[2:]} & {*head}:
            lacking = next(part for part in parts if part not in head)
            raise UserError(
                f"{file}: a box has the columns {', '.join(_CORNERS)}, and {lacking} is not there"
            )
        if name == "box" and name in found and len(parts) not in (1, 4):
            raise UserError(f"columns: box={given[name]} should be four columns, as in box=x1+y1+x2+y2")
    if lacking := [name for name in needed if name not in found]:
        likely = [
            f"{name}={synonym}"
            for name in lacking
            if (
                synonym := next(
                    (s for s in _SYNONYMS[name] if s in head and head.index(s) not in found.values()), ""
                )
            )
        ]
        hint = f"; say which they are: columns={','.join(likely or [f'{lacking[0]}=NAME'])}"
        raise UserError(
            f"{file}: needs the columns {' and '.join(needed)}, found {', '.join(filter(None, head)) or 'none'}{hint} "
            "(in a config, data.options.columns)"
        )
    return found


def _box(file: Path | str, line: int, names: list[str], cells: list[str]) -> tuple[float, ...]:
    """left, top, right, bottom."""
    sizes = len(names) == 1 or all(
        re.search(rf"(^|[^a-z])({word})$", name)
        for word, name in zip(("w|width", "h|height"), names[2:], strict=True)
    )
    if len(names) == 1:
        cells = re.findall(r"[^\s,;\[\]()]+", cells[0])
    try:
        left, top, third, fourth = (float(cell) for cell in cells)
        corners = (left, top, left + third, top + fourth) if sizes else (left, top, third, fourth)
        if not all(-(2**31) <= round(corner) < 2**31 for corner in corners):
            raise OverflowError
    except (ValueError, OverflowError):
        raise UserError(
            f"{file}, line {line}: the box ({'+'.join(names)}) must be four numbers of at most 32 bits, found "
            f"{' '.join(cells) or 'nothing'}"
        ) from None
    return corners


def _number_cameras(names: list[str]) -> np.ndarray | None:
    """Whole numbers as they are, other names by their place in sorted order; unknown ones below 0, all different."""
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
    cameras[unknown] = -1 - np.arange(len(unknown))  # so that no two of them are taken for one camera
    return cameras


def _path_here(folder: Path, path: str) -> str:
    """The path under which the file is found here, where another system wrote it: backslashes, drives, accents."""
    if path.isascii() and "\\" not in path:
        return path
    slashed = path.replace("\\", "/")
    candidates = [path, slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
    if drive := re.match(r"[A-Za-z]:/+", slashed):
        parts = slashed[drive.end() :].split("/")
        candidates += ["/".join(parts[n:]) for n in range(len(parts))]
    try:
        return next((c for c in candidates if os.path.isfile(folder / c)), path)
    except (OSError, ValueError):
        return path


def _hints(head: list[str], found: dict[str, int | list[int]]) -> Iterator[str]:
    """Columns that look like ours under another name."""
    for name, synonyms in _SYNONYMS.items():
        like = next((s for s in synonyms if s in head), "")
        if like and name not in found and head.index(like) not in found.values():
            yield f"there is no column {name}, and {like} is not used; if that is it: columns={name}={like}"
    if "box" not in found and (like := next((s for s in _BOXES if {*s} <= {*head}), None)):
        one = len(like) == 1
        yield (
            f"the column{'' if one else 's'} {', '.join(like)} {'is' if one else 'are'} not used; if "
            f"{'it is' if one else 'they are'} a box: columns=box={'+'.join(like)}"
        )
