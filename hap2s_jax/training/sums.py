"""The digest of a file, and of files while others are still being written.

A piece of a file is read as a table of 64-bit integers. Its digest is the CRC-32 of the sums of its columns and rows,
which changes if a number changes or moves. NumPy adds 20 GB/s on a core, so that a digest takes no longer than reading
the file; CRC-32 of all bytes, the fastest digest in Python, reaches 1 to 4 GB/s.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from hap2s_jax.data.regular_files import open_regular

# A file is read in blocks, of pieces that fit into a core's cache, of so many rows.
BLOCK, _PIECE, _ROWS = 2**23, 2**20, 64
_PAUSE = 0.02  # seconds between two looks at what has been written


def of_block(path: pathlib.Path, begin: int, as_sums: bool = True) -> tuple[int, str]:
    """The number of bytes from `begin` to the end of a block, and their digest, of sums or (earlier) of all bytes."""
    piece, size, digest = np.empty(_PIECE, np.uint8), 0, 0
    # Which fills a piece, but for the last.
    with io.BufferedReader(open_regular(path)) as file:  # type: ignore[arg-type]
        file.seek(begin)
        while size < BLOCK and (count := file.readinto(piece.data)):
            size += count
            for part in _sums(piece[:count]) if as_sums else (piece[:count],):
                digest = zlib.crc32(part.data, digest)
    return size, f"{digest:08x}"


def joined(blocks: Iterable[tuple[int, str]]) -> list[Any]:
    """[bytes, digest of each block] of a file, from its blocks."""
    found = list(blocks)
    return [sum(size for size, _ in found), *(digest for _, digest in found)]


def _sums(piece: np.ndarray) -> tuple[np.ndarray, ...]:
    """The sums of a piece's columns and rows, mod 2^64, and the few remaining bytes."""
    whole = len(piece) - len(piece) % (8 * _ROWS)
    table = piece[:whole].view("<u8").reshape(_ROWS, -1)
    return table.sum(0), table.sum(1), piece[whole:]


class Ahead:
    """Makes digests of a checkpoint's arrays in the background while others are still being written.

    Writing waits for the disk, so that they take next to no time then. A file of arrays has its name once it is
    complete; if it changes all the same, its digest does not count.

    Args:
      find: gives the folder that is being written, once it is there.
    """

    def __init__(self, find: Callable[[], Iterable[pathlib.Path]]):
        self._find, self._end = find, threading.Event()
        # By the file and not by its path: orbax renames its folders.
        self._made: dict[_State, list[Any]] = {}
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Makes no more."""
        self._end.set()
        self._thread.join()

    def made(self, folder: pathlib.Path) -> dict[str, list[Any]]:
        """Ends; returns the digests of the files in `folder` that are as they were, by their path below it."""
        self.end()
        states = {path.relative_to(folder).as_posix(): _state(path) for path in folder.rglob("d/*")}
        return {name: self._made[state] for name, state in states.items() if state and state in self._made}

    def _run(self) -> None:
        while not self._end.is_set():
            began = time.monotonic()
            found = {
                path: _state(path)
                for folder in self._find()
                for path in folder.rglob("d/*")
                if not path.suffix
            }
            took = time.monotonic() - began
            for path, state in found.items():
                if self._end.is_set():
                    return
                with contextlib.suppress(OSError):  # orbax has moved or removed it
                    if state and state not in self._made:
                        self._made[state] = joined(
                            of_block(path, begin) for begin in range(0, state.size, BLOCK)
                        )
            self._end.wait(max(_PAUSE, 10 * took))


class _State(NamedTuple):
    """What is another once a file is replaced or written to."""

    inode: int
    size: int
    changed: int


def _state(path: pathlib.Path) -> _State | None:
    with contextlib.suppress(OSError), open_regular(path) as file:
        found = os.fstat(file.fileno())
        return _State(found.st_ino, found.st_size, found.st_mtime_ns)
    return None
