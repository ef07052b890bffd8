"""Which images to embed: a folder, or a CSV file."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from hap2s_jax.data.readers.files import EXTENSIONS, walk_images
from hap2s_jax.errors import UserError

_BOX = ("x1", "y1", "x2", "y2")


@dataclasses.dataclass(frozen=True)
class Listing:
    """Images to embed, in an order that does not depend on the machine.

    Attributes:
      root: the folder to which the paths are relative.
      paths: `[n]` with forward slashes.
      labels: int64 `[n]`, numbers of `class_names`; -1 where an image has no class.
      class_names: sorted.
      cameras: int64 `[n]`, or None.
      boxes: `[n, 4]` left, top, right, bottom in pixels, the last two exclusive; None for whole images.
    """

    root: pathlib.Path
    paths: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    cameras: np.ndarray | None = None
    boxes: np.ndarray | None = None

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
        """As `digest`, of the files' sizes: whether the images are still those that they were. Times would differ
        wherever the images are copied to anew.
        """
        digest = hashlib.sha256()
        for path in dict.fromkeys(self.paths):
            try:
                digest.update(f"{os.stat(self.root / path).st_size}\n".encode())
            except OSError:
                digest.update(b"none\n")
        return digest.hexdigest()[:16]


def list_images(images: str | os.PathLike[str]) -> Listing:
    """Lists the images of a folder, or of a CSV file.

    Args:
      images: a folder, searched through to its bottom; the class of an image is the folder right under `images` that
        it lies in, if any. Or a CSV file with the column path and, as wished, label, camera (a number) and x1, y1, x2,
        y2 (a box in pixels); its paths are relative to the file's folder.

    Raises:
      UserError: there are no images, or the CSV is malformed.
    """
    root = pathlib.Path(images)
    if root.is_file():
        try:
            return _from_csv(root)
        except csv.Error as error:
            raise UserError(f"--images: {root} is no CSV file: {error}") from error
    if not root.is_dir():
        raise UserError(f"--images: there is no folder or CSV file {images}")
    if not (paths := sorted(walk_images(root))):
        raise UserError(f"--images: {images} holds no image ({', '.join(EXTENSIONS)})")
    return _listing(root, paths, [path.split("/")[0] if "/" in path else "" for path in paths])


def _from_csv(file: pathlib.Path) -> Listing:
    paths, names, cameras, boxes = [], [], [], []
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines)
        columns = [c.strip().lower() for c in reader.fieldnames or ()]
        reader.fieldnames = columns
        if "path" not in columns:
            raise UserError(
                f"--images: {file} needs the column path, found {', '.join(columns) or 'none'}; label, camera and x1, "
                "y1, x2, y2 may stand beside it"
            )
        for number, row in enumerate(reader, start=2):
            if not (path := (row["path"] or "").strip()):
                raise UserError(f"--images: {file}, line {number}: path is empty")
            if "\0" in path:
                raise UserError(f"--images: {file}, line {number}: path holds a zero byte")
            paths.append(path)
            names.append((row.get("label") or "").strip())
            try:
                if "camera" in columns:
                    cameras.append(np.int64(int(row["camera"])))
                if set(_BOX) <= set(columns):
                    boxes.append(np.array([round(float(row[c])) for c in _BOX], np.int64))
            except (TypeError, ValueError, OverflowError):
                raise UserError(f"--images: {file}, line {number}: camera and box must be numbers") from None
    if not paths:
        raise UserError(f"--images: {file} has no rows")
    return _listing(
        file.parent,
        paths,
        names,
        np.array(cameras, np.int64) if cameras else None,
        np.array(boxes, np.int64) if boxes else None,
    )


def _listing(
    root: pathlib.Path,
    paths: list[str],
    names: list[str],
    cameras: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
) -> Listing:
    class_names = tuple(sorted(set(names) - {""}))
    number = {name: n for n, name in enumerate(class_names)} | {"": -1}
    labels = np.array([number[name] for name in names], np.int64)
    return Listing(root.absolute(), paths, labels, class_names, cameras, boxes)
