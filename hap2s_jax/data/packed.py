"""Packed data sets: images in a few large files, with an index, on a disk or in a bucket.

`hap2s_jax.pack` writes them, as TFRecord files that TensorFlow Datasets opens too. Here they are read without it: the
index says in which file and where the bytes of each image are. ``pack.json`` names all files with their sizes. An index
is used only if its length and checksum are as in ``pack.json``, and if each of its rows lies inside its file.
"""

from __future__ import annotations

import os
import pathlib
import re
import weakref
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hap2s_jax import formats
from hap2s_jax.data.bucket import SCHEME, BucketPath
from hap2s_jax.data.fetching import Cache, Fetched
from hap2s_jax.data.headers import UnreadableImageError
from hap2s_jax.data.places import place
from hap2s_jax.data.readers.files import Parts
from hap2s_jax.data.regular_files import MAX_IMAGE, open_regular, read_bytes, size_of
from hap2s_jax.errors import UserError, reason

FILE_NAME = "pack.json"
PARTS = ("train", "validation", "test")
ROWS = ("query", "gallery", "views")  # indices into test
# An image's file, its bytes there and their CRC-32, and its metadata.
ROW = np.dtype(
    [
        ("shard", "<i4"),
        ("offset", "<i8"),
        ("length", "<i4"),
        ("crc32", "<u4"),
        ("label", "<i4"),
        ("camera", "<i4"),
        ("box", "<i4", (4,)),
    ]
)
# Files that stay open at a time; a process may have some hundreds.
_OPEN = 200
_SHARD = re.compile(r"[a-z]+\.tfrecord-\d{5}")


def find(data_dir: str | os.PathLike[str], name: str) -> pathlib.Path | None:
    """The packed data set `name` in `data_dir`, or in its folder of that name; None where there is none.

    Raises:
      UserError: the bucket, or its client, is not there.
    """
    if "://" in os.fspath(data_dir) and not os.fspath(data_dir).startswith(SCHEME):
        return None
    root = place(data_dir)
    return next((f for f in (root, root / name) if (f / FILE_NAME).is_file()), None)


