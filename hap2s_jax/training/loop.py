"""The training loop. It takes an iterator of batches and callables, and knows no config and no TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hap2s_jax.errors import Preempted
from hap2s_jax.training.state import TrainState
from hap2s_jax.training.watch import check_finite

PyTree = Any

# Updates queued on the device before the host waits: enough to hide the input pipeline, and a bound on the
# memory of batches in flight.
MAX_QUEUED = 2


def train(
    state: TrainState,
    batches: Iterator[PyTree],
    *,
    update: Callable[[TrainState, PyTree], tuple[TrainState, Mapping[str, jax.Array]]],
    total_steps: int,
    log_every: int,
    evaluate_every: int,
    save_every: int,
    log: Callable[[int, str, dict[str, float]], None],
    evaluate: Callable[[TrainState], dict[str, float]] | None,
    save: Callable[[TrainState, dict[str, float] | None], None],
    progress: Callable[[int, dict[str, float]], None] | None = None,
    wait_each_step: bool = False,
    stop: Callable[[int], bool] | None = None,
) -> TrainState:
    """Trains from ``state.step`` to `total_steps`.

    Args:
      state: where to begin; donated.
      batches: the batches of steps ``state.step``, ``state.step + 1``, ... They must not be changed
        afterwards: on CPU they are read later, without a copy.
      update: the compiled step.
      total_steps: completed updates at which to end.
      log_every: updates between two calls of `log`, which gets means over the updates since the last one.
      evaluate_every: updates between two calls of `evaluate`; it also runs at the end.
      save_every: updates between two calls of `save`; it also runs after every evaluation, with its metrics.
      log: ``log(step, part, metrics)``; `part` is "train" or "validation".
      evaluate: ``evaluate(state) -> metrics``, which are logged, or None.
      save: ``save(state, metrics of this step's evaluation or None)``.
      progress: ``progress(step, metrics)`` after each update whose numbers have arrived.
      wait_each_step: wait for each update before the next is queued (see `DataParallel.must_wait`).
      stop: ``stop(completed updates)``, asked before each update; True saves and ends, on all processes alike.

    Raises:
      Preempted: when `stop` said so; everything done so far is saved, unless this call has done no update.
      DivergedError: naming the step whose loss or norms are not finite. Nothing of it is saved.
    """
    first = int(state.step)
    window = _Window(first, progress)
    saved = first
    for step in range(first + 1, total_steps + 1):
        # Here the last update and its evaluation are complete.
        if stop is not None and stop(step - 1):
            if step - 1 > saved:
                if not window.is_empty:
                    log(step - 1, "train", window.means())
                save(state, None)
            raise Preempted(step - 1)
        # The order is an invariant that resuming relies on: the batch of update t, update t, the numbers of
        # all updates up to t checked and written, evaluation, and last the checkpoint that stands for all
        # this. The window is cut at every checkpoint, so that a resumed run logs the same lines, unless
        # SIGTERM cut a window short.
        began = time.perf_counter()
        batch = next(batches)
        window.waited += time.perf_counter() - began
        with jax.transfer_guard("disallow"):  # a batch is placed on its devices by whoever makes it
            state, metrics = update(state, batch)
        window.push(metrics, keep_queued=0 if wait_each_step else MAX_QUEUED)

        last = step == total_steps
        evaluates = evaluate is not None and (last or step % evaluate_every == 0)
        saves = last or evaluates or step % save_every == 0
        if saves or step % log_every == 0:
            log(step, "train", window.means())
        evaluated = None
        if evaluate is not None and evaluates:
            evaluated = evaluate(state)
            log(step, "validation", evaluated)
        if saves:
            save(state, evaluated)
            saved = step
            window.restart_clock()
    return state


class _Window:
    """The numbers of the updates since the last log line, fetched as they arrive and checked one by one."""

    def __init__(self, first: int, progress: Callable[[int, dict[str, float]], None] | None):
        self.waited = 0.0
        self._step = first
        self._progress = progress
        self._queued: list[Mapping[str, jax.Array]] = []
        self._restart()

    def _restart(self) -> None:
        self._fetched: list[dict[str, float]] = []
        self.restart_clock()

    @property
    def is_empty(self) -> bool:
        """Whether no update has come since the last log line."""
        return not (self._queued or self._fetched)

    def restart_clock(self) -> None:
        """Excludes the time since the last log line from the time per step."""
        self._began = time.perf_counter()
        self.waited = 0.0

    def push(self, metrics: Mapping[str, jax.Array], keep_queued: int) -> None:
        self._queued.append(metrics)
        while len(self._queued) > keep_queued:
            self._fetch()

    def _fetch(self) -> None:
        values = {k: float(v) for k, v in jax.device_get(self._queued.pop(0)).items()}
        self._step += 1
        check_finite(self._step, values)
        self._fetched.append(values)
        if self._progress is not None:
            self._progress(self._step, values)

    def means(self) -> dict[str, float]:
        """Means over the window; a new window begins."""
        while self._queued:
            self._fetch()
        seconds = time.perf_counter() - self._began
        means = {k: float(np.mean([m[k] for m in self._fetched])) for k in self._fetched[0]}
        means["seconds_per_step"] = seconds / len(self._fetched)
        means["input_wait_fraction"] = self.waited / max(seconds, 1e-9)
        self._restart()
        return means
