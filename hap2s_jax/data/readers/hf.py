"""Data sets of the library `datasets`: from the Hugging Face hub or its cache, folders, parquet.

Nothing that comes along is run or unpickled: `datasets` 4 and later refuse scripts, and of its own formats only those
that hold images as bytes or files are read here.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hap2s_jax import extras
from hap2s_jax.data.readers.files import FileSource, Parts
from hap2s_jax.data.readers.rows import SPLITS, Rows, arrange, rows_of_table
from hap2s_jax.data.readers.table import named_columns, table_of
from hap2s_jax.data.regular_files import read_bytes, size_of
from hap2s_jax.errors import UserError, reason

FORMATS = ("imagefolder", "parquet", "arrow", "cache")  # cache: a data set of the hub, offline
_SAVED = ("dataset_dict.json", "state.json")  # files that save_to_disk writes
_WHOLE = "all"


class HubSource(FileSource):
    """Images inside a data set of the library `datasets`; arguments and attributes are `FileSource`'s.

    Args:
      splits: its splits, whose column `column` holds images that are not decoded.
      column: that column.
      paths: each image as SPLIT/ROW; `root` is what messages call the data set.
    """

    def __init__(self, splits: Mapping[str, Any], column: str, *args: Any):
        super().__init__(*args)
        self._splits, self._column = splits, column

    def size(self, index: int) -> int:
        """The bytes of the encoded image number `index`, without reading it."""
        split, _, row = self.paths[index].rpartition("/")
        held, path = self._stored[split]
        return held[int(row)] or size_of(path[int(row)] or self.describe(index))

    @functools.cached_property
    def _stored(self) -> dict[str, tuple[list[int | None], list[str | None]]]:
        """For each split, the lengths of its embedded images, and the files of the others."""
        import pyarrow as arrow

        compute: Any = importlib.import_module("pyarrow.compute")  # whose functions have no types
        found = {}
        for split, data in self._splits.items():
            column = data.with_format("arrow")[:][self._column]
            parts = arrow.types.is_struct(column.type)
            held = compute.binary_length(compute.struct_field(column, "bytes") if parts else column)
            paths = compute.struct_field(column, "path").to_pylist() if parts else [None] * len(column)
            found[split] = held.to_pylist(), paths
        return found

    def read(self, index: int) -> bytes:
        """The encoded image number `index`."""
        split, _, row = self.paths[index].rpartition("/")
        value = self._splits[split][int(row)][self._column]
        held, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(held, bytes):
            return held
        if path and os.path.isfile(path):
            return read_bytes(path)
        raise UserError(
            f"{self.describe(index)}: holds neither the bytes of an image nor a file that is here"
        )


def read_hf(
    root: Path | None,
    *,
    path: str = "",
    subset: str = "",
    revision: str = "",
    columns: str = "",
    splits: str = "",
    test_fraction: float = 0.5,
    split: str = "auto",
    unknown: str = "junk",
    seed: int = 0,
) -> Parts:
    """A data set of the Hugging Face hub, or of its formats on this disk.

    Args:
      root: without `path`: a folder of images (`imagefolder`) or of parquet files, one parquet file, or what
        `Dataset.save_to_disk` left.
      path: the data set's name on the hub, OWNER/NAME; taken from the cache of `datasets` where it is there.
      subset: which of its configurations.
      revision: which of its versions.
      columns: what the columns path (the image), label, split, camera and box are called in it, see `read_table`. The
        image column is found by its type if there is only one.
      splits: which of its splits are which part, as in ``test=validation`` or, to split all classes anew,
        ``all=train+test``; by default they are what they are called, and one alone is all.
      test_fraction, split, unknown, seed: of `own.read_folder`.

    Raises:
      UserError: it is not there, is of no format that is read here, or lacks columns or parts.
    """
    name = path or str(root)
    found = _load(root, path, subset, revision)
    features = next(iter(found.values())).features
    given = dict(named_columns(columns))
    image = _image_column(name, features, given.get("path", ""))
    named = columns if "path" in given else f"{columns},path={image}"
    head = [image, *(column for column in features if column != image and _is_text(features[column]))]
    rows, parts_of_rows, opened = [], [], {}
    chosen = _chosen(name, splits, list(found))
    for part, of in chosen.items():
        data = found[part]
        opened[part] = _undecoded(data, image)
        cells = zip(*_texts(data, head[1:]), strict=True) if head[1:] else [()] * len(data)
        rows += [(n + 1, [f"{part}/{n}", *row]) for n, row in enumerate(cells)]
        parts_of_rows += [of] * len(data)
    table = table_of(name, [column.lower() for column in head], rows, named)
    if not table.has_split and {*parts_of_rows} != {_WHOLE}:
        table.has_split, table.splits = True, parts_of_rows
    parts, remarks = rows_of_table(table, name)
    if left := {part: len(data) for part, data in found.items() if part not in chosen}:
        remarks += (
            f"{sum(left.values()):,} images of {', '.join(left)} are left out (data.options.splits names parts)",
        )
    make = functools.partial(HubSource, opened, image)

    def source(rows: Rows, part: str) -> FileSource:
        return rows.source(f"{name} {part}", name, make)

    return arrange(
        parts, remarks, name, source, test_fraction=test_fraction, split=split, unknown=unknown, seed=seed
    )


def _load(root: Path | None, path: str, subset: str, revision: str) -> Mapping[str, Any]:
    """The splits by name, prepared in the cache of `datasets`."""
    library = extras.load("data.name=hf", "datasets", "hf")
    if int(library.__version__.partition(".")[0]) < 4:
        raise UserError(
            f"data.name=hf: needs datasets 4 or later, for older ones run scripts; found {library.__version__}"
        )
    if path and not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise UserError(f"data.options.path: must be OWNER/NAME of a data set of the hub, found {path!r}")
    try:
        if not path and root is not None and any((root / mark).is_file() for mark in _SAVED):
            found = library.load_from_disk(str(root))
        else:
            builder = _builder(library, root, path, subset, revision)
            builder.download_and_prepare()
            found = builder.as_dataset()
    except (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        raise UserError(f"hf: cannot read {path or root}: {reason(error.__cause__ or error)}") from None
    return found if isinstance(found, dict) else {str(found.split or "train"): found}


def _builder(library: Any, root: Path | None, path: str, subset: str, revision: str) -> Any:
    """The builder that prepares the data set, of one of our formats."""
    options = {"name": subset or None, "revision": revision or None}
    if path:
        builder = library.load_dataset_builder(path, **options)
    elif root is not None and root.is_file():
        builder = library.load_dataset_builder("parquet", data_files=str(root))
    else:
        builder = library.load_dataset_builder(str(root), **options)
    modules = [kind.__module__.split(".") for kind in type(builder).__mro__]
    kind = next((m[2] for m in modules if m[:2] == ["datasets", "packaged_modules"]), "a format of its own")
    if kind not in FORMATS:
        raise UserError(
            f"hf: {path or root} is {kind}; images are read from {', '.join(FORMATS[:-1])} (a CSV with paths of images "
            "is data.name=folder)"
        )
    return builder


def _image_column(name: str, features: Mapping[str, Any], wanted: str) -> str:
    """The column that holds the images."""
    if wanted:
        fitting = [column for column in features if column.lower() == wanted]
    else:
        fitting = [column for column, kind in features.items() if _is_image(kind)]
        fitting = fitting or [column for column, kind in features.items() if _is_bytes(kind)]
    if len(fitting) != 1:
        raise UserError(
            f"{name}: {'several columns hold' if fitting else 'no column holds'} images"
            f"{f' ({wanted})' if wanted else ''}; name one: columns=path=NAME of {', '.join(features)} (in a config, "
            "data.options.columns)"
        )
    return fitting[0]


def _is_image(kind: Any) -> bool:
    return type(kind).__name__ == "Image"


def _is_bytes(kind: Any) -> bool:
    return "bytes" in kind if isinstance(kind, dict) else getattr(kind, "dtype", "") == "binary"


def _is_text(kind: Any) -> bool:
    return not (isinstance(kind, dict) or _is_image(kind) or _is_bytes(kind))


def _undecoded(data: Any, image: str) -> Any:
    """The data set whose images are bytes or paths."""
    kind = data.features[image]
    return data.cast_column(image, type(kind)(decode=False)) if _is_image(kind) else data


def _texts(data: Any, columns: list[str]) -> list[list[str]]:
    """The values of columns as texts, classes as their names; "" for unknown values."""
    values, texts = data.select_columns(columns)[:], []
    for column in columns:
        names = getattr(data.features[column], "names", None)
        if names is None:
            texts.append(["" if value is None else str(value) for value in values[column]])
        else:
            texts.append(["" if value is None or value < 0 else names[value] for value in values[column]])
    return texts


def _chosen(name: str, splits: str, there: list[str]) -> dict[str, str]:
    """The splits to use, and the part that each is; `_WHOLE` for one that must still be split by class."""
    if not splits:
        known = {split: SPLITS[split.lower()] for split in there if split.lower() in SPLITS}
        return {there[0]: _WHOLE} if len(there) == 1 else known
    chosen = {}
    for item in splits.split(","):
        part, equals, of = item.partition("=")
        for split in of.split("+"):
            if not equals or split not in there or (part != _WHOLE and part not in SPLITS):
                raise UserError(
                    f"data.options.splits: {item!r} should be all or one of {', '.join(SPLITS)}, an equals sign, and "
                    f"splits of {name} ({', '.join(there)}), as in all={'+'.join(there)}"
                )
            chosen[split] = part
    if _WHOLE in (parts := {*chosen.values()}) and len(parts) > 1:
        raise UserError(f"data.options.splits: {splits!r} names all beside other parts")
    return chosen
