"""Digests of a checkpoint's files: damage is noticed before anything is computed from it.

They protect against damage, not against malice.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import jax

from hap2s_jax.data.bucket import BucketPath
from hap2s_jax.data.places import is_bucket
from hap2s_jax.data.regular_files import RefusedError, check_regular, open_regular, read_json
from hap2s_jax.distributed import experimental
from hap2s_jax.errors import UserError, reason, shown
from hap2s_jax.training import sums

_LOG = logging.getLogger(__name__)

FILE_NAME = "digests.json"
# At the top of a checkpoint: what orbax writes or changes once all else is there. The first says when that was.
_METADATA, _WHOLE = "_CHECKPOINT_METADATA", "commit_success.txt"
_LATER = (FILE_NAME, _METADATA, _WHOLE)
# How the digests in a file are made. Earlier versions took the CRC-32 of all bytes.
_SUMS, _BYTES = "sums", "crc32"
_THREADS = 2
_SMALL = 2**16
# Of files beside the numbers, which lie in folders called d.
_MOST = 2**28


class DamagedError(UserError):
    """A checkpoint whose files are no longer what was saved."""


def write(folder: pathlib.Path, known: Mapping[str, list[Any]] = MappingProxyType({})) -> None:
    """Writes the digests of all files below `folder`, a checkpoint that orbax is about to give its name; those that are
    `known` already need not be made.
    """
    (folder / FILE_NAME).write_text(json.dumps({_SUMS: _digests(folder, known=known)}, indent=1) + "\n")


def fault(folder: pathlib.Path, most: int | None = None) -> str | None:
    """The fault of a checkpoint's files; None if there is none, or if the checkpoint is older than digests.

    Args:
      folder: of the checkpoint.
      most: size of the largest files that are looked at, bytes; all by default.
    """
    try:
        if not (folder / FILE_NAME).exists() and not has_digests(folder):
            return None
        kept = read_json(folder / FILE_NAME)
        kind = _SUMS if _SUMS in kept else _BYTES
        promised, found = kept[kind], _digests(folder, most, kind, kept[kind])
        promised = {name: said for name, said in promised.items() if most is None or said[0] <= most}
        if promised == found:
            return None
        differing = sorted(name for name in {**promised, **found} if promised.get(name) != found.get(name))
        kind = "is missing" if differing[0] not in found else "is not what was saved"
        return f"{shown(differing[0])} {kind}" + (
            f", as {len(differing) - 1} more" if len(differing) > 1 else ""
        )
    except OSError as error:
        name = os.path.relpath(error.filename, folder) if error.filename else "a file"
        return f"{name}: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return reason(error)


def has_digests(folder: pathlib.Path) -> bool:
    """Whether a checkpoint's own record says that it was saved with digests."""
    record = folder / "record"
    return record.exists() and bool(read_json(record / "metadata").get("digests"))


def _digests(
    folder: pathlib.Path,
    most: int | None = None,
    kind: str = _SUMS,
    promised: Mapping[str, Sequence[Any]] | None = None,
    known: Mapping[str, list[Any]] = MappingProxyType({}),
) -> dict[str, list[Any]]:
    """[bytes, digest of each block] of each file, by its path below `folder`; in a bucket [bytes, CRC-32C], which it
    keeps itself, so that nothing is read. Nor is a file whose size is not what was `promised`, of which -1 stands.
    """
    if isinstance(folder, BucketPath):
        return {
            name: [size, digest]
            for name, (size, digest) in folder.checksums().items()
            if name not in _LATER and (most is None or size <= most)
        }
    paths = [pathlib.Path(at, name) for at, _, names in os.walk(folder) for name in names]
    names = [path.relative_to(folder).as_posix() for path in paths]
    chosen = {
        name: path
        for name, path in zip(names, paths, strict=True)
        if name not in _LATER and (most is None or path.stat().st_size <= most)
    }
    with ThreadPoolExecutor(_THREADS) as pool:  # zlib lets go of the interpreter's lock
        blocks = {
            name: list(_blocks(path, pool, kind))
            for name, path in chosen.items()
            if name not in known and (promised is None or promised.get(name, [-1])[0] == path.stat().st_size)
        }
        digests: dict[str, list[Any]] = {name: [-1] for name in chosen} | {
            name: sums.joined(block.result() for block in begun) for name, begun in blocks.items()
        }
    metadata = read_json(folder / _METADATA)
    metadata.pop("commit_timestamp_nsecs", None)
    text = json.dumps(metadata, sort_keys=True).encode()
    return {**digests, **known, _METADATA: [len(text), f"{zlib.crc32(text):08x}"]}


def _blocks(path: pathlib.Path, pool: ThreadPoolExecutor, kind: str) -> Iterator[Future[tuple[int, str]]]:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    for begin in range(0, size, sums.BLOCK):
        yield pool.submit(sums.of_block, path, begin, kind == _SUMS)


