"""Objects in a bucket of Google Cloud Storage, with the methods of `pathlib.Path` that are used here.

Google's client is imported for the first request only.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import http
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from hap2s_jax.errors import Unreachable

SCHEME = "gs://"
# A request is sent again after so many seconds without a byte, and given up after so many; pauses grow.
SILENCE, PATIENCE = 20.0, 120.0
CONNECTIONS = 32
# The kind of error of each request that was sent again. A list: appending is safe among threads.
_failed: list[type[Exception]] = []


@functools.cache
def _client() -> Any:
    from google.cloud import storage
    from requests.adapters import HTTPAdapter

    client = storage.Client(project=None)
    for scheme in ("https://", "http://"):  # one open connection for each thread that reads
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
    return client


class BucketPath(pathlib.PurePosixPath):
    """An object in a bucket, or a prefix of objects that acts as a folder; made by `place`.

    Errors are a disk's, FileNotFoundError and PermissionError, and `Unreachable` once the bucket has not answered for
    `PATIENCE` seconds.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return SCHEME + "/".join(self.parts[1:]) if self.parts[:1] == ("gs:",) else "/".join(self.parts)

    @property
    def key(self) -> str:
        """The object's name in its bucket."""
        return "/".join(self.parts[2:])

    @property
    def bucket(self) -> Any:
        """The client's bucket."""
        return _client().bucket(self.parts[1])

    def blob(self) -> Any:
        """The client's object, whether it is there or not."""
        return self.bucket.blob(self.key)

    def absolute(self) -> BucketPath:
        """Itself: there is no current folder in a bucket."""
        return self

    resolve = absolute

    def exists(self) -> bool:
        """Whether it is an object, or objects lie below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether it is an object."""
        with answering(self):
            return bool(self.key) and self.bucket.get_blob(self.key, **patient()) is not None

    def is_dir(self) -> bool:
        """Whether objects lie below it."""
        with answering(self):
            return any(True for _ in self._list(max_results=1))

    def is_symlink(self) -> bool:
        """There are no links in a bucket."""
        return False

    def iterdir(self) -> Iterator[BucketPath]:
        """Objects and folders right in it."""
        with answering(self):
            found = self._list(delimiter="/")
            names = [blob.name for blob in found]
            names += [prefix.rstrip("/") for prefix in found.prefixes]
        below = (name[len(self.key) :].strip("/") for name in names)
        return iter([self / name for name in sorted(set(below)) if name])

    def glob(self, pattern: str) -> Iterator[BucketPath]:
        """Objects and folders right in it whose names match; patterns of one level only."""
        return (found for found in self.iterdir() if fnmatch.fnmatchcase(found.name, pattern))

    def _list(self, **settings: Any) -> Any:
        prefix = f"{self.key}/" if self.key else None
        return _client().list_blobs(self.parts[1], prefix=prefix, **settings, **patient())

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: writing an object makes its folder."""

    def open(self, mode: str = "rb", limit: int | None = None) -> IO[bytes]:
        """Opens a copy of its present state, in a file without a name.

        Raises:
          OSError: it is not there, or holds more than `limit` bytes.
        """
        assert mode == "rb", "objects are written whole, by write_bytes or upload"
        blob = self.blob()
        with answering(self):
            blob.reload(**patient())
            if limit is not None and blob.size > limit:
                raise OSError(
                    errno.EFBIG, f"it holds {blob.size:,} bytes, more than the {limit:,} allowed", str(self)
                )
            file = tempfile.TemporaryFile()  # noqa: SIM115
            # This generation only, in case somebody replaces the object meanwhile.
            blob.download_to_file(file, if_generation_match=blob.generation, **patient())
        file.seek(0)
        return file

    def read_range(self, start: int, stop: int) -> bytes:
        """The object's bytes from `start` to before `stop`, by one request; fewer where it ends before."""
        some = {"start": start, "end": stop - 1, "raw_download": True, "single_shot_download": True}
        with answering(self):
            return self.blob().download_as_bytes(checksum=None, **some, **patient())

    def read_bytes(self) -> bytes:
        """All of the object."""
        with answering(self):
            return self.blob().download_as_bytes(**patient())

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of the object, as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes, patience: float | None = None) -> int:
        """Writes the object, whole or not at all; `patience` in seconds, by default `PATIENCE`."""
        with answering(self):
            self.blob().upload_from_string(data, "application/octet-stream", **patient(None, patience))
        return len(data)

    def write_text(self, data: str, encoding: str = "utf-8") -> int:
        """Writes the object, whole or not at all."""
        return self.write_bytes(data.encode(encoding))

    def touch(self) -> None:
        """Writes an empty object."""
        self.write_bytes(b"")

    def upload(self, file: str | os.PathLike[str]) -> None:
        """Writes the content of a file on this machine, whole or not at all."""
        with answering(self):
            self.blob().upload_from_filename(os.fspath(file), **patient())

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        try:
            with answering(self):
                self.blob().delete(**patient())
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: BucketPath) -> None:
        """Moves all objects below it to below `target`: each is copied and then removed."""
        for name in self.checksums():
            with answering(self):
                self.bucket.copy_blob((self / name).blob(), target.bucket, (target / name).key, **patient())
            (self / name).unlink(missing_ok=True)

    def checksums(self) -> dict[str, tuple[int, str]]:
        """Bytes and CRC-32C of all objects below it, by their names there, as the bucket keeps them."""
        with answering(self):
            return {b.name[len(self.key) + 1 :]: (int(b.size), str(b.crc32c)) for b in self._list()}

    def rmtree(self) -> None:
        """Removes all objects below it."""
        for name in self.checksums():
            (self / name).unlink(missing_ok=True)


def patient(silence: float | None = None, patience: float | None = None) -> dict[str, Any]:
    """The client's arguments for a request that is sent again while the bucket does not answer, or is busy."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    plain = DEFAULT_RETRY.with_timeout(patience or PATIENCE)
    retry = functools.partial(plain, on_error=lambda error: _failed.append(type(error)))
    return {"timeout": silence or SILENCE, "retry": retry}


def failed() -> int:
    """How many requests failed and were sent again since the last call."""
    number = len(_failed)
    del _failed[:number]
    return number


@contextlib.contextmanager
def answering(path: BucketPath) -> Iterator[None]:
    """Turns the client's errors into OSErrors of one line, without addresses or tokens."""
    try:
        yield
    except Exception as error:
        last = getattr(error, "cause", None) or error  # of a RetryError
        code, module = getattr(last, "code", None), type(last).__module__
        code = code or getattr(getattr(last, "response", None), "status_code", None)
        if not module.startswith(("google.", "requests.", "urllib3.", "http.")):
            raise
        what = f"{int(code)} {http.HTTPStatus(code).phrase}" if isinstance(code, int) else type(last).__name__
        if code == 404:
            missing = f"it is not there, or there is no bucket {path.parts[1]}"
            raise FileNotFoundError(errno.ENOENT, missing, str(path)) from error
        if code in (401, 403):
            raise PermissionError(errno.EACCES, f"this account may not ({what})", str(path)) from error
        if module.startswith("google.auth"):
            advice = "no credentials: gcloud auth application-default login makes some"
            raise PermissionError(errno.EACCES, advice, str(path)) from error
        raise Unreachable(str(path), what) from error
