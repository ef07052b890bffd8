"""Saving to a bucket that may not answer: waits are limited, and failed saves are tried again."""

from __future__ import annotations

import pathlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

from hap2s_jax.data.places import is_bucket
from hap2s_jax.errors import Unreachable, reason

Again = Callable[[], object]

# Seconds that a checkpoint may take to be written, its own client's tries included, and those between whole new tries.
LIMIT = 900.0
PAUSES = (0.5, 2.0, 8.0, 32.0, 60.0)


def bounded(work: Callable[[], object], where: pathlib.Path) -> None:
    """Calls a function that waits for a checkpoint in `where`; for at most `LIMIT` seconds in a bucket.

    Raises:
      Unreachable: it took longer. `work` goes on in a thread, which ends with the process.
    """
    if not is_bucket(where):
        work()
        return
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="checkpoint", daemon=True)
    thread.start()
    thread.join(LIMIT)
    if thread.is_alive():
        raise Unreachable(str(where), f"a checkpoint is not written after {LIMIT:.0f} seconds")
    if failures:
        raise failures[0]


def is_refusal(error: BaseException) -> bool:
    """Whether a bucket has refused to be written to."""
    return isinstance(error, PermissionError) or bool(re.search("Forbidden|PERMISSION_DENIED", str(error)))


def tries(again: Again | None, error: Exception, where: pathlib.Path) -> Iterator[Again]:
    """Yields `again`, which repeats a save in `where` that failed with `error`, after growing pauses.

    Yields nothing without `again`, if the bucket has refused or time is up, or among several processes: these end and
    start again together.

    """
    if again is None or is_refusal(error) or isinstance(error, Unreachable) or jax.process_count() > 1:
        return
    print(
        f"note: a checkpoint is not written to {where} yet ({reason(error)}); trying again",
        file=sys.stderr,
        flush=True,
    )
    for pause in PAUSES:
        time.sleep(pause)
        yield again
