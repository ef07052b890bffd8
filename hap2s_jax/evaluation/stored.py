"""Files of embeddings from anybody, whose headers are checked before anything is allocated.

One schema for galleries and for `evaluate --embeddings`, .npz and .parquet.
"""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from hap2s_jax import formats
from hap2s_jax.data.regular_files import check_members, open_regular, open_zip, parse_json
from hap2s_jax.errors import UserError, reason

_MAX_HEADER = 10_000
_MAX_MODEL = 2**20


class Stored(NamedTuple):
    """An array of the schema: kinds of NumPy's dtypes, their name, and sides; equal letters mean equal lengths."""

    kinds: str
    words: str
    sides: str


SCHEMA = {
    "embeddings": Stored("fiu", "real numbers", "nd"),
    "labels": Stored("iu", "integers", "n"),
    "paths": Stored("U", "text", "n"),
    "class_names": Stored("U", "text", "c"),
    "model": Stored("U", "text", ""),
    "cameras": Stored("iu", "integers", "n"),
    "split": Stored("US", "text", "n"),
    "pairs": Stored("iu", "integers", "pk"),
}


# What a file of ours says of its encoder, as far as anything depends on it, and the longest text of it: a path's.
_MODEL = {
    "fingerprint": str,
    "step": int,
    "average": bool,
    "distance": str,
    "workdir": str,
    "images": str,
    "part": str,
    "count": int,
}
_MAX_TEXT = 4096


class DamagedError(UserError):
    """The file holds no arrays, or is cut off, encrypted or packed too densely."""


def read_npz(
    path: str | os.PathLike[str], needed: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Reads the wanted arrays of `SCHEMA` from an .npz file.

    Args:
      path: of the file.
      needed, optional: names; other arrays are ignored.

    Raises:
      KeyError: a needed array is not there.
      DamagedError: it is no such file, or promises more than it can hold.
      UserError: an array is of a wrong kind, or does not fit the others.
      OSError: the file is not there, may not be read, or is no regular one.
    """
    with open_regular(path) as file:
        try:
            with open_zip(file) as archive:
                there = {info.filename: info for info in archive.infolist()}
                names = [name for name in (*needed, *optional) if f"{name}.npy" in there]
                members = {name: there[f"{name}.npy"] for name in names}
                check_members(members.values(), os.fstat(file.fileno()).st_size)
                check({name: _header(archive, info) for name, info in members.items()}, path)
                if lacking := [name for name in needed if name not in members]:
                    raise KeyError(lacking[0])
                return {name: _array(archive, info) for name, info in members.items()}
        except (UserError, KeyError):
            raise
        except Exception as error:  # zipfile, zlib and NumPy may raise anything
            raise DamagedError(reason(error)) from error


def check(headers: dict[str, tuple[np.dtype, tuple[int, ...]]], path: str | os.PathLike[str]) -> None:
    """Raises a UserError unless arrays of these dtypes and shapes are those of the schema, and fit one another."""
    known: dict[str, int] = {}
    for name, (dtype, shape) in headers.items():
        kinds, words, sides = SCHEMA[name]
        if dtype.kind not in kinds or dtype.itemsize == 0 or dtype.subdtype is not None:
            raise UserError(f"{name} in {path} must hold {words}, but is of dtype {dtype!s:.40}")
        if len(shape) != len(sides):
            raise UserError(
                f"{name} in {path} must have the shape [{', '.join(sides)}], but has {list(shape)!s:.60}"
            )
        for side, length in zip(sides, shape, strict=True):
            if known.setdefault(side, length) != length:
                raise UserError(
                    f"{name} in {path} must have one entry for each embedding: {name} has {length} entries for "
                    f"{known[side]} embeddings"
                )
    if 0 in (known.get("n"), known.get("d")):
        raise UserError(f"{path} holds no embeddings: their shape is {[known.get('n'), known.get('d')]}")


def check_labels(labels: np.ndarray, class_names: np.ndarray | None, path: str | os.PathLike[str]) -> None:
    """Raises a UserError unless `labels` `[n]` are numbers of classes from 0 on, of `class_names` `[c]` where they are
    known, or -1 for none.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    if class_names is None:
        if lowest < -1:
            raise UserError(f"labels in {path} must be at least 0, or -1 for none, but go from {lowest}")
    elif lowest < -1 or highest >= len(class_names):
        raise UserError(
            f"labels in {path} must be numbers of its {len(class_names)} classes, or -1 for none, but go from {lowest} "
            f"to {highest}"
        )


def read_model(text: object, path: str | os.PathLike[str]) -> dict[str, Any]:  # of JSON
    """A file's own description of the encoder that made it.

    Raises:
      ValueError: it is no JSON object, or of other types than ours.
      formats.NewerFormatError: a later version of `hap2s_jax.embed` wrote it.
    """
    model = parse_json(str(text) if len(str(text)) <= _MAX_MODEL else "")
    for name, kind in _MODEL.items():
        value = model.get(name, kind())
        if type(value) is not kind or (isinstance(value, str) and len(value) > _MAX_TEXT):
            raise ValueError(f"its {name} is {value!r:.60}")
    return formats.upgraded(model, path) if "fingerprint" in model else model


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape of an array, if the member is as long as they say."""
    with archive.open(info) as file:
        shape, dtype, begin = _read_header(file)
        if info.file_size - begin < math.prod(shape) * dtype.itemsize:
            raise DamagedError(f"{info.filename} claims {list(shape)!s:.60} of {dtype}, more than it holds")
    return dtype, shape


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise DamagedError(f"it holds an array of format {version}")
    shape, _, dtype = readers[version](file, max_header_size=_MAX_HEADER)
    if dtype.hasobject:
        raise DamagedError("it holds Python objects, which are not read")
    if any(type(side) is not int or side < 0 for side in shape):
        raise DamagedError(f"it holds an array of shape {shape!s:.60}")
    return shape, dtype, file.tell()


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False, max_header_size=_MAX_HEADER)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if (
        array.dtype.kind == "U"
        and array.size
        and np.ascontiguousarray(array).view(np.uint32).max() > sys.maxunicode
    ):
        raise DamagedError(f"{info.filename} holds no text")
    return array
