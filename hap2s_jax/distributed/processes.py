"""Several processes as one job: they compare facts before they begin, stop together, and end when one is gone.

`hap2s_jax.distributed.devices.initialize_processes` joins them. With a single process every check passes at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hap2s_jax.distributed import experimental, signals
from hap2s_jax.errors import Preempted, Unreachable, UserError, reason
from hap2s_jax.reporting import lease
from hap2s_jax.reporting.atomic import claiming

EXIT_LOST = 76  # another process is gone; the other exit codes stand in `hap2s_jax.cli`

LOCK = ".lock"  # in a working directory, while a run is at work there
_SEEN_WITHIN = 10.0  # seconds; a network file system may show a new file late


def check_same(gather_facts: Callable[[], Mapping[str, str]]) -> None:
    """Raises unless the facts are the same on all processes. Every process must call it.

    Args:
      gather_facts: returns name -> value; not called in a single process.

    Raises:
      UserError: on every process alike, naming the first fact that differs, its two values and the process.
    """
    if jax.process_count() == 1:
        return
    counts = {sum(d.process_index == p for d in jax.devices()) for p in range(jax.process_count())}
    if len(counts) > 1:
        raise UserError(
            f"the processes have unequal numbers of devices, {sorted(counts)}; give each process the same number"
        )
    own = np.frombuffer(json.dumps(dict(gather_facts())).encode(), np.uint8)
    lengths = np.asarray(experimental.gather(np.array([len(own)]))).reshape(-1)
    padded = np.pad(own, (0, int(lengths.max()) - len(own)))
    rows = np.asarray(experimental.gather(padded))
    everyone = [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]
    for process, theirs in enumerate(everyone):
        if different := first_difference(everyone[0], theirs):
            name, here, there = different
            raise UserError(
                f"the processes of this job differ: {name} is {here} on process 0 and {there} on process "
                f"{process}; start the same command, of the same code, on the same data, on every host"
            )


def first_difference(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The first fact that differs, and its two values; None where all are the same."""
    for name in {**one, **other}:
        values = one.get(name, "missing"), other.get(name, "missing")
        if values[0] != values[1]:
            return name, *values
    return None


def check_shared(folder: pathlib.Path) -> None:
    """Raises unless `folder` is the same folder on all processes. Every process must call it.

    Raises:
      UserError: on every process alike, naming one that does not see what process 0 has written there.
    """
    if jax.process_count() == 1:
        return
    token = np.frombuffer(os.urandom(8), np.uint8)
    token = experimental.broadcast(token).astype(np.uint8)
    file = folder / f".shared_{token.tobytes().hex()}"
    if jax.process_index() == 0:
        try:
            file.touch()
        except OSError as e:
            raise UserError(
                f"workdir {folder} cannot be written: {e.strerror}; choose another --workdir"
            ) from e
    experimental.wait_for_all("hap2s_jax: written")
    until = time.monotonic() + _SEEN_WITHIN
    while not (seen := file.exists()) and time.monotonic() < until:
        time.sleep(0.2)
    everyone = np.asarray(experimental.gather(np.array([seen]))).reshape(-1)
    if jax.process_index() == 0:
        file.unlink(missing_ok=True)
    if not everyone.all():
        raise UserError(
            f"{folder} is another folder on process {int(np.argmin(everyone))} than on process 0; give a --workdir "
            "on storage that all hosts share (NFS, Filestore, a mounted bucket)"
        )


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other jobs out of `folder` while the context is open. Every process must enter it.

    Raises:
      UserError: on every process alike, if another job is in there.
    """
    with contextlib.ExitStack() as held:
        answers = itertools.repeat(None)
        if jax.process_index() == 0:
            answers = held.enter_context(claiming(folder / LOCK))
        free = None
        while free is None:  # one by one, since the others do not wait for long
            free = next(answers)
            if jax.process_count() > 1:
                number = np.array(-1 if free is None else int(free))
                number = int(experimental.broadcast(number))
                free = None if number < 0 else bool(number)
        if not free:
            raise UserError(f"another run is using {folder}; wait until it ends, or choose another --workdir")
        yield


class StopRequests:
    """Turns SIGTERM into a request to stop that all processes follow at the same step.

    A context: while it is open, the first SIGTERM is noted and a second one ends the process as ever. Among
    several processes JAX's preemption service does this instead, from the moment they have joined: it tells
    all processes of one's signal and picks the step.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._before: Any = None

    def __enter__(self) -> StopRequests:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number: int, frame: object) -> None:
        self._asked.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def check_before(self, step: int) -> None:
        """Raises `Preempted` if the signal came before the first step, here `step`, was asked about."""
        # The service counts from 0 until it is told the step; a signal of that time asks to stop at step 1.
        early = jax.process_count() > 1 and step > 1 and self(1)
        if self(step) or early:  # called last: from here on the service counts
            raise Preempted(step)

    def __call__(self, step: int) -> bool:
        """Whether to stop now, `step` updates being complete; every process must ask at every step.

        Raises:
          UserError: another job has taken the working directory over.
        """
        lease.check_known()
        if jax.process_count() == 1:
            return self._asked.is_set()
        return experimental.preemption_reached(step)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends this process at the first error, without a shutdown that would wait for the other processes.

    They see their connections break and end too, instead of waiting for a result that will not come.
    """
    try:
        yield
    except (Preempted, SystemExit):
        raise  # on all processes: they end together
    except UserError as e:
        _leave(f"error: {e}", 1)
    except Unreachable as e:
        _leave(f"error: {e}", 75)
    except KeyboardInterrupt:
        _leave("error: interrupted; the same command goes on from the last checkpoint", 130)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" in str(e).partition("\n")[0]:
            _leave(f"error: {reason(e)}; lower the batch, or raise batch.pieces", 1)
        _leave(
            f"error: the connection to another process broke, most likely because that one ended ({reason(e)}); see "
            "its output, and run the same command again on every host to continue from the last checkpoint",
            EXIT_LOST,
        )
    except BaseException:
        _leave(traceback.format_exc(), 1)


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if jax.process_index() == 0:
        # The coordinator lives in this process. When it goes, JAX aborts the others with a stack trace; give
        # processes with the same error a moment to report it themselves.
        time.sleep(5)
    signals.end(code)
