"""The users' own images: a folder of class folders, or in Market-1501's layout, or a CSV."""

from __future__ import annotations

import functools
import os
import unicodedata
from pathlib import Path

from hap2s_jax.data.readers import person
from hap2s_jax.data.readers.files import (
    Beside,
    FileSource,
    Parts,
    is_dead,
    list_folders,
    list_images,
    name_others,
    walk_files,
)
from hap2s_jax.data.readers.rows import SPLITS, Rows, arrange, rows_of_table
from hap2s_jax.data.readers.table import read_table
from hap2s_jax.errors import UserError

_MARKET = {"train": person.TRAIN, "query": person.QUERY, "gallery": person.GALLERY}


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
    classes are split by `test_fraction` and `seed`. An image may be at any depth in its class's folder. Where query
    stands beside bounding_box_test, files are named as in Market-1501, which tells their identity and camera.

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
    others: dict[str, list[str]] = {}
    if root.is_file():
        table = read_table(root, columns)
        parts, remarks = rows_of_table(table, root)
        others = table.others
    else:
        parts, remarks = _folder_rows(root)
    base = root.parent if root.is_file() else root

    def source(rows: Rows, part: str) -> FileSource:
        attributes = {column: [texts[n] for n in rows.numbers] for column, texts in others.items()}
        return rows.source(f"own {part}", base, functools.partial(FileSource, attributes=attributes))

    return arrange(
        parts, remarks, root, source, test_fraction=test_fraction, split=split, unknown=unknown, seed=seed
    )


def split_folders(root: Path) -> dict[str, str]:
    """The folders in `root` that name a split, by their parts; none where they do not."""
    by_part = {SPLITS[name.lower()]: name for name in list_folders(root) if name.lower() in SPLITS}
    # A class may be called "test"; the names are a split only with others.
    judged = by_part.keys() & {"test", "validation"} or {"query", "gallery"} <= by_part.keys()
    return by_part if "train" in by_part and judged else {}


def _folder_rows(root: Path) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The images by part, and remarks on what was left out."""
    if in_market_layout(root):
        return market_rows(root)
    split = split_folders(root)
    folders = split or {"all": ""}
    parts, loose, beside, deep = {part: Rows() for part in folders}, [], Beside(), []
    direct = False
    for part, folder in folders.items():
        images, more = walk_files(root / folder)
        prefix = f"{folder}/" if folder else ""
        beside.others += [prefix + other for other in more.others if "/" in other]
        beside.dead += [prefix + dead for dead in more.dead]
        for path in images:
            path = prefix + path
            name, *inside = path.split("/")[bool(folder) :]
            if inside:
                parts[part].paths.append(path)
                parts[part].classes.append(unicodedata.normalize("NFC", name))
            else:
                loose.append(path)
            direct |= len(inside) == 1
            if len(inside) > 1:
                deep.append(path)
    apart = ()
    if split:
        loose += list_images(root)
        beside.dead += [name for name in sorted(os.listdir(root)) if is_dead(root / name)]
        apart = _beside_a_split(root, [*split.values()])
    remarks = (*name_others(beside), *apart)
    # If all images lie deeper, the folders are not classes.
    if not direct:
        raise UserError(
            f"{root}: found no image in a folder of its own class, such as {root}/CLASS/IMAGE.jpg"
            + _where_they_are(root, loose, deep)
            + "".join(f"; {remark}" for remark in remarks)
        )
    if loose:
        remarks += (
            f"{len(loose):,} images are in no folder of a class and are left out, such as {loose[0]}",
        )
    return parts, remarks


def in_market_layout(root: Path) -> bool:
    """Whether a folder has the folders of Market-1501; that to train on may be missing."""
    return {person.QUERY, person.GALLERY} <= {*list_folders(root)}


def market_rows(root: Path) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The images of a folder in Market-1501's layout by part, and remarks on what was left out.

    Raises:
      UserError: a folder has no file of the usual name pattern.
    """
    found = {part: person.scan(root, name) for part, name in _MARKET.items() if (root / name).is_dir()}
    parts = {part: Rows() for part in found}
    for part, named in found.items():
        parts[part].paths, parts[part].cameras = named.paths, named.cameras
        parts[part].classes = [f"{identity:04d}" for identity in named.ids]
    return parts, (*person.left_out([*found.values()]), *_beside_a_split(root, [*_MARKET.values()]))


def _beside_a_split(root: Path, split: list[str]) -> tuple[str, ...]:
    """A line about folders with images that are no part of the split; none without any."""
    images = {name: len(walk_files(root / name)[0]) for name in list_folders(root) if name not in split}
    found = [name for name, count in images.items() if count]
    if not found:
        return ()
    line = (
        f"{sum(images.values()):,} images are in folders beside the split ({', '.join(split)}) and are left out: "
        f"{', '.join(found[:5])}{', ...' if len(found) > 5 else ''}"
    )
    return (line,)


def _where_they_are(root: Path, loose: list[str], deep: list[str]) -> str:
    """Where images lie if not in folders of classes, and what to do."""
    if not loose and not deep:
        return ""
    found = f"; found {len(loose or deep):,} images such as {(loose or deep)[0]}"
    tops = {path.split("/")[0] for path in deep}
    if not loose and len(tops) == 1 and any(path.count("/") == 2 for path in deep):
        return f"{found}: is {root}/{tops.pop()} the folder of classes?"
    return f"{found}: move them, or name each image's class in a CSV file with the columns path and label"
