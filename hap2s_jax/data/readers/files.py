"""Shared by all readers of folders: images on disk as a source, labels that do not depend on the machine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hap2s_jax.data.headers import knows_avif
from hap2s_jax.data.regular_files import MAX_LIST, read_bytes, size_of
from hap2s_jax.data.source import Source

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
EXTENSIONS += (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k")
# Files and folders that operating systems, network drives and photo programs leave behind.
_LITTER = ("thumbs.db", "desktop.ini", "picasa.ini")
_LITTER += ("$recycle.bin", "system volume information", "__macosx", "@eadir", "#recycle", "lost+found")


@dataclass(frozen=True)
class Parts:
    """The official split of a data set as a reader finds it, before validation classes are taken out.

    Attributes:
      train: the training images.
      test: the images of the unseen classes.
      query: int64 indices into `test`, or None when every test image queries all the others.
      gallery: int64 indices into `test`; None exactly when `query` is.
      validation: validation images, where the data set itself names them.
      views: int64 indices into `test`, see `Dataset.views`.
      protocols: how this variant of the data set is judged, where it differs from the usual.
      is_usual: whether the published numbers of images are of this variant.
      remarks: lines for the user, such as what was left out.
      only_tested: whether `train` is there for its form alone, and holds what `test` does.
    """

    train: Source
    test: Source
    query: np.ndarray | None = None
    gallery: np.ndarray | None = None
    validation: Source | None = None
    views: np.ndarray | None = None
    protocols: tuple[str, ...] | None = None
    is_usual: bool = True
    remarks: tuple[str, ...] = ()
    only_tested: bool = False


class FileSource:
    """Images in files.

    Args:
      name: what messages call the source.
      root: the folder to which the paths are relative.
      paths: `[N]` paths with forward slashes; absolute ones stay as they are.
      identities: `[N]` whose image it is, all integers or all strings. The labels number them in sorted order
        (integers by value).
      cameras: `[N]` integers from 0, or None.
      boxes: `[N, 4]` left, top, right, bottom in pixels, the last two exclusive, or `shares`; None for whole images.
      attributes: further columns of a CSV, `[N]` texts by name, which are packed with the images.
    """

    def __init__(
        self,
        name: str,
        root: Path | str,
        paths: Sequence[str],
        identities: Sequence[int] | Sequence[str],
        cameras: Sequence[int] | None = None,
        boxes: np.ndarray | None = None,
        attributes: Mapping[str, list[str]] | None = None,
    ):
        self.name = name
        self.attributes = dict(attributes or {})
        self.root = os.fspath(root)
        self.paths = list(paths)
        self.labels, self.class_names = number_identities(identities)
        self.cameras = None if cameras is None else np.asarray(cameras, np.int32)
        self.boxes = None if boxes is None else np.asarray(boxes, np.int32).reshape(-1, 4)
        for what, values in (("identities", self.labels), ("cameras", self.cameras), ("boxes", self.boxes)):
            if values is not None and len(values) != len(self.paths):
                raise ValueError(
                    f"{what}: must be one per path, found {len(values)} for {len(self.paths)} paths"
                )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """The bytes of file number `index`."""
        return read_bytes(self.describe(index))

    def size(self, index: int) -> int:
        """The bytes that file number `index` has, without reading it."""
        return size_of(self.describe(index))

    def describe(self, index: int) -> str:
        """The path of file number `index`."""
        return os.path.join(self.root, self.paths[index])


def number_identities(identities: Sequence[int] | Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number identities from 0 in sorted order.

    Returns:
      (labels int32 `[N]`; the names of the identities in the order of the labels).
    """
    distinct: list[Any] = sorted(set(identities))
    number = {identity: n for n, identity in enumerate(distinct)}
    return np.array([number[i] for i in identities], np.int32), tuple(map(str, distinct))


