"""OpenCV as this package uses it: on one thread, and silent."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from typing import Any, NamedTuple

import numpy as np


@functools.cache
def opencv() -> Any:
    """The module `cv2`."""
    import cv2

    # Whoever asks does so from threads of his own; OpenCV's would only fight them, and the encoder, for the cores.
    cv2.setNumThreads(1)
    # What cannot be read is reported by whoever asked for it, in one line.
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
    except (AttributeError, OSError, TypeError, ValueError):  # Windows, for one
        return None
    usual = variable.value
    return _Stderr(variable, usual, nowhere) if nowhere and usual else None


_decoding_now = [0]
_lock = threading.Lock()


def imdecode(data: bytes, flags: int) -> np.ndarray | None:
    """Decodes with OpenCV's flags; None for what it cannot read.

    libjpeg's and libpng's own lines about damaged images, which name no file, stay off the terminal. They go to C's
    `stderr`, a variable that may be set to another stream; Python's `sys.stderr`, and whatever writes to the file
    descriptor, are as before.
    """
    cv2, buffer, stderr = opencv(), np.frombuffer(data, np.uint8), _c_stderr()
    if stderr is not None:
        with _lock:  # of several threads the first sets it, and the last sets it back
            _decoding_now[0] += 1
            stderr.variable.value = stderr.nowhere
    try:
        return cv2.imdecode(buffer, flags)
    except cv2.error:  # more pixels than OpenCV's own limit, 2**30, for one
        return None
    finally:
        if stderr is not None:
            with _lock:
                _decoding_now[0] -= 1
                if not _decoding_now[0]:
                    stderr.variable.value = stderr.usual
