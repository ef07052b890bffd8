"""Reads files that may be anything: only regular ones, whose size is checked before they are read."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import stat
import zipfile
from collections.abc import Iterable
from typing import IO, Any

from hap2s_jax.data.bucket import BucketPath

# Largest encoded image, 256 MiB, and largest JSON file of ours.
MAX_IMAGE = 2**28
MAX_JSON = 2**24
# Of a list of images, such as a CSV: ten million rows.
MAX_LIST = 2**30
# What a packed file may become: so much at least, and so many times its size. Text packs well.
_SMALL, _TIMES = 2**26, 50
# In a zip file: the largest list of members (tens of thousands), and where its end is searched.
_MAX_MEMBERS, _MAX_TAIL = 2**22, 2**17
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class RefusedError(OSError):
    """A file that is not read: a device, a pipe, a folder, or a larger one than is allowed."""


def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> IO[bytes]:
    """Opens a regular file of at most `limit` bytes; links are followed. A `BucketPath` (not text) is copied.

    Raises:
      RefusedError: it is not a regular file, or too large.
      OSError: it is not there, or may not be read.
    """
    if isinstance(path, BucketPath):
        return path.open("rb", limit)
    return os.fdopen(_descriptor(path, limit)[0], "rb", 0)


def _descriptor(path: str | os.PathLike[str], limit: int | None) -> tuple[int, int]:
    """The descriptor of a regular file opened for reading, and its size; see `open_regular`."""
    try:
        # Checked before opening: a pipe would wait for its writer, and opening a device may have an effect.
        _check(os.stat(path), limit)
        descriptor = os.open(path, _READ)
    except ValueError:
        raise RefusedError("its name holds a zero byte") from None
    try:
        return descriptor, _check(os.fstat(descriptor), limit)  # checked again: it may have been replaced
    except OSError:
        os.close(descriptor)
        raise


def check_regular(path: str | os.PathLike[str], limit: int | None = None) -> None:
    """Raises as `open_regular` would; what is not there is passed over."""
    with contextlib.suppress(FileNotFoundError):
        _check(os.stat(path), limit)


def size_of(path: str | os.PathLike[str]) -> int:
    """The bytes of a regular file, without opening it; errors are those of `open_regular`."""
    return _check(os.stat(path), None)


def _check(status: os.stat_result, limit: int | None) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError("it is not a regular file")
    if limit is not None and status.st_size > limit:
        raise RefusedError(f"it holds {status.st_size:,} bytes, more than the {limit:,} allowed")
    return status.st_size


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_IMAGE) -> bytes:
    """All bytes of a regular file; errors are those of `open_regular`."""
    if isinstance(path, BucketPath):
        with path.open("rb", limit) as file:
            return file.read()
    # By the descriptor: making a file object would double the time for a small image.
    descriptor, size = _descriptor(path, limit)
    try:
        # Read no more than the size promised: some kernel files have size 0 and never end.
        parts = [os.read(descriptor, size)]
        while parts[-1] and (missing := size - sum(map(len, parts))):
            parts.append(os.read(descriptor, missing))
    finally:
        os.close(descriptor)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON file whose outermost value is an object; a ValueError for any other, besides `open_regular`'s errors."""
    return parse_json(read_bytes(path, MAX_JSON))


def parse_json(text: str | bytes) -> dict[str, Any]:
    """A JSON object from text; a ValueError for anything else."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not an object")
    return found


def below(folder: str | os.PathLike[str], path: str) -> pathlib.Path:
    """The target of `path`, relative to `folder`, with links followed.

    Raises:
      RefusedError: out of the folder.
    """
    try:
        root = pathlib.Path(folder).resolve()
        found = (root / path).resolve()
    except (ValueError, RuntimeError) as error:  # a zero byte, or links in a circle
        raise RefusedError(str(error)) from None
    if not found.is_relative_to(root):
        raise RefusedError(f"it does not lie below {root}")
    return found


def allowed(size: int) -> int:
    """The bytes that a packed file of `size` bytes may unpack to."""
    return _SMALL + _TIMES * size


def open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    """Opens a zip file, unless its list of members, which is read at once, is too long.

    Raises:
      RefusedError: it lists too many.
      zipfile.BadZipFile: it is none.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _MAX_TAIL))
    tail = file.read(_MAX_TAIL)
    # The bytes that the list takes stand in the record at the end; 2**32 - 1 refers to a longer record before it.
    end, end64 = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    sizes = [int.from_bytes(tail[end + 12 : end + 16], "little")] if end >= 0 else []
    if end64 >= 0:
        sizes = [size for size in sizes if size < 2**32 - 1]
        sizes.append(int.from_bytes(tail[end64 + 40 : end64 + 48], "little"))
    if any(size > _MAX_MEMBERS for size in sizes):
        raise RefusedError(f"it lists too many members: {max(sizes):,} bytes of them")
    file.seek(0)
    return zipfile.ZipFile(file)


def check_members(members: Iterable[zipfile.ZipInfo], size: int) -> None:
    """Raises a RefusedError for members of a zip file of `size` bytes that are encrypted, packed in an unusual way, or
    promise more than is `allowed`.
    """
    total = 0
    for info in members:
        if info.flag_bits & 1:
            raise RefusedError(f"{info.filename!r:.80} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RefusedError(f"{info.filename!r:.80} is compressed by an unusual method")
        total += info.file_size
    if total > allowed(size):
        raise RefusedError(f"it claims {total:,} bytes, more than {allowed(size):,} for a file of {size:,}")