def extensions() -> tuple[str, ...]:
    """The endings of the image files that can be decoded here."""
    return EXTENSIONS + ((".avif",) if knows_avif() else ())


def list_images(folder: Path | str) -> list[str]:
    """Names of the image files directly in a folder, sorted; links are followed, other files passed over."""
    endings = extensions()
    return sorted(
        name
        for name in os.listdir(folder)
        if name.lower().endswith(endings)
        and not name.startswith(".")
        and os.path.isfile(os.path.join(folder, name))
    )


def list_folders(folder: Path | str) -> list[str]:
    """Names of the folders directly in a folder, sorted, without hidden ones."""
    return sorted(
        name
        for name in os.listdir(folder)
        if not is_litter(name) and os.path.isdir(os.path.join(folder, name))
    )


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or none of the user's."""
    return name.startswith(".") or name.lower() in _LITTER


@dataclass
class Beside:
    """Paths of what lies beside images and is left out: files of other kinds, and links that lead nowhere."""

    others: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)


def is_dead(path: Path | str) -> bool:
    """Whether a path is a link that leads nowhere, as to a disk that is not there."""
    return os.path.islink(path) and not os.path.exists(path)


def walk_files(folder: Path | str) -> tuple[list[str], Beside]:
    """Paths of the images at any depth, and of what lies beside them, with forward slashes, relative to `folder`, in an
    order that is the same on every machine. Hidden files and folders are left out; a folder that links lead to is
    searched once.

    Raises:
      OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    root, endings = os.fspath(folder), extensions()
    images: list[str] = []
    beside = Beside()
    seen = {os.path.realpath(root)}
    for place, inside, names in os.walk(root, followlinks=True, onerror=fail):
        # The folder itself before links to it, whatever the disk lists first.
        inside.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        entered = []
        for name in inside:
            target = os.path.realpath(os.path.join(place, name))
            if not is_litter(name) and target not in seen:
                seen.add(target)
                entered.append(name)
        inside[:] = entered
        below = Path(place).relative_to(root)
        for name in names:
            if is_litter(name):
                continue
            found = images if name.lower().endswith(endings) else beside.others
            found = beside.dead if is_dead(os.path.join(place, name)) else found
            found.append((below / name).as_posix())
    for paths in (images, beside.others, beside.dead):
        paths.sort(key=lambda path: path.split("/"))
    return images, beside


def name_others(beside: Beside) -> tuple[str, ...]:
    """A line each about files that are not images, and about links that lead nowhere; none without any."""
    dead = (
        f"{len(beside.dead):,} links lead nowhere, and what they should lead to is left out, such as {beside.dead[0]}; "
        "mount the disk, or mend the links"
        if beside.dead
        else ""
    )
    return tuple(filter(None, (_kinds(beside.others), dead)))


def _kinds(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    kinds = Counter(os.path.splitext(path)[1].lower() or "without an ending" for path in paths)
    named = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
    more = ", ..." if len(kinds) > 5 else ""
    return (
        f"{len(paths):,} files are of kinds that cannot be read here and are left out ({named}{more}), such as "
        f"{paths[0]}; save images among them as JPEG or PNG"
    )


def find_root(bases: Iterable[Path], folders: Iterable[str], markers: Sequence[str]) -> Path | None:
    """The first folder that has all the markers in it.

    Args:
      bases: where people keep their data sets.
      folders: the names that the data set's folder goes by. Each is tried as it is and once more inside itself,
        as some archivers leave it; the base itself comes last.
      markers: files or folders that tell the data set.
    """
    folders = list(folders)
    for base in bases:
        for folder in [*folders, *(f"{f}/{f.rsplit('/', 1)[-1]}" for f in folders), "."]:
            root = base / folder
            if all((root / marker).exists() for marker in markers):
                return root
    return None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank; bytes that are no UTF-8 survive as file names."""
    text = read_bytes(path, MAX_LIST).decode("utf-8-sig", errors="surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip()]
