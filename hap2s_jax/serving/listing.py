"""The images to embed: from a folder, or a CSV file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import unicodedata
from collections.abc import Collection, Mapping

import numpy as np

from hap2s_jax.data.places import local
from hap2s_jax.data.readers.files import extensions, name_others, walk_files
from hap2s_jax.data.readers.own import in_market_layout, market_rows, split_folders
from hap2s_jax.data.readers.rows import Rows, is_unknown
from hap2s_jax.data.readers.table import read_table
from hap2s_jax.data.regular_files import below
from hap2s_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Listing:
    """Images to embed, in an order that does not depend on the machine.

    Attributes:
      root: the folder to which the paths are relative.
      paths: `[n]` with forward slashes.
      labels: int64 `[n]`, numbers of `class_names`; -1 where an image has no class, or one such as "unknown".
      class_names: sorted.
      cameras: int64 `[n]`, or None.
      boxes: `[n, 4]` left, top, right, bottom in pixels, the last two exclusive, or `shares`; None for whole images.
      others: texts `[n]` of the cameras and of the other columns of a CSV, by the columns' names.
      remarks: lines for the user, such as what was left out.
    """

    root: pathlib.Path
    paths: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    cameras: np.ndarray | None = None
    boxes: np.ndarray | None = None
    others: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def part(self, number: int, count: int) -> Listing:
        """Part `number`, from 1 on, of `count` parts whose lengths differ by at most one; all have the same classes."""
        first, last = ((n * len(self.paths)) // count for n in (number - 1, number))
        some = slice(first, last)
        return dataclasses.replace(
            self,
            paths=self.paths[some],
            labels=self.labels[some],
            cameras=None if self.cameras is None else self.cameras[some],
            boxes=None if self.boxes is None else self.boxes[some],
        )

    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell this list from every other; the folder's own place does not count."""
        digest = hashlib.sha256()
        for texts in (self.paths, self.class_names):
            for text in texts:
                digest.update(os.fsencode(text) + b"\0")
            digest.update(b"\0")
        for values in (self.labels, self.cameras, self.boxes):
            digest.update(b"none" if values is None else values.tobytes())
        return digest.hexdigest()[:16]

    def contents(self) -> str:
        """As `digest`, of the files' sizes: tells whether images have changed. Their times differ between copies."""
        digest = hashlib.sha256()
        for path in dict.fromkeys(self.paths):
            try:
                digest.update(f"{os.stat(self.root / path).st_size}\n".encode())
            except OSError:
                digest.update(b"none\n")
        return digest.hexdigest()[:16]


def list_images(images: str | os.PathLike[str], columns: str = "") -> Listing:
    """Lists the images of a folder, or of a CSV file.

    Args:
      images: a folder, searched through to its bottom; the class of an image is the folder right under `images` that
        it lies in, if any, or the folder in that one where the folders are a split, see `own.split_folders`; in
        Market-1501's layout the names of the files tell class and camera. Or a CSV file with the column path and, as
        wished, label, camera and x1, y1, x2, y2 (a box in pixels); its paths are relative to the file's folder.
      columns: what these columns are called in the CSV, see `read_table`.

    Raises:
      UserError: there are no images, or the CSV is malformed.
    """
    root = local(images)
    if root.is_file():
        try:
            table = read_table(root, columns, needed=("path",))
        except UserError as error:
            raise UserError(f"--images: {error}") from None
        cameras, boxes = (None if v is None else v.astype(np.int64) for v in (table.cameras, table.boxes))
        found = _listing(root.parent, table.paths, table.labels, cameras, boxes)
        return dataclasses.replace(found, others=table.others, remarks=(*table.remarks, *found.remarks))
    if not root.is_dir():
        raise UserError(f"--images: there is no folder or CSV file {images}")
    if in_market_layout(root):
        parts, remarks = market_rows(root)
        rows = functools.reduce(Rows.join, parts.values())
        found = _listing(root, rows.paths, rows.classes, np.array(rows.cameras, np.int64))
        return dataclasses.replace(found, others={"camera": [*map(str, rows.cameras)]}, remarks=remarks)
    found, others = walk_files(root)
    if not found:
        beside = "".join(f"; {line}" for line in name_others(others))
        raise UserError(f"--images: {images} holds no image ({', '.join(extensions())}){beside}")
    paths = sorted(found)
    splits = [*split_folders(root).values()]
    listing = _listing(root, paths, [_class_of(path, splits) for path in paths])
    remarks = (*name_others(others), *listing.remarks)
    if splits:
        remarks += (
            f"{' and '.join(splits)} in {images} are a split, as in training: the classes are the folders in them",
        )
    return dataclasses.replace(listing, remarks=remarks)


def _class_of(path: str, splits: Collection[str]) -> str:
    """The first folder of a path, or the second if there are `splits` and it lies in one; "" without one."""
    *folders, _ = path.split("/")
    if splits:
        folders = folders[1:] if folders[:1] and folders[0] in splits else []
    return unicodedata.normalize("NFC", folders[0]) if folders else ""


def _listing(
    root: pathlib.Path,
    paths: list[str],
    names: list[str],
    cameras: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
) -> Listing:
    unknown = {name for name in names if is_unknown(name)}
    class_names = tuple(sorted(set(names) - unknown))
    number = {name: n for n, name in enumerate(class_names)} | dict.fromkeys(unknown, -1)
    labels = np.array([number[name] for name in names], np.int64)
    named = ", ".join(sorted(unknown - {""}))
    count = sum(name in unknown and name != "" for name in names)
    remarks = (f"{count:,} images labelled {named} have no class",) if named else ()
    return Listing(root.absolute(), paths, labels, class_names, cameras, boxes, remarks=remarks)


def claimed_folder(claimed: str) -> pathlib.Path | None:
    """The folder that a file of embeddings says its images lie in; None where that is the home folder or one above it:
    somebody else's file might claim all of the user's.
    """
    with contextlib.suppress(OSError):
        folder = below("/", claimed)
        if not pathlib.Path.home().resolve().is_relative_to(folder):
            return folder
    return None
