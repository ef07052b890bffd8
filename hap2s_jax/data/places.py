"""Places: a file or folder on this machine, or in a bucket of Google Cloud Storage, ``gs://bucket/path``.

Only this module distinguishes the two. `place` turns a text into a `pathlib.Path`, or into a
`hap2s_jax.data.bucket.BucketPath`, which has the same methods. Other modules open, list and write through these
without knowing which it is.

A bucket differs from a disk in three things: folders exist while an object lies in them, an object is written whole or
not at all, and nothing can be appended to (see `hap2s_jax.reporting.mirror`).

Google's client is imported for the first ``gs://`` only. Another store (``s3://``) would be another class here, once
orbax, which writes the checkpoints, knows it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator
from typing import cast

from hap2s_jax import extras
from hap2s_jax.data.bucket import BucketPath
from hap2s_jax.distributed import signals
from hap2s_jax.errors import UserError


def place(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file or folder that `path` names, here (see `local`) or in a bucket.

    Returns:
      A `pathlib.Path`, or a `BucketPath`, which is none but has those of its methods that are used here.

    Raises:
      UserError: it holds a zero byte, is in no known kind of place, or the extra "gcs" is not installed.
    """
    if isinstance(path, BucketPath):
        return cast(pathlib.Path, path)
    text = os.fspath(path)
    if "\0" in text:
        raise UserError(f"{text!r:.80} holds a zero byte, which no name of a file does")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://?(?=[^/]|$)", text)
    if not scheme or (not text.startswith(f"{scheme[1]}://") and scheme[1] != "gs"):
        return local(path)
    if not re.match(r"gs://[a-z0-9][a-z0-9._-]+(/|$)", text):
        raise UserError(_refusal(text, scheme[1]))
    extras.require(text, "gcs")
    _prepare()
    return cast(pathlib.Path, BucketPath(text))


def local(path: str | os.PathLike[str]) -> pathlib.Path:
    """A file or folder on this machine; ``~`` is the home folder, since shells do not expand it after ``--flag=``."""
    return pathlib.Path(os.path.expanduser(path))


def is_bucket(path: object) -> bool:
    """Whether a place is in a bucket."""
    return isinstance(path, BucketPath)


def _refusal(text: str, scheme: str) -> str:
    if scheme == "gs":
        return f"{text} names no bucket; it should read gs://BUCKET/FOLDER"
    why = (
        "orbax, which writes checkpoints, has no s3:// paths"
        if scheme == "s3"
        else "known are folders and gs://"
    )
    return f"{text} is a place that is not known here: {why}; mount it as a folder, and give that"


@functools.cache
def _prepare() -> None:
    """Configures etils and fsspec, by which orbax opens gs://, so that they see the present state."""
    import fsspec.config

    # etils would take TensorFlow's client where that is installed, whose retries have no limit.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # It would ask by gRPC for the kind of bucket, for a minute if there is no answer.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # With a cache it would not see what other processes write.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    if "etils.epath" in sys.modules:  # it may have decided already
        from etils.epath import gpath

        gpath._is_tf_installed.cache_clear()


def remove_folder(path: pathlib.Path) -> None:
    """Removes a folder and its content, as far as possible."""
    if isinstance(path, BucketPath):
        path.rmtree()
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def local_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file on this machine with the content of `path`: itself, or a copy until the block ends."""
    if not isinstance(path, BucketPath):
        yield path
        return
    with signals.temporary_folder() as folder, cast(BucketPath, path).open() as source:
        copy = pathlib.Path(folder) / path.name
        with copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield copy


@contextlib.contextmanager
def local_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder on this machine to write to: `path`, or one whose files are copied to `path` when the block ends."""
    if not isinstance(path, BucketPath):
        yield path
        return
    with signals.temporary_folder() as name:
        folder = pathlib.Path(name)
        yield folder
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            (path / file.relative_to(folder).as_posix()).upload(file)
