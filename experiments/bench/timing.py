"""Times of calls that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each call in each round; all take turns, so that what disturbs a round disturbs all alike.

    Args:
      calls: by name; each waits for its own end, and has been compiled.
      rounds: at most.
      seconds: after which no new round begins.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - began > seconds:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times
