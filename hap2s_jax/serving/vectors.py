"""Files of embeddings: .npz, as `hap2s_jax.evaluate` reads it, or .parquet."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from hap2s_jax import extras, formats
from hap2s_jax.data.places import place
from hap2s_jax.data.regular_files import allowed, open_regular
from hap2s_jax.errors import UserError, reason
from hap2s_jax.evaluation import stored
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.serving.listing import Listing
from hap2s_jax.serving.parts import Part

SUFFIXES = (".npz", ".parquet")
_ARRAYS = ("embeddings", "paths", "labels", "class_names", "model")
_ROWS_AT_ONCE = 65536


class NothingReadableError(UserError):
    """No image at all could be embedded."""


@dataclasses.dataclass(frozen=True)
class Vectors:
    """The contents of a file of embeddings.

    Attributes:
      embeddings: float32 `[n, d]`.
      paths: `[n]`, relative to ``model["images"]``.
      labels: `[n]`, -1 where an image has no class.
      class_names: `[C]`.
      model: which encoder made them: fingerprint, step, distance, workdir, ...; and ``images``, the folder.
      cameras: int64 `[n]`, below 0 where one is not known; None without any.
    """

    embeddings: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    class_names: np.ndarray
    model: dict[str, Any]
    cameras: np.ndarray | None = None

    def class_of(self, row: int) -> str:
        """The name of a row's class, "" without one."""
        return str(self.class_names[self.labels[row]]) if self.labels[row] >= 0 else ""


class Outcome(NamedTuple):
    """The result of writing: the number of embeddings, and (path, reason) of each image that could not be read."""

    count: int  # pyright: ignore[reportIncompatibleMethodOverride] - a tuple's method, which nobody asks here
    unreadable: list[tuple[str, str]]


def write(output: pathlib.Path, parts: Iterable[Part], listing: Listing, model: dict[str, Any]) -> Outcome:
    """Joins the parts to `output`, whole or not at all."""
    kept, unreadable = [np.zeros(0, np.int64)], []
    dim = 0
    for part in parts:
        kept.append(part.rows)
        dim = part.embeddings.shape[1]
        unreadable += [
            (listing.paths[row], str(why)) for row, why in zip(part.unreadable, part.reasons, strict=True)
        ]
    rows = np.concatenate(kept)
    if len(rows) == 0:
        raise NothingReadableError(
            f"none of the {len(listing.paths)} images can be read, such as {unreadable[0][0]}: {unreadable[0][1]}"
        )
    blocks = (part.embeddings for part in parts)
    counts = {"count": len(rows), "unreadable": len(unreadable)}
    writer = _write_npz if output.suffix == ".npz" else _write_parquet
    with replacing(output) as temporary:
        writer(temporary, rows, dim, blocks, listing, json.dumps(formats.stamped(model | counts)))
    return Outcome(len(rows), unreadable)


def _write_npz(
    path: pathlib.Path,
    rows: np.ndarray,
    dim: int,
    blocks: Iterable[np.ndarray],
    listing: Listing,
    model: str,
) -> None:
    width = max((len(listing.paths[row]) for row in rows), default=1)
    names = (
        np.array([listing.paths[row] for row in rows[begin : begin + _ROWS_AT_ONCE]], f"<U{width}")
        for begin in range(0, len(rows), _ROWS_AT_ONCE)
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, dtype: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for chunk in chunks:
                    file.write(np.ascontiguousarray(chunk, dtype).tobytes())

        put("embeddings", "<f4", (len(rows), dim), blocks)
        put("labels", "<i8", (len(rows),), [listing.labels[rows]])
        put("paths", f"<U{width}", (len(rows),), names)
        if listing.cameras is not None:
            put("cameras", "<i8", (len(rows),), [listing.cameras[rows]])
        for name, value in (("class_names", np.array(listing.class_names, str)), ("model", np.array(model))):
            put(name, value.dtype.str, value.shape, [value])


def _write_parquet(
    path: pathlib.Path,
    rows: np.ndarray,
    dim: int,
    blocks: Iterable[np.ndarray],
    listing: Listing,
    model: str,
) -> None:
    arrow, parquet = _pyarrow()
    columns = {"path": arrow.string(), "label": arrow.string()}
    if listing.cameras is not None:
        columns["camera"] = arrow.int64()
    columns["embedding"] = arrow.list_(arrow.float32(), dim)
    schema = arrow.schema(list(columns.items()), metadata={"hap2s_jax": model})
    with parquet.ParquetWriter(path, schema) as writer:
        begin = 0
        for block in blocks:
            chosen = rows[begin : begin + len(block)]
            begin += len(block)
            values = arrow.array(np.ascontiguousarray(block).reshape(-1))
            table: dict[str, Any] = {
                # Parquet's text is UTF-8; file names may hold other bytes.
                "path": [listing.paths[row].encode(errors="replace").decode() for row in chosen],
                "label": [listing.class_names[n] if n >= 0 else None for n in listing.labels[chosen]],
                "embedding": arrow.FixedSizeListArray.from_arrays(values, dim),
            }
            if listing.cameras is not None:
                table["camera"] = listing.cameras[chosen]
            writer.write_table(arrow.table(table, schema=schema))


def read(path: str | os.PathLike[str]) -> Vectors:
    """Reads a file that `hap2s_jax.embed` wrote.

    Raises:
      UserError: the file is missing, damaged, of another make or of a later version.
    """
    path = place(path)
    if not path.exists():
        raise UserError(f"there is no file {path}; python -m hap2s_jax.embed makes one")
    with _reading(path):
        is_parquet = path.suffix == ".parquet"
        arrays = _read_parquet(path) if is_parquet else stored.read_npz(path, _ARRAYS, ("cameras",))
        stored.check_labels(arrays["labels"], arrays["class_names"], path)
        with np.errstate(over="ignore", invalid="ignore"):
            embeddings = arrays["embeddings"].astype(np.float32, copy=False)
            total = embeddings.sum()  # not finite if any value is not, or if the sum overflows
        if not (np.isfinite(total) or np.isfinite(embeddings).all()):
            raise UserError(f"{path} holds embeddings that are not finite; its encoder has diverged")
        model = stored.read_model(arrays["model"], path)
        return Vectors(
            embeddings,
            arrays["paths"],
            arrays["labels"],
            arrays["class_names"],
            model,
            arrays.get("cameras"),
        )


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns the fault of a file into one line."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path} lacks {error}; make it with python -m hap2s_jax.embed") from error
    except Exception as error:  # pyarrow and NumPy may raise anything
        if isinstance(error, UserError) and not isinstance(error, stored.DamagedError):
            raise
        raise UserError(
            f"{path} is damaged or not a file of embeddings ({reason(error)}); make it again"
        ) from error


