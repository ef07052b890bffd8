"""Growing files for a bucket, which cannot append: they grow on this machine and are copied as a whole.

A thread copies, at most every `PAUSE` seconds and for a tenth of the time, so neither a slow bucket nor one that does
not answer stops a step. `Mirror.flush` waits for it, which a run does before each checkpoint.
"""

from __future__ import annotations

import fnmatch
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from hap2s_jax.data import bucket
from hap2s_jax.distributed import signals
from hap2s_jax.errors import Unreachable
from hap2s_jax.reporting import lease

PAUSE = 5.0
_LONGEST_PAUSE = 60.0


class Mirror:
    """A folder on this machine whose files are copied to a place in a bucket as they change.

    Args:
      there: the place.
      patterns: of the files' names; files that are in the bucket already are fetched first.

    Attributes:
      folder: the folder on this machine; removed by `close`.
    """

    def __init__(self, there: bucket.BucketPath, patterns: Sequence[str]):
        self._there, self._patterns = there, patterns
        self._temporary = signals.temporary_folder()
        self.folder = Path(self._temporary.name)
        for file in there.iterdir():
            if self._is_ours(file.name):
                (self.folder / file.name).write_bytes(file.read_bytes())
        self._copied = {file.name: file.stat().st_mtime_ns for file in self.folder.iterdir()}
        self._copying = threading.Lock()
        self._changed, self._ended = threading.Event(), threading.Event()
        self._failing = False
        threading.Thread(target=self._follow, name="mirror", daemon=True).start()

    def changed(self) -> None:
        """Tells that files have changed; they are copied in the background."""
        self._changed.set()

    def flush(self) -> None:
        """Waits until the whole folder is in the bucket.

        Raises:
          Unreachable: the bucket has not answered for `bucket.PATIENCE` seconds.
          OSError: it refuses.
        """
        try:
            self._copy(bucket.PATIENCE / 8)
        except Unreachable as error:
            self._say(f"{error.where} does not answer; the run waits for it before it saves")
            self._copy(bucket.PATIENCE)

    def close(self, *, flush: bool = True) -> None:
        """Flushes, unless that has failed before, and removes the folder."""
        self._ended.set()
        self._changed.set()
        try:
            if flush:
                self.flush()
        finally:
            self._temporary.cleanup()

    def _is_ours(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns)

    def _follow(self) -> None:
        pause = PAUSE
        while self._changed.wait() and not self._ended.is_set():
            self._changed.clear()
            began = time.monotonic()
            try:
                self._copy(bucket.PATIENCE / 8)
                pause = min(max(PAUSE, 9 * (time.monotonic() - began)), _LONGEST_PAUSE)
            except Exception as error:  # `flush` will meet the same error, and raise it
                if not self._failing:
                    self._say(
                        f"{error}; the log waits on this machine, and training goes on until it has to save"
                    )
                self._failing = True
                self._changed.set()
                pause = min(2 * pause, _LONGEST_PAUSE)
            self._ended.wait(pause)

    def _copy(self, patience: float) -> None:
        with self._copying:
            there = {f.name: f for f in sorted(self.folder.iterdir()) if self._is_ours(f.name)}
            for name, file in there.items():
                changed = file.stat().st_mtime_ns
                if self._copied.get(name) != changed:
                    lease.check()
                    (self._there / name).write_bytes(file.read_bytes(), patience)
                    self._copied[name] = changed
            for name in set(self._copied) - set(there):
                (self._there / name).unlink(missing_ok=True)
                del self._copied[name]
        if self._failing:
            self._failing = False
            self._say(f"{self._there} answers again")

    @staticmethod
    def _say(text: str) -> None:
        print(f"note: {text}", file=sys.stderr, flush=True)
