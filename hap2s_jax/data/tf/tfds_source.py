"""Data sets that were prepared with TensorFlow Datasets, as sources with random access.

TFRecord files, the default of `tfds`, can only be read from front to back. Here the offsets of the records are
written once, to a file beside them, so that existing data can be used. Data prepared with
`--file_format=array_record` has random access of its own.

The data may be in a bucket or on any other file system that TensorFlow knows by a prefix such as gs://.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hap2s_jax.data.readers.files import Parts, number_identities
from hap2s_jax.data.source import Subset
from hap2s_jax.data.tf import is_remote
from hap2s_jax.data.tf.quiet import tf
from hap2s_jax.errors import UserError

_LOG = logging.getLogger(__name__)
_INDEX = "hap2s_index_{split}.npz"
# A record: its length (8 bytes), a checksum of that (4), the data, a checksum of the data (4).
_HEADER, _FOOTER = 12, 4


@dataclass(frozen=True)
class Layout:
    """Feature names of a builder.

    Attributes:
      label: the feature that says whose image it is.
      camera: the feature that says which camera took it, or None.
      by_class: whether all splits are joined, and the first half of the classes trains.
    """

    label: str = "label"
    camera: str | None = None
    by_class: bool = False


LAYOUTS = {
    "caltech_birds2011": Layout(by_class=True),
    "cars196": Layout(by_class=True),
    "stanford_online_products": Layout(label="class_id"),
}
_OWN = Layout(label="identity", camera="camera")


def read_tfds(name: str, data_dir: str | os.PathLike[str]) -> Parts | None:
    """A data set prepared with TFDS below `data_dir`, or None if there is none.

    Nothing is downloaded and nothing prepared.

    Args:
      name: of the TFDS builder.
      data_dir: TFDS's data directory.

    Raises:
      UserError: the prepared data cannot be read.
    """
    import tensorflow_datasets as tfds

    layout, splits = LAYOUTS.get(name), ("train", "test")
    if layout is None:
        # Importing our builders registers them with TFDS.
        from hap2s_jax.data.builders.official import SPLITS

        layout, splits = _OWN, SPLITS
    # For a config or version that TFDS does not know, it would import the module that the prepared files name.
    made_by, _, config = name.partition("/")
    if config and config not in (known := tfds.builder_cls(made_by).builder_configs):
        raise UserError(f"{name}: there is no such data set; known: {', '.join(known)}")
    builder = tfds.builder(name, data_dir=os.fspath(data_dir))
    records = {}
    for split in splits:
        found = _records(builder, split)
        if found is None:
            return None
        records[split] = found
    if layout.by_class:
        joined = TfdsSource(name, list(records.values()), layout)
        # Each label is the place of its class among the official ones, found or not.
        first = joined.labels < len(joined.class_names) // 2
        return Parts(
            Subset(joined, np.flatnonzero(first), name=f"{name} train"),
            Subset(joined, np.flatnonzero(~first), name=f"{name} test"),
        )
    train = TfdsSource(f"{name} train", [records["train"]], layout)
    if "test" in records:
        return Parts(train, TfdsSource(f"{name} test", [records["test"]], layout))
    test = TfdsSource(f"{name} test", [records["query"], records["gallery"]], layout)
    queries = len(records["query"])
    return Parts(train, test, np.arange(queries), np.arange(queries, len(test)))


class TfdsSource:
    """Prepared splits of a TFDS data set, one after the other.

    Args:
      name: what messages call the source.
      splits: the records of each split.
      layout: which features to read.
    """

    boxes = None

    def __init__(self, name: str, splits: Sequence[_TfRecords | _RandomAccess], layout: Layout):
        self.name = name
        self._splits = list(splits)
        columns = [split.columns(layout) for split in splits]
        self._starts = np.cumsum([0] + [len(c[layout.label]) for c in columns])
        identities = np.concatenate([c[layout.label] for c in columns])
        self.cameras: np.ndarray | None = None
        if layout.camera is not None:
            cameras = np.concatenate([c[layout.camera] for c in columns]).astype(np.int32)
            # Our builders write -1 where a set has no cameras.
            self.cameras = None if (cameras < 0).all() else cameras
        if layout.by_class:
            classes = splits[0].num_classes(layout)
            self.labels, self.class_names = identities.astype(np.int32), tuple(map(str, range(classes)))
        else:
            self.labels, self.class_names = number_identities(identities.tolist())

    def __len__(self) -> int:
        """The number of images."""
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[Any, int]:
        split = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._splits[split], index - int(self._starts[split])

    def read(self, index: int) -> bytes:
        """The encoded image of record number `index`."""
        split, row = self._place(index)
        return split.image(row)

    def describe(self, index: int) -> str:
        """The split, or file, and the record in it."""
        split, row = self._place(index)
        return split.describe(row)


def _open(path: str) -> Any:
    # On a local disk Python's own files are ten times as fast.
    return tf.io.gfile.GFile(path, "rb") if is_remote(path) else open(path, "rb")


def _records(builder: Any, split: str) -> _TfRecords | _RandomAccess | None:
    known = builder.info.splits
    paths = [os.fspath(p) for p in known[split].filepaths] if split in known else []
    if paths and builder.info.file_format.value == "tfrecord":
        return _TfRecords(builder, split, paths) if all(map(tf.io.gfile.exists, paths)) else None
    try:
        return _RandomAccess(builder, split)
    # Versions of TFDS raise different errors where nothing is prepared.
    except (NotImplementedError, AssertionError, FileNotFoundError, ValueError, KeyError):
        return None


class _RandomAccess:
    """A split in a format with random access of its own."""

    def __init__(self, builder: Any, split: str):
        import tensorflow_datasets as tfds

        self._info = builder.info
        self._split = split
        images = [
            n for n, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)
        ]
        self._examples = builder.as_data_source(
            split, decoders=dict.fromkeys(images, tfds.decode.SkipDecoding())
        )

    def __len__(self) -> int:
        return len(self._examples)

    def num_classes(self, layout: Layout) -> int:
        return self._info.features[layout.label].num_classes

    def columns(self, layout: Layout) -> dict[str, np.ndarray]:
        names = [n for n in (layout.label, layout.camera) if n]
        rows = [[int(example[n]) for n in names] for example in self._examples]
        table = np.array(rows, np.int64).reshape(-1, len(names))
        return {n: table[:, i] for i, n in enumerate(names)}

    def image(self, row: int) -> bytes:
        return self._examples[row]["image"]

    def describe(self, row: int) -> str:
        return f"{self._info.name}/{self._split}, record {row}"


class _TfRecords:
    """A split in TFRecord files, with the offsets of the records."""

    def __init__(self, builder: Any, split: str, paths: list[str]):
        self._info = builder.info
        self._paths = paths
        self._folder = paths[0].rpartition("/")[0]
        self._index = f"{self._folder}/{_INDEX.format(split=split)}"
        self._stamp = np.array([tf.io.gfile.stat(p).length for p in paths], np.int64)
        self._rows: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._rows["offset"])

    def num_classes(self, layout: Layout) -> int:
        return self._info.features[layout.label].num_classes

    def columns(self, layout: Layout) -> dict[str, np.ndarray]:
        names = [n for n in (layout.label, layout.camera) if n]
        rows = self._load(names)
        if rows is None:
            _LOG.info("noting the places of the records of %s, once", self._folder)
            rows = self._scan(names)
            self._save(rows)
        self._rows = rows
        return rows

    def image(self, row: int) -> bytes:
        with _open(self._paths[self._rows["shard"][row]]) as file:
            file.seek(int(self._rows["offset"][row]))
            record = file.read(int(self._rows["length"][row]))
        return tf.train.Example.FromString(record).features.feature["image"].bytes_list.value[0]

    def describe(self, row: int) -> str:
        return f"{self._paths[self._rows['shard'][row]]}, byte {self._rows['offset'][row]}"

    def _load(self, names: list[str]) -> dict[str, np.ndarray] | None:
        try:
            with _open(self._index) as file, np.load(io.BytesIO(file.read())) as saved:
                if not np.array_equal(saved["stamp"], self._stamp):
                    return None
                return {n: saved[n] for n in ("shard", "offset", "length", *names)}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, tf.errors.OpError):
            return None

    def _save(self, rows: dict[str, np.ndarray]) -> None:
        try:
            whole = io.BytesIO()
            np.savez(whole, stamp=self._stamp, **rows)  # pyright: ignore[reportArgumentType] - arrays
            # It gets its name only when complete, so that an interrupted run leaves no half-written file.
            temporary = f"{self._index}.{uuid.uuid4().hex}"
            try:
                with tf.io.gfile.GFile(temporary, "wb") as file:
                    file.write(whole.getvalue())
                tf.io.gfile.rename(temporary, self._index, overwrite=True)
            except BaseException:
                if tf.io.gfile.exists(temporary):
                    tf.io.gfile.remove(temporary)
                raise
        except (OSError, tf.errors.OpError) as error:
            _LOG.warning(
                "cannot keep the index %s (%s); it will be built again at every start", self._index, error
            )

    def _scan(self, names: list[str]) -> dict[str, np.ndarray]:
        rows: list[tuple[int, ...]] = []
        for number, path in enumerate(self._paths):
            size = int(self._stamp[number])
            with _open(path) as file:
                offset = 0
                while offset < size:
                    header = file.read(_HEADER)
                    length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else size
                    if offset + _HEADER + length + _FOOTER > size:
                        raise UserError(f"{path}: ends in the middle of a record; prepare the data set again")
                    features = tf.train.Example.FromString(file.read(length)).features.feature
                    values = (features[n].int64_list.value[0] for n in names)
                    rows.append((number, offset + _HEADER, length, *values))
                    offset += _HEADER + length + _FOOTER
                    file.seek(offset)
        table = np.array(rows, np.int64).reshape(-1, 3 + len(names))
        return {n: table[:, i] for i, n in enumerate(("shard", "offset", "length", *names))}