def read_model(path: pathlib.Path) -> dict[str, Any]:
    """The encoder and images of a finished file, without reading its embeddings."""
    if path.suffix == ".parquet":
        _, parquet = _pyarrow()
        with open_regular(path) as file:
            return stored.read_model(_model_of(parquet.read_schema(file)), path)
    return stored.read_model(stored.read_npz(path, ("model",))["model"], path)


def _model_of(schema: Any) -> str:
    return (schema.metadata or {})[b"hap2s_jax"].decode()


def _read_parquet(path: pathlib.Path) -> dict[str, Any]:
    """The arrays of a parquet file under the names of an .npz file; its metadata is checked first."""
    arrow, parquet = _pyarrow()
    file = open_regular(path)
    most = allowed(os.fstat(file.fileno()).st_size)
    # Text stays numbers of a dictionary: a short file may repeat a long text very often.
    with file, parquet.ParquetFile(file, read_dictionary=["path", "label"]) as opened:
        schema, rows = opened.schema_arrow, opened.metadata.num_rows
        kind = schema.field("embedding").type
        if not arrow.types.is_fixed_size_list(kind) or not arrow.types.is_floating(kind.value_type):
            raise UserError(
                f"{path}: the column embedding must hold lists of one length of numbers, but is {kind}"
            )
        dtype = np.dtype(kind.value_type.to_pandas_dtype())
        stored.check({"embeddings": (dtype, (rows, kind.list_size))}, path)
        if rows * kind.list_size * dtype.itemsize > most:
            raise stored.DamagedError(f"it claims {rows:,} rows of {kind.list_size} numbers")
        has_cameras = "camera" in schema.names and arrow.types.is_integer(schema.field("camera").type)
        table = opened.read(columns=["path", "label", "embedding", *(["camera"] if has_cameras else [])])
    text = {name: _text(table.column(name), most, arrow) for name in ("path", "label")}
    names = text["label"]
    class_names = sorted({name for name in names if name is not None})
    number = {name: n for n, name in enumerate(class_names)}
    cameras = {}
    if has_cameras:
        cameras["cameras"] = np.asarray(table.column("camera").cast(arrow.int64()).fill_null(-1))
    return cameras | {
        "embeddings": np.asarray(table.column("embedding").combine_chunks().flatten()).reshape(
            len(table), -1
        ),
        "labels": np.array([-1 if name is None else number[name] for name in names], np.int64),
        "paths": np.array(text["path"], str),
        "class_names": np.array(class_names, str),
        "model": _model_of(schema),
    }


def _text(column: Any, most: int, arrow: Any) -> list[str | None]:
    if not arrow.types.is_dictionary(column.type):
        raise stored.DamagedError(f"its texts are {column.type}")
    longest = max((len(text) for chunk in column.chunks for text in chunk.dictionary.to_pylist()), default=0)
    if 4 * longest * len(column) > most:
        raise stored.DamagedError(f"it claims {len(column):,} texts of up to {longest:,} letters")
    return column.cast(arrow.string()).to_pylist()


def _pyarrow() -> tuple[Any, Any]:
    user = "a parquet file (.npz is another choice)"
    return extras.load(user, "pyarrow", "parquet"), extras.load(user, "pyarrow.parquet", "parquet")
