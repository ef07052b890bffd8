"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hap2s_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there takes its place when the block ends well.

    Missing parent folders are made. If the block raises, `path` keeps its old content. The temporary file
    is hidden and has the same suffix (writers of pictures choose the format by it).

    Raises:
      UserError: the folder cannot be written or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Without it a power cut may leave the new name on an empty file.
        descriptor = os.open(temporary, os.O_RDWR)
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


def cannot_write(path: str | os.PathLike[str], error: OSError) -> UserError:
    """One clear line for a file that could not be written."""
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; free space there or choose a folder that is writable")