class Checks:
    """Finds out which checkpoints of a directory are whole. Each is checked once, in the background.

    Args:
      directory: of the checkpoints, one folder a step.
      strict: whether a damaged one is an error rather than left out with a warning.
    """

    def __init__(self, directory: pathlib.Path, *, strict: bool):
        self._directory, self._strict = directory, strict
        self._pool = ThreadPoolExecutor(2, "digests")
        self._found: dict[int, Future[str | None]] = {}
        self.left_out: set[int] = set()

    def on_disk(self) -> list[int]:
        """The steps of all folders, ascending."""
        found = [path for path in self._directory.glob("*") if path.name.isdecimal()]
        if is_bucket(self._directory):  # where what is not whole yet has its name already
            found = [path for path in found if (path / _WHOLE).is_file()]
        return sorted(int(path.name) for path in found)

    def begin(self, step: int | None) -> None:
        """Begins to check a checkpoint, if there is one."""
        if step is not None and step not in self._found:
            self._found[step] = self._pool.submit(fault, self._directory / str(step))

    def begin_newest(self) -> Checks:
        """Begins to check the newest checkpoint in the background, before the directory is opened."""
        self.begin(max(self.on_disk(), default=None))
        return self

    def check(self, step: int, most: int | None = None) -> None:
        """Raises a DamagedError for a damaged checkpoint; checks its files of up to `most` bytes."""
        if most is None:
            self.begin(step)
            why = self._found[step].result()
        else:
            why = fault(self._directory / str(step), most)
        if why:
            raise DamagedError(
                f"checkpoint {self._directory / str(step)} is damaged ({why}); copy it again, or remove that folder "
                "and run again to continue from the checkpoint before it"
            )

    def leave_out(self, step: int, error: DamagedError) -> None:
        """Goes on without a damaged checkpoint, which stays where it is; raises the error if that is not allowed."""
        if self._strict or not self._others(step):
            raise error
        self.left_out.add(step)
        _warn(f"{_what(error)}; the newest whole one is used")

    def set_aside(self, step: int, error: DamagedError) -> None:
        """Moves a damaged checkpoint out of the way. Every process must call it."""
        if self._strict:
            raise error
        folder = self._directory.with_name(f"{self._directory.name}.damaged")
        if jax.process_index() == 0:
            names = (folder / f"{step}{f'.{n}' if n else ''}" for n in itertools.count())
            target = next(path for path in names if not path.exists())
            try:
                folder.mkdir(exist_ok=True)
                (self._directory / str(step)).rename(target)
            except OSError as e:
                raise UserError(f"{_what(error)} and cannot be moved to {target}: {e.strerror}") from e
            others = self._others(step)
            goes_on = f"step {others[-1]} is gone on from" if others else "the run begins anew"
            _warn(f"{_what(error)}; it lies in {target} now, and {goes_on}")
        if jax.process_count() > 1:
            experimental.wait_for_all(f"hap2s_jax: checkpoint {step} is set aside")
        self._found.pop(step, None)

    def remark(self, step: int) -> None:
        """Says so if a checkpoint is older than digests."""
        if not (self._directory / str(step) / FILE_NAME).exists():
            _warn(
                f"checkpoint {self._directory / str(step)} is of a version that kept no digests; it is taken as it is"
            )

    def open_whole(self, opened: Callable[[], Any]) -> Any:
        """Opens the directory; before, damaged newer checkpoints are set aside."""
        while True:
            manager, damaged = self._opened(opened, newest=True)
            if not damaged:
                return manager
            manager.close()
            for step, error in damaged.items():
                self.set_aside(step, error)

    def open_read_only(self, opened: Callable[[], Any]) -> Any:
        """Opens the directory, and leaves out checkpoints known to be damaged."""
        manager, damaged = self._opened(opened, newest=False)
        for step, error in damaged.items():
            self.leave_out(step, error)
        return manager

    def _opened(self, opened: Callable[[], Any], newest: bool) -> tuple[Any, dict[int, DamagedError]]:
        self._check_kinds()
        # Listed before orbax opens them, where processes wait for each other: no one sets anything aside sooner.
        steps = self.on_disk()
        for step in steps[-1:] if newest else ():
            self.begin(step)  # meanwhile
        try:
            manager = opened()
        except OSError as error:
            raise UserError(f"cannot open the checkpoints in {self._directory}: {reason(error)}") from error
        found = {}
        for step in steps:
            try:
                # Of the others as much as decides which one is the best.
                self.check(step, most=None if newest and step == steps[-1] else _SMALL)
            except DamagedError as error:
                found[step] = error
        if newest and not found:
            for step in steps[-1:]:
                self.remark(step)
        return manager, found

    def _check_kinds(self) -> None:
        """Raises a UserError for what orbax would wait for, as a pipe, or read without end."""
        for at, _, names in os.walk(self._directory) if not is_bucket(self._directory) else ():
            for path in (pathlib.Path(at, name) for name in names):
                try:
                    check_regular(path, None if path.parent.name == "d" else _MOST)
                except RefusedError as error:
                    raise UserError(f"{path}: {reason(error)}; remove it, or copy it again") from error

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _others(self, step: int) -> list[int]:
        return [other for other in self.on_disk() if other != step and other not in self.left_out]


def _what(error: DamagedError) -> str:
    return str(error).rpartition("; ")[0]


def _warn(text: str) -> None:
    if jax.process_index() == 0:
        _LOG.warning("warning: %s", text)
