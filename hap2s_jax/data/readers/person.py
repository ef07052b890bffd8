"""Re-identification: Market-1501, DukeMTMC-reID, VeRi-776, CUHK03 in ready folders, MSMT17."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hap2s_jax.data.readers.files import Beside, FileSource, Parts, name_others, read_lines, walk_files
from hap2s_jax.errors import UserError

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
# Hand-drawn boxes of all people; Market-1501's multi-query pools those of the queries.
VIEWS = "gt_bbox"
VEHICLES = ("image_train", "image_query", "image_test")
_NAME = re.compile(r"(-?\d{1,18})_c(\d{1,9})(?!\d)")
_EXAMPLE = "0002_c1s1_000451_03.jpg"
_JUNK = -1


def read_market1501(root: Path, *, multi_query: bool = False) -> Parts:
    """Market-1501 (Zheng et al. 2015).

    Args:
      root: the folder with bounding_box_train/.
      multi_query: whether queries are also pooled from all the images in gt_bbox/ of their person by their camera.

    Raises:
      UserError: a folder is missing, or has no file of the usual name pattern.
    """
    return read_market(root, "market1501", multi_query=multi_query)


def read_dukemtmc(root: Path) -> Parts:
    """DukeMTMC-reID (Zheng et al. 2017; Ristani et al. 2016), which copied Market-1501's layout."""
    return read_market(root, "dukemtmc")


def read_veri776(root: Path) -> Parts:
    """VeRi-776 (Liu et al. 2016), vehicles seen by 20 cameras; the queries are in the gallery too.

    Raises:
      UserError: a folder has no file of the usual name pattern.
    """
    return read_market(root, "veri776", VEHICLES)


def read_market(
    root: Path, name: str, folders: Sequence[str] = (TRAIN, QUERY, GALLERY), *, multi_query: bool = False
) -> Parts:
    """The layout of Market-1501, shared by DukeMTMC-reID, VeRi-776 and CUHK03 in ready folders.

    Files are named IDENTITY_cCAMERA...; others are left out and counted. Identity -1 is junk and dropped. Identity 0,
    the distractors of the gallery, stays as an identity like any other: no query has it, so it can only be retrieved
    wrongly.

    Raises:
      UserError: a folder has no file of that name pattern.
    """
    train, query, gallery = (scan(root, folder) for folder in folders)
    paths, ids = query.paths + gallery.paths, query.ids + gallery.ids
    cameras, views, protocols = query.cameras + gallery.cameras, None, None
    if multi_query:
        if not (root / VIEWS).is_dir():
            raise UserError(f"data.options.multi_query: needs {root / VIEWS}/, which the full archive has")
        # The folder has the training identities too.
        asked, boxes = set(zip(query.ids, query.cameras, strict=True)), scan(root, VIEWS)
        seen = [row for row in zip(boxes.paths, boxes.ids, boxes.cameras, strict=True) if row[1:] in asked]
        if lacking := sorted(asked - {row[1:] for row in seen}):
            identity, camera = lacking[0]
            raise UserError(
                f"{root / VIEWS}: has no image of person {identity} by camera {camera}, whom a query shows; the "
                "folder is incomplete"
            )
        views = np.arange(len(paths), len(paths) + len(seen))
        paths += [row[0] for row in seen]
        ids += [row[1] for row in seen]
        cameras += [row[2] for row in seen]
        protocols = ("query_gallery", "multi_query")
    first = min(1, *train.cameras, *cameras)  # 1, but 0 in some copies
    trained = FileSource(f"{name} train", root, train.paths, train.ids, [c - first for c in train.cameras])
    test = FileSource(f"{name} test", root, paths, ids, [c - first for c in cameras])
    ends = np.cumsum([len(query.paths), len(gallery.paths)])
    rows = {"query": np.arange(ends[0]), "gallery": np.arange(ends[0], ends[1])}
    remarks = left_out((train, query, gallery))
    return Parts(trained, test, **rows, views=views, protocols=protocols, remarks=remarks)


def read_msmt17(root: Path, *, with_val: bool = False) -> Parts:
    """MSMT17 (Wei et al. 2018), V1 or V2.

    Args:
      root: the folder with the list_*.txt files.
      with_val: whether the images of list_val.txt (of training identities) join the training images.

    Raises:
      UserError: a list is malformed or the folders of images are missing.
    """
    folders = next(
        (f for f in (("train", "test"), ("mask_train_v2", "mask_test_v2")) if (root / f[0]).is_dir()), None
    )
    if folders is None:
        raise UserError(
            f"msmt17: {root} has the lists, but neither train/ (V1) nor mask_train_v2/ (V2) beside them"
        )
    train = _read_list(root / "list_train.txt", folders[0])
    if with_val:
        train += _read_list(root / "list_val.txt", folders[0])
    query = _read_list(root / "list_query.txt", folders[1])
    gallery = _read_list(root / "list_gallery.txt", folders[1])
    sources = []
    for part, entries in (("train", train), ("test", query + gallery)):
        paths, ids, cameras = zip(*entries, strict=True) if entries else ((), (), ())
        sources.append(FileSource(f"msmt17 {part}", root, paths, ids, cameras))
    return _parts(sources[0], sources[1], len(query))


def _parts(train: FileSource, test: FileSource, queries: int) -> Parts:
    return Parts(train, test, np.arange(queries), np.arange(queries, len(test)))


@dataclasses.dataclass
class Named:
    """The images of a folder: paths, identities and cameras from their names, and paths of images with other names (or
    in folders within) and of links that lead nowhere.
    """

    paths: list[str]
    ids: list[int]
    cameras: list[int]
    strange: list[str]
    dead: list[str]


def scan(root: Path, folder: str) -> Named:
    """The images of a folder whose files are named as Market-1501's.

    Raises:
      UserError: none is.
    """
    images, beside = walk_files(root / folder)
    found = Named([], [], [], [], [f"{folder}/{name}" for name in beside.dead])
    for name in images:
        match = _NAME.match(name)
        if match is None:
            found.strange.append(f"{folder}/{name}")
        elif int(match[1]) != _JUNK:
            found.paths.append(f"{folder}/{name}")
            found.ids.append(int(match[1]))
            found.cameras.append(int(match[2]))
    if not found.paths:
        raise UserError(f"{root / folder}: no image is named like {_EXAMPLE} (IDENTITY_cCAMERA)")
    return found


def left_out(folders: Sequence[Named]) -> tuple[str, ...]:
    """Lines on the files of these folders that are not used."""
    strange = [path for named in folders for path in named.strange]
    lines = name_others(Beside(dead=[path for named in folders for path in named.dead]))
    if strange:
        line = f"{len(strange):,} images are not named IDENTITY_cCAMERA, as in {_EXAMPLE}, and are left out"
        lines += (f"{line}, such as {strange[0]}",)
    return lines


def _read_list(path: Path, folder: str) -> list[tuple[str, int, int]]:
    """Lines such as "0000/0000_000_01_0303morning_0008_0.jpg 0"; the third number is the camera, from 1."""
    entries = []
    for line in read_lines(path):
        relative, _, identity = line.rpartition(" ")
        fields = relative.rsplit("/", 1)[-1].split("_")
        try:
            entries.append((f"{folder}/{relative}", int(identity), int(fields[2]) - 1))
        except (IndexError, ValueError):
            raise UserError(
                f"{path}: expected 'FOLDER/ID_NUMBER_CAMERA_....jpg ID', found {line!r}"
            ) from None
    return entries
