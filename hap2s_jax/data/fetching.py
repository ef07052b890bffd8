"""Fetches parts of files in a bucket ahead of their use, many at a time, and caches them on this machine."""

from __future__ import annotations

import errno
import os
import pathlib
import queue
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, cast

import numpy as np

from hap2s_jax.data.bucket import CONNECTIONS, BucketPath
from hap2s_jax.data.source import origin_of
from hap2s_jax.errors import Unreachable, UserError

# Files are fetched in blocks. If the whole set fits into the cache, each block is fetched once, and blocks are large;
# else they are small, so that little is fetched beside the wanted images.
_LARGE, _SMALL = 2**20, 2**15
_STEPS_AHEAD = 16


class Cache(NamedTuple):
    """Where a packed data set from a bucket is cached, see `data.cache_dir` and `data.cache_gb` of a config."""

    folder: str | None = None
    gigabytes: float = 20.0


DEFAULT = Cache()


class Fetched:
    """Files in a bucket, read in parts.

    Args:
      paths: the files.
      sizes: `[files]` their bytes.
      cache: where their parts are kept.

    Raises:
      UserError: there is no room for the cache.
    """

    def __init__(self, paths: Sequence[pathlib.Path], sizes: np.ndarray, cache: Cache):
        self._paths, self._sizes = [cast(BucketPath, path) for path in paths], sizes
        room = max(4 * _LARGE, int(cache.gigabytes * 1e9))
        blocks = -(-sizes // _LARGE)
        whole = int(blocks.sum()) * _LARGE
        self._side = _LARGE if whole <= room else _SMALL
        self._first = np.cumsum([0, *(-(-sizes // self._side))]).tolist()
        self._ring = _Ring(cache.folder, min(room, whole + _LARGE))
        # The place of each block in the ring, where it may have been overwritten; below 0: never fetched.
        self._places = np.full(self._first[-1], -1, np.int64)
        self._coming: dict[int, Future[Any]] = {}
        # When the bucket was last given up, and the error of that time.
        self._silence: tuple[float, Unreachable | None] = (0.0, None)
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(CONNECTIONS):
            # Not a pool: at exit Python would wait for everything that is queued in one.
            threading.Thread(target=_work_off, args=(self._work,), daemon=True).start()
        weakref.finalize(self, _end, self._work)

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Bytes of a file.

        Raises:
          Unreachable: the bucket does not answer.
          UserError: the file is not there any more, or is not to be read.
        """
        first, last = self._blocks(file, offset, length)
        for _ in range(3 if 4 * length <= self._ring.size else 0):
            parts = [self._part(file, block, offset, length) for block in range(first, last + 1)]
            if all(part is not None for part in parts):
                return parts[0] if len(parts) == 1 else b"".join(parts)  # pyright: ignore
            for coming in self._request(file, first, last):
                coming.result()
        # The image is larger than the cache, or was overwritten before it was read.
        return self._get(file, offset, offset + length)

    def prefetch(self, files: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> int:
        """Begins to fetch parts of files; returns the bytes of the cache that they take."""
        wanted = set()
        for where in zip(files.tolist(), offsets.tolist(), lengths.tolist(), strict=True):
            first, last = self._blocks(*where)
            wanted.update(range(first, last + 1))
            self._request(where[0], first, last)
        return len(wanted) * self._side

    @property
    def room(self) -> int:
        """Bytes that may be fetched at a time."""
        return self._ring.size // 4

    def _blocks(self, file: int, offset: int, length: int) -> tuple[int, int]:
        begin = self._first[file]
        return begin + offset // self._side, begin + (offset + length - 1) // self._side

    def _part(self, file: int, block: int, offset: int, length: int) -> bytes | None:
        """The share of a part of a file that is in one block."""
        at = (block - self._first[file]) * self._side
        begin, end = max(offset - at, 0), min(offset + length - at, self._side)
        return self._ring.read(int(self._places[block]), begin, end - begin)

    def _request(self, file: int, first: int, last: int) -> list[Future[Any]]:
        """Requests blocks; adjacent ones by one request."""
        futures: list[Future[Any]] = []
        with self._lock:
            missing = [b for b in range(first, last + 1) if not self._ring.holds(int(self._places[b]))]
            futures += {id(f): f for b in missing if (f := self._coming.get(b)) is not None}.values()
            asked = [b for b in missing if b not in self._coming]
            runs = np.split(asked, np.flatnonzero(np.diff(asked) > 1) + 1) if asked else []
            for run in runs:
                future: Future[Any] = Future()
                self._coming.update(dict.fromkeys(run.tolist(), future))
                self._work.put((future, self._fetch, file, int(run[0]), int(run[-1]), time.monotonic()))
                futures.append(future)
        return futures

    def _fetch(self, file: int, first: int, last: int, asked: float) -> None:
        try:
            since, error = self._silence
            # Requests that waited meanwhile do not wait as long again.
            if error is not None and asked < since:
                raise error
            begin = (first - self._first[file]) * self._side
            end = min(begin + (last + 1 - first) * self._side, int(self._sizes[file]))
            place = self._ring.write(self._get(file, begin, end))
            self._places[first : last + 1] = place + self._side * np.arange(last + 1 - first)
        except Unreachable as error:
            if error is not self._silence[1]:
                self._silence = time.monotonic(), error
            raise
        finally:
            with self._lock:
                for block in range(first, last + 1):
                    del self._coming[block]

    def _get(self, file: int, begin: int, end: int) -> bytes:
        path = self._paths[file]
        try:
            data = path.read_range(begin, end)
        except OSError as error:  # not the fault of one image, so no image is left out for it
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        if len(data) != end - begin:
            raise UserError(f"{path} has become shorter than it was packed; copy it again")
        return data


class _Ring:
    """A file without a name that keeps the newest `size` bytes written to it.

    Places count on for ever: what was written at one is there until `size` bytes later something else has begun to be.
    """

    def __init__(self, folder: str | None, size: int):
        self.size, self._head, self._lock = size, 0, threading.Lock()
        self._folder = pathlib.Path(folder or tempfile.gettempdir()).expanduser()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            if shutil.disk_usage(self._folder).free < size:
                raise OSError(errno.ENOSPC, f"less than {size / 1e9:.3g} GB are free")
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> UserError:
        return UserError(
            f"data.cache_dir: images cannot be kept in {self._folder}: {error.strerror or error}; name a folder on "
            "another disk, or lower data.cache_gb"
        )

    def write(self, data: bytes) -> int:
        """Overwrites the oldest data; returns the place."""
        with self._lock:  # held while writing: a slow thread must not overwrite a newer block
            left = self.size - self._head % self.size
            place = self._head + (left if len(data) > left else 0)
            self._head = place + len(data)
            rest, at = memoryview(data), place % self.size
            try:
                while rest:
                    done = os.pwrite(self._file.fileno(), rest, at)
                    rest, at = rest[done:], at + done
            except OSError as error:
                raise self._no_room(error) from error
        return place

    def holds(self, place: int) -> bool:
        """Whether the data written at a place is still there."""
        return place >= 0 and self._head <= place + self.size

    def read(self, place: int, begin: int, length: int) -> bytes | None:
        """Bytes of the data written at a place, from `begin` on; None if it was overwritten."""
        if not self.holds(place):
            return None
        data = os.pread(self._file.fileno(), length, place % self.size + begin)
        return data if self.holds(place) else None


def _work_off(work: queue.SimpleQueue[Any]) -> None:
    while (item := work.get()) is not None:
        future, call, *arguments = item
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)
        del item, future, call  # else their owner would live as long as the thread waits


def _end(work: queue.SimpleQueue[Any]) -> None:
    for _ in range(CONNECTIONS):
        work.put(None)


class Ahead:
    """Fetches the images of coming batches early, if they come from a bucket.

    Args:
      source: the images.
      rows: step -> indices of its batch.
      start, stop: the first step, and the one after the last.
    """

    def __init__(self, source: Any, rows: Callable[[int], np.ndarray], start: int, stop: int):
        self._source, self._rows, self._next, self._stop = source, rows, start, stop
        self._depth: int | None = None
        self._lock = threading.Lock()
        some = np.unique(np.linspace(0, len(source) - 1, 64, dtype=np.int64)) if len(source) else ()
        self._wanted = any(getattr(s, "images", None) is not None for s, _ in _origins(source, some))

    def reach(self, step: int) -> None:
        """Tells that the batch of `step` is about to be made."""
        if not self._wanted:
            return
        with self._lock:
            while self._next <= min(step + (self._depth or 0), self._stop - 1):
                depth = _STEPS_AHEAD
                for source, indices in _origins(self._source, self._rows(self._next)):
                    if getattr(source, "images", None) is not None:
                        taken = source.prefetch(np.array(indices))
                        depth = min(depth, source.images.room // max(taken, 1))
                self._depth = depth if self._depth is None else self._depth
                self._next += 1


def _origins(source: Any, indices: Any) -> Iterable[tuple[Any, list[int]]]:
    """The sources that hold the images, behind sources that only choose from others, with the indices there."""
    found: dict[int, tuple[Any, list[int]]] = {}
    for index in indices:
        at, place = origin_of(source, int(index))
        found.setdefault(id(at), (at, []))[1].append(place)
    return found.values()
