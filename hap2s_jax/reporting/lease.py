"""Leases on places in a bucket, where files cannot be locked; the holder renews its lease.

A lease is an object. Creating it requires that it does not exist. Renewing it requires that nobody else has written it.
Taking it over requires that it was not renewed for `SECONDS`. The bucket decides who was first; clocks of machines are
never compared. A job that is killed blocks the place for `SECONDS`. One that was cut off for longer learns at its next
write or step whether it still has the lease.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import threading
import time
from collections.abc import Iterator

from hap2s_jax.data.bucket import BucketPath, answering, patient
from hap2s_jax.errors import Unreachable, UserError

# Seconds that a lease holds without renewal: long enough for several renewals to fail, each of which takes a while.
SECONDS = 60.0
_TOKEN = "holder"
_held: set[Lease] = set()


def check() -> None:
    """Raises unless this process still holds all its leases; asks the bucket if one may have run out.

    Raises:
      UserError: somebody else has taken one over: nothing may be written any more.
      Unreachable: the bucket does not answer.
    """
    for lease in tuple(_held):
        lease.check(ask=True)


def check_known() -> None:
    """As `check`, without asking the bucket."""
    for lease in tuple(_held):
        lease.check(ask=False)


class Lease:
    """A lease on `path`; `attempts` acquires it.

    Attributes:
      path: the object.
    """

    def __init__(self, path: BucketPath):
        self.path = path
        self._token = secrets.token_hex(16)
        self._generation = 0
        self._renewed = 0.0
        self._lost = False
        self._ended = threading.Event()
        self._renewing = threading.Lock()

    def attempts(self) -> Iterator[bool | None]:
        """Tries to acquire it: yields None while undecided, at last whether it succeeded. Waits between tries."""
        seen, since = 0, 0.0
        while True:
            try:
                found = self._read()
                if found is None:
                    taken = self._write(0)
                elif found[0] != seen:
                    if seen:  # it is being renewed, or was taken over just now
                        yield False
                        return
                    seen, since, taken = found[0], time.monotonic(), False
                    print(
                        f"note: {self.path.parent} is held by a run; whether that one is alive shows within "
                        f"{SECONDS:.0f} seconds",
                        file=sys.stderr,
                        flush=True,
                    )
                else:
                    taken = time.monotonic() - since > SECONDS and self._write(seen)
            except FileExistsError:
                yield False
                return
            if taken:
                _held.add(self)
                threading.Thread(target=self._renew, name="lease", daemon=True).start()
                yield True
                return
            yield None
            time.sleep(SECONDS / 12)

    def check(self, *, ask: bool) -> None:
        """Raises a UserError if somebody else holds it now; with `ask`, asks the bucket if it may have run out."""
        if ask and time.monotonic() - self._renewed > SECONDS / 2:
            self._renew_once(SECONDS)
        if self._lost:
            raise UserError(
                f"another run has taken over {self.path.parent}, since this one gave no sign of life for {SECONDS:.0f} "
                "seconds; this one stops, and has written nothing there since"
            )

    def close(self) -> None:
        """Releases it, if it is still held."""
        self._ended.set()
        with self._renewing:
            _held.discard(self)
            if self._generation and not self._lost:
                with contextlib.suppress(OSError, Unreachable), answering(self.path):
                    self.path.blob().delete(
                        if_generation_match=self._generation, **patient(SECONDS / 6, SECONDS / 6)
                    )

    def _renew(self) -> None:
        while not (self._ended.wait(SECONDS / 4) or self._lost):
            with contextlib.suppress(OSError, Unreachable):  # the next renewal, or `check`, will report it
                self._renew_once(SECONDS / 4)

    def _renew_once(self, patience: float) -> None:
        with self._renewing:
            if self._ended.is_set() or self._lost:
                return
            try:
                self._write(self._generation, patience)
            except FileExistsError:
                self._lost = True

    def _read(self) -> tuple[int, str] | None:
        """Generation and token of the present lease object."""
        with answering(self.path):
            blob = self.path.bucket.get_blob(self.path.key, **patient(SECONDS / 6))
        return None if blob is None else (int(blob.generation), (blob.metadata or {}).get(_TOKEN, ""))

    def _write(self, generation: int, patience: float = SECONDS) -> bool:
        """Writes the lease over a given generation, 0 for none.

        Raises:
          FileExistsError: another one is there.
        """
        from google.api_core.exceptions import NotFound, PreconditionFailed

        blob, began = self.path.blob(), time.monotonic()
        blob.metadata = {_TOKEN: self._token}
        with answering(self.path):
            try:
                limits = patient(SECONDS / 6, patience)
                blob.upload_from_string("a run is at work\n", if_generation_match=generation, **limits)
                self._generation = int(blob.generation)
            except (PreconditionFailed, NotFound) as error:
                if isinstance(error, NotFound) and not generation:  # no bucket
                    raise
                found = self._read()  # an earlier try may have succeeded although its answer was lost
                if found is None or found[1] != self._token:
                    raise FileExistsError(str(self.path)) from error
                self._generation = found[0]
        self._renewed = began
        return True