def read(root: pathlib.Path, name: str, options: Mapping[str, Any], cache: Cache) -> Parts:
    """A packed data set, as the reader that it was packed from returned it.

    Args:
      root: its folder.
      name: which data set it should be.
      options: of the data set; those that are given must be those it was packed with.
      cache: where images out of a bucket are kept.

    Raises:
      UserError: it is another one, damaged, not whole, or packed with other options.
    """
    try:
        record = formats.read(root / FILE_NAME)
        packed_name, packed_with = str(record["name"]), dict(record["options"])
        if packed_name != name:
            raise UserError(f"data.name: is {name}, and {root} holds {packed_name}, packed")
        remarks = tuple(map(str, record["remarks"]))
        if options.get("test_fraction") == 1 != packed_with.get("test_fraction"):
            options = {key: value for key, value in options.items() if key != "test_fraction"}
            remarks += (f"{root} was packed with its split: its test part is tested on",)
        for key, value in options.items():
            if packed_with.get(key) != value:
                raise UserError(
                    f"data.options.{key}: is {value!r}, and {root} was packed with {packed_with.get(key)!r}; leave it "
                    f"out, or pack again with --option={key}={value}"
                )
        files = _Files(root, record["shards"], cache)
        parts: dict[str, Any] = {
            part: _source(files, part, record["parts"][part]) for part in PARTS if part in record["parts"]
        }
        rows: dict[str, Any] = {
            n: _array(root / f"{n}.index", np.dtype("<i8"), record["rows"][n])
            for n in record["rows"]
            if n in ROWS
        }
        if any(r.size and not 0 <= r.min() <= r.max() < len(parts["test"]) for r in rows.values()):
            raise ValueError("query, gallery or views name images that are not there")
        told: dict[str, Any] = {"protocols": tuple(record["protocols"]) if record["protocols"] else None}
        told |= {
            "is_usual": bool(record["is_usual"]),
            "remarks": remarks,
            "only_tested": bool(record["only_tested"]),
        }
        return Parts(**parts, **rows, **told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else reason(error)
        raise UserError(
            f"{root} is not a complete packed data set ({what}); copy it, or pack it, again"
        ) from error


class PackedSource:
    """Images of a packed data set.

    Args:
      name: what messages call the source.
      files: the files that hold the images.
      rows: `[N]` of `ROW`.
      class_names: of the labels.
      has: which of "cameras" and "boxes" there are.
      origins: the file of the images' origins, its size and CRC-32; it is read on demand.
    """

    def __init__(
        self,
        name: str,
        files: _Files,
        rows: np.ndarray,
        class_names: tuple[str, ...],
        has: Sequence[str],
        origins: Any,
    ):
        self.name, self.class_names = name, class_names
        self.labels = rows["label"].astype(np.int32)
        self.cameras = rows["camera"].astype(np.int32) if "cameras" in has else None
        self.boxes = rows["box"].astype(np.int32) if "boxes" in has else None
        self._shard, self._offset = rows["shard"].copy(), rows["offset"].copy()
        self._length, self._crc32 = rows["length"].copy(), rows["crc32"].copy()
        self._files, self._origins = files, origins
        self._names: list[str] | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The bytes of image number `index`.

        Raises:
          UnreadableImageError: they are not those that were packed.
          Unreachable: the bucket does not answer.
        """
        data = self._files.read(int(self._shard[index]), int(self._offset[index]), int(self._length[index]))
        if zlib.crc32(data) != self._crc32[index]:
            raise UnreadableImageError("its bytes are not those that were packed")
        return data

    @property
    def images(self) -> Fetched | None:
        """The fetcher of images from a bucket; None on a disk."""
        return self._files.images

    def prefetch(self, indices: np.ndarray) -> int:
        """Begins to fetch images out of a bucket, many at a time; the bytes of the cache that they take."""
        wanted = (self._shard[indices], self._offset[indices], self._length[indices])
        return 0 if self.images is None else self.images.prefetch(*wanted)

    def describe(self, index: int) -> str:
        """The packed data set, and the origin of image number `index`."""
        if self._names is None:
            self._names = _texts(*self._origins)
        return f"{self._files.root}: {self._names[index]}"

    @property
    def digests(self) -> np.ndarray:
        """Bytes and CRC-32 of each image `[N, 2]`."""
        return np.stack([self._length, self._crc32], axis=1)


class _Files:
    """The files of a packed data set that hold images.

    Args:
      root: their folder.
      shards: [name, bytes] of each.
      cache: for files in a bucket.

    Raises:
      ValueError: a name is none of ours, or a size is not what it should be.
    """

    def __init__(self, root: pathlib.Path, shards: Any, cache: Cache):
        self.root, self._open = root, {}
        self.names = [str(name) for name, _ in shards]
        self.sizes = np.array([size for _, size in shards], np.int64)
        if strange := [name for name in self.names if not _SHARD.fullmatch(name)]:
            raise ValueError(f"{strange[0]!r:.60} is not the name of an image file")
        in_bucket = isinstance(root, BucketPath)
        found = {n: size for n, (size, _) in root.checksums().items()} if in_bucket else None
        for name, size in zip(self.names, self.sizes.tolist(), strict=True):
            there = found.get(name) if found is not None else size_of(root / name)
            if there != size:
                raise ValueError(f"{name} holds {there} bytes, and should hold {size}")
        paths = [root / name for name in self.names]
        self.images = Fetched(paths, self.sizes, cache) if in_bucket else None
        weakref.finalize(self, _close, self._open)

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer where it has become shorter."""
        if self.images is not None:
            return self.images.read(shard, offset, length)
        try:
            descriptor = self._open.get(shard)
            if descriptor is not None:
                return os.pread(descriptor, length, offset)
            with open_regular(self.root / self.names[shard]) as file:
                if len(self._open) < _OPEN:
                    # Another thread may have been faster.
                    kept = os.dup(file.fileno())
                    if self._open.setdefault(shard, kept) != kept:
                        os.close(kept)
                return os.pread(file.fileno(), length, offset)
        except OSError as error:  # not the fault of this image, so it is not left out
            raise UserError(
                f"{self.root / self.names[shard]} cannot be read: {error.strerror or error}; copy it again"
            ) from error


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def _source(files: _Files, part: str, record: Mapping[str, Any]) -> PackedSource:
    rows = _array(files.root / f"{part}.index", ROW, record["index"])
    names = tuple(_texts(files.root / f"{part}.classes", record["classes"]))
    good = (rows["shard"] >= 0) & (rows["shard"] < len(files.sizes))
    ends = (
        files.sizes[np.where(good, rows["shard"], 0)] if len(files.sizes) else np.zeros(len(rows), np.int64)
    )
    # Checked in this order, so that no sum overflows.
    good &= (rows["length"] >= 0) & (rows["length"] <= min(MAX_IMAGE, 2**31 - 1))
    good &= (rows["offset"] >= 0) & (rows["offset"] <= ends - rows["length"])
    good &= (rows["label"] >= -1) & (rows["label"] < len(names))
    if not good.all():
        raise ValueError(f"{part}.index, row {int(np.argmin(good))} lies outside its file, or has no class")
    origins = (files.root / f"{part}.origins", record["origins"])
    return PackedSource(str(record["name"]), files, rows, names, tuple(record["has"]), origins)


def _array(path: pathlib.Path, dtype: np.dtype, promised: Any) -> np.ndarray:
    return np.frombuffer(_checked(path, promised), dtype)


def _texts(path: pathlib.Path, promised: Any) -> list[str]:
    text = _checked(path, promised).decode(errors="surrogateescape")
    return text.split("\0")[:-1]


def _checked(path: pathlib.Path, promised: Any) -> bytes:
    """A file that has the size and the CRC-32 that are promised."""
    size, crc32 = promised
    data = read_bytes(path, size)
    if len(data) != size or zlib.crc32(data) != crc32:
        raise ValueError(f"{path.name} is not what was packed")
    return data


def texts(values: Sequence[str]) -> bytes:
    """Texts as a file has them: each ends with a zero byte, which no file's name has."""
    return "".join(f"{v}\0" for v in values).encode(errors="surrogateescape")
