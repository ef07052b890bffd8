"""Several processes on this machine as one cluster, none of which outlives its test."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A test run that is killed cannot end its workers; the kernel then does (PR_SET_PDEATHSIG, SIGKILL). Set by a process
# in between, which becomes the worker: a function run after the fork would run in a copy of JAX's threads.
_TIE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
_TIED = [sys.executable, "-I", "-S", "-c", _TIE] if sys.platform == "linux" else []


@contextlib.contextmanager
def free_address():
    """An address whose port no one else on this machine is given while the context is open."""
    with socket.socket() as probe:
        # Bound but not listening: other programs are given other ports, and the coordinator, which asks to
        # share it, may listen.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{probe.getsockname()[1]}"


class Worker:
    """A started command, whose output goes to files: a pipe that nobody reads while a test waits would stop it."""

    def __init__(self, command, environment, folder):
        own = Path(tempfile.mkdtemp(dir=folder))
        self._files = [own / "out", own / "err"]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                [*_TIED, *command], cwd=ROOT, env=environment, stdout=out, stderr=err
            )

    @property
    def code(self):
        return self.process.poll()

    @property
    def out(self):
        return self._files[0].read_text()

    @property
    def err(self):
        return self._files[1].read_text()


def start(commands, folder, devices=4):
    """Starts every command with that many fake devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT / "tests"),
    }
    workers = []
    try:
        for command in commands:
            workers.append(Worker(command, environment, folder))
    except BaseException:
        kill(workers)
        raise
    return workers


def wait(workers, timeout):
    """Waits until all have ended, at most `timeout` seconds; whatever still runs then is killed."""
    until = time.monotonic() + timeout
    try:
        for worker in workers:
            worker.process.wait(max(until - time.monotonic(), 0.1))
    finally:
        kill(workers)


def kill(workers):
    """Ends what still runs, by force."""
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


def wait_until(condition, workers, timeout):
    """Waits for `condition()`; kills all workers and fails if it fails, takes too long or a worker ends before."""
    until = time.monotonic() + timeout
    try:
        while not condition():
            ended = any(worker.code is not None for worker in workers)
            if ended or time.monotonic() > until:
                what = "a process ended early" if ended else "timed out"
                raise AssertionError("\n".join([what, *(worker.err[-3000:] for worker in workers)]))
            time.sleep(0.1)
    except BaseException:
        kill(workers)
        raise
