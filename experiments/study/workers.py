"""Processes that work on one study, each on a core of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

from hap2s_jax.errors import UserError


def workers(script: str, arguments: Sequence[str], cores: int) -> None:
    """Runs a script in a process for each core, at low priority, and ends when all have.

    Args:
      script: its path; it is given `--worker` too.
      arguments: of its command line.
      cores: how many, of those that this process may use.

    Raises:
      UserError: one of them has failed.
    """
    own = sorted(os.sched_getaffinity(0))[:cores]

    def confined(core: int) -> Callable[[], None]:
        def confine() -> None:
            os.sched_setaffinity(0, {core})
            os.nice(19)

        return confine

    command = [sys.executable, script, *arguments, "--worker"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    running = [subprocess.Popen(command, preexec_fn=confined(core)) for core in own]
    try:
        codes = [process.wait() for process in running]
    finally:
        for process in running:
            process.terminate()
            process.wait()
    if any(codes):
        raise UserError(f"{sum(map(bool, codes))} of {len(codes)} processes have failed; see above")
