"""OpenCV as this package uses it: on one thread, and silent."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


@functools.cache
def opencv() -> Any:
    """The module `cv2`."""
    import cv2

    # Callers have threads of their own; OpenCV's would compete with them, and with the encoder, for the cores.
    cv2.setNumThreads(1)
    # Callers report unreadable images in one line.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


class _Stderr(NamedTuple):
    """C's variable `stderr`, its usual value, and a stream that leads nowhere."""

    variable: ctypes.c_void_p
    usual: int
    nowhere: int


@functools.cache
def _c_stderr() -> _Stderr | None:
    """None where C has no such variable."""
    try:
        library = ctypes.CDLL(None)
        variable = ctypes.c_void_p.in_dll(library, "__stderrp" if sys.platform == "darwin" else "stderr")
        library.fopen.restype = ctypes.c_void_p
        nowhere = library.fopen(b"/dev/null", b"w")
    except (AttributeError, OSError, TypeError, ValueError):  # on Windows, for example
        return None
    usual = variable.value
    return _Stderr(variable, usual, nowhere) if nowhere and usual else None


def imdecode(data: bytes, flags: int) -> np.ndarray | None:
    """Decodes with OpenCV's flags; None for what it cannot read.

    Lines of libjpeg and libpng about damaged images, which name no file, are kept from the terminal. They are written
    to C's `stderr`, a variable that is set to another stream meanwhile; Python's `sys.stderr` and the file descriptor
    are unchanged.
    """
    return _decoder()(data, flags)


@functools.cache
def _decoder() -> Callable[[bytes, int], np.ndarray | None]:
    # Everything that does not change is looked up once: small images decode in some 70 microseconds.
    cv2, stderr, lock, now = opencv(), _c_stderr(), threading.Lock(), 0
    as_array, uint8, decode, fault = np.frombuffer, np.uint8, cv2.imdecode, cv2.error

    def loud(data: bytes, flags: int) -> np.ndarray | None:
        try:
            return decode(as_array(data, uint8), flags)
        except fault:  # such as more pixels than OpenCV's limit, 2**30
            return None

    if stderr is None:
        return loud
    variable, usual, nowhere = stderr

    def silent(data: bytes, flags: int) -> np.ndarray | None:
        nonlocal now
        with lock:  # of several threads the first sets it, and the last sets it back
            now += 1
            variable.value = nowhere
        try:
            return loud(data, flags)
        finally:
            with lock:
                now -= 1
                if not now:
                    variable.value = usual

    return silent
