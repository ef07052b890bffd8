"""A trace of some updates for TensorBoard, XProf or Perfetto."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TypeVar

import jax

from hap2s_jax.data.places import local_folder, place

State = TypeVar("State")
Batch = TypeVar("Batch")
Metrics = TypeVar("Metrics")

FOLDER = "profile"


def traced(
    update: Callable[[State, Batch], tuple[State, Metrics]],
    steps: tuple[int, int],
    start_step: int,
    workdir: str | os.PathLike[str],
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """Wraps `update` so that `jax.profiler` traces updates `steps[0]` to `steps[1]` into ``workdir/profile``.

    Args:
      update: ``(state, batch) -> (state, metrics)``, called once for each step.
      steps: the first and the last update to trace, counted from 1 as in the logs; nothing is traced where the first
        has been made already, or comes after the last.
      start_step: completed updates before the first call.
      workdir: of the run.
    """
    step = start_step
    traces = contextlib.ExitStack()

    def call(state: State, batch: Batch) -> tuple[State, Metrics]:
        nonlocal step
        step += 1
        if step == steps[0] <= steps[1]:
            jax.block_until_ready(state)  # work that was queued before must not be in the trace
            jax.profiler.start_trace(traces.enter_context(local_folder(place(workdir) / FOLDER)))
        state, metrics = update(state, batch)
        if step == steps[1] and steps[0] > start_step:
            jax.block_until_ready((state, metrics))
            jax.profiler.stop_trace()
            traces.close()
        return state, metrics

    return call
