"""Batches made ahead of time by tf.data."""

from __future__ import annotations

import atexit
import contextlib
import weakref
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import numpy as np

from hap2s_jax.data.tf import AHEAD
from hap2s_jax.data.tf.quiet import tf

_Batch = TypeVar("_Batch")
_RUNNING: weakref.WeakSet[Generator[Any]] = weakref.WeakSet()


def made_ahead(
    make: Callable[[int], _Batch], start: int, stop: int, at_once: int
) -> Generator[_Batch, None, None]:
    """Yields make(start), ..., make(stop - 1) in order; `at_once` are made at a time, `AHEAD` wait."""
    batches = _made_ahead(make, start, stop, at_once)
    _RUNNING.add(batches)
    return batches


@atexit.register
def _end_running() -> None:
    # TensorFlow's threads abort the process if they need Python's lock after the interpreter has ended.
    for batches in list(_RUNNING):
        # A generator cannot be closed while another thread draws from it.
        with contextlib.suppress(ValueError):
            batches.close()


def _made_ahead(
    make: Callable[[int], _Batch], start: int, stop: int, at_once: int
) -> Generator[_Batch, None, None]:
    # Only the numbers of the steps go through tf.data: it would copy arrays, and turn an exception into one of its own
    # with a traceback in the message.
    made: dict[int, _Batch | Exception] = {}
    # TensorFlow never frees a Python function, so at the end the function drops what it refers to.
    work = [make]

    def run(step: np.ndarray) -> np.ndarray:
        try:
            batch = work[0](int(step))
        except Exception as error:
            batch = error
        if work:
            made[int(step)] = batch
        return step

    dataset = tf.data.Dataset.range(start, stop).map(
        lambda step: tf.numpy_function(run, [step], tf.int64),
        num_parallel_calls=at_once,
        deterministic=True,
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = at_once
    dataset = dataset.prefetch(AHEAD).with_options(options)
    try:
        for step in dataset.as_numpy_iterator():
            batch = made.pop(int(step))
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        work.clear()
        made.clear()
