"""Files of images, each written whole or not at all."""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hap2s_jax.data.packed import ROW
from hap2s_jax.data.packing_plan import Part
from hap2s_jax.data.regular_files import read_bytes
from hap2s_jax.data.resized import Change
from hap2s_jax.data.tf.quiet import tf
from hap2s_jax.data.tf.records import Features
from hap2s_jax.errors import UserError, reason
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.reporting.environment import usable_cores

SHARD_BYTES = 150 * 10**6
_AT_ONCE = 512


def write_file(path: pathlib.Path, data: bytes) -> list[int]:
    """Writes a file whole or not at all; returns its size and CRC-32."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return [len(data), zlib.crc32(data)]


class Writer:
    """Writes files of images, or reuses finished ones.

    Attributes:
      shards: [name, bytes] of each.
      lengths: split -> images in each of its files.
    """

    def __init__(
        self,
        root: pathlib.Path,
        plan: Mapping[str, Part],
        features: Features,
        change: Change,
        tell: Callable[[int], None],
    ):
        self._root, self._plan, self.features, self._change, self._tell = root, plan, features, change, tell
        self.shards: list[list[Any]] = []
        self.lengths: dict[str, list[int]] = {}
        self._done = 0

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each file."""
        return {str(name): int(size) for name, size in self.shards}

    def write(self, split: str, chosen: list[tuple[str, int]]) -> None:
        """Writes a split."""
        self.lengths[split] = []
        at = 0
        images: Iterator[tuple[bytes, np.ndarray | None]] | None = None
        with ThreadPoolExecutor(2 * usable_cores()) as pool:
            while at < len(chosen):
                name = f"{split}.tfrecord-{len(self.lengths[split]):05d}"
                rows = self._there(name)
                if rows is None:
                    if images is None:
                        images = self._images(chosen[at:], pool)
                    rows = self._shard(name, chosen[at:], images)
                for (part, i), row in zip(chosen[at:], rows, strict=False):
                    self._plan[part].rows[i] = row
                    self._plan[part].rows["shard"][i] = len(self.shards)
                at += len(rows)
                size = int(rows["offset"][-1] + rows["length"][-1]) + 4  # 4 bytes: the checksum
                self.shards.append([name, size])
                self.lengths[split].append(len(rows))
                self._tell_more(0 if images is not None else len(rows))

    def _tell_more(self, images: int) -> None:
        self._done += images
        self._tell(self._done)

    def _there(self, name: str) -> np.ndarray | None:
        """The index entries of a file that an earlier run has finished."""
        try:
            rows = np.frombuffer(read_bytes(self._root / f"{name}.rows"), ROW)
        except (OSError, ValueError):
            return None
        return rows if len(rows) and (self._root / name).is_file() else None

    def _images(
        self, chosen: list[tuple[str, int]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[bytes, np.ndarray | None]]:
        """Yields the images in order, reading ahead."""
        for begin in range(0, len(chosen), _AT_ONCE):
            yield from pool.map(self._image, chosen[begin : begin + _AT_ONCE])

    def _image(self, where: tuple[str, int]) -> tuple[bytes, np.ndarray | None]:
        part, i = where
        source, boxes = self._plan[part].source, self._plan[part].boxes
        box = None if boxes is None else boxes[i]
        try:
            data = source.read(i)
        except OSError as error:
            raise UserError(
                f"cannot read the image {source.describe(i)}: {reason(error)}; fix it, or leave it out"
            ) from None
        return self._change.call(data, box) if self._change.call else (data, box)

    def _shard(self, name: str, chosen: list[tuple[str, int]], images: Iterator[Any]) -> np.ndarray:
        """Writes a file, reads it again, and gives it its name."""
        rows, offset = [], 0
        with replacing(self._root / name) as temporary:
            with tf.io.TFRecordWriter(str(temporary)) as file:
                for part, i in chosen:
                    data, box = next(images)
                    record = self.features.record(self._plan, part, i, data, box)
                    file.write(record)
                    begin = offset + 12 + len(record) - len(data)  # skips the length and its checksum
                    rows.append(
                        (0, begin, len(data), zlib.crc32(data), 0, 0, (0,) * 4 if box is None else tuple(box))
                    )
                    offset += 12 + len(record) + 4
                    self._tell_more(1)
                    if offset >= SHARD_BYTES:
                        break
            found = np.array(rows, ROW)
            _read_again(temporary, found)
        write_file(self._root / f"{name}.rows", found.tobytes())
        return found


def _read_again(path: pathlib.Path, rows: np.ndarray) -> None:
    with path.open("rb") as file:
        for row in rows:
            file.seek(int(row["offset"]))
            if zlib.crc32(file.read(int(row["length"]))) != row["crc32"]:
                raise UserError(f"{path} does not hold what was written to it; check the disk")
