"""Files that are either complete or absent, and files that one process at a time locks."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hap2s_jax.data.bucket import BucketPath
from hap2s_jax.data.places import is_bucket, local_folder, place
from hap2s_jax.errors import UserError
from hap2s_jax.reporting import lease

fcntl: Any = None
msvcrt: Any = None
try:
    import fcntl
except ImportError:
    with contextlib.suppress(ImportError):
        import msvcrt  # Windows


_TRIES = 100
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there takes its place when the block ends well.

    Missing parent folders are made. If the block raises, `path` keeps its old content. The temporary file
    is hidden and has the same suffix (writers of pictures choose the format by it).

    Raises:
      UserError: the folder cannot be written or the disk is full.
    """
    target = place(path)
    if is_bucket(target):
        with _uploading(target) as temporary:
            yield temporary
        return
    temporary = target.with_name(f".{target.stem[:100]}.{secrets.token_hex(8)}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new random name that is no link, so nothing is written anywhere else.
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        # Some writers (safetensors) create the file anew, readable for its owner only.
        with contextlib.suppress(OSError):  # not every file system has modes
            temporary.chmod(mode)
        # Without it a power cut may leave the new name on an empty file.
        descriptor = os.open(temporary, os.O_RDWR | _NO_LINK)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def _uploading(target: Path) -> Iterator[Path]:
    """`replacing` in a bucket, where an object is replaced as a whole."""
    try:
        with local_folder(target.parent) as folder:
            (folder / target.name).touch()
            yield folder / target.name
            lease.check()
    except OSError as error:
        raise cannot_write(target, error) from error


@contextlib.contextmanager
def holding(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Locks `path` until the block ends; yields False if another process has it. A process that dies releases it.

    The file is there while it is held. Where files cannot be locked (some network file systems) everyone may enter. In
    a bucket it is a `lease.Lease`.

    Raises:
      UserError: the file cannot be made.
    """
    with claiming(path) as answers:
        yield next(answer for answer in answers if answer is not None)


@contextlib.contextmanager
def claiming(path: str | os.PathLike[str]) -> Iterator[Iterator[bool | None]]:
    """`holding` with intermediate answers: None, every few seconds, while it is not known yet."""
    target = place(path)
    if isinstance(target, BucketPath):
        with contextlib.closing(lease.Lease(target)) as wanted:
            yield wanted.attempts()
        return
    with _locking(target) as held:
        yield iter([held])


@contextlib.contextmanager
def _locking(target: Path) -> Iterator[bool]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, held = _lock(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    with handle:
        try:
            yield held
        finally:
            if held:
                with contextlib.suppress(OSError):
                    target.unlink()


def _lock(target: Path) -> tuple[IO[Any], bool]:
    for _ in range(_TRIES):
        handle = open_appending(target)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif msvcrt is not None:
                msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError):
            return handle, False
        except OSError:
            return handle, True
        # The last holder may have just removed the file, and a third process may have locked a new one.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle.fileno()), target.stat()):
                return handle, True
        handle.close()
    return open_appending(target), True  # a file system that gives a file another number each time


def open_appending(target: Path, mode: str = "a") -> IO[Any]:
    """Opens a file to be held or appended to, or makes it; neither through a link nor anything else than a file."""
    with contextlib.suppress(FileNotFoundError):  # whoever held it may be taking it away
        if not stat.S_ISREG(target.lstat().st_mode):
            raise OSError(errno.EINVAL, "it is a link, or not a regular file")
    handle = os.fdopen(os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_LINK, 0o666), mode)
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):  # put there meanwhile
        handle.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return handle


def cannot_write(path: str | os.PathLike[str], error: OSError) -> UserError:
    """One clear line for a file that could not be written."""
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; free space there or choose a folder that is writable")
