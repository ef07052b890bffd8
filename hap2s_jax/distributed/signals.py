"""Ends a command within two seconds of SIGINT or SIGTERM, with one line, from its first second on.

Python runs signal handlers between two of its own instructions, so none runs while a program compiles. And an exception
that a handler raises inside a callback of the garbage collector is lost. So a thread watches too: it ends the process
if the signal was not noticed in time. Signals with a handler of their own, as SIGTERM in training, are left alone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing `typing` takes longer than this whole module
    import tempfile
    from collections.abc import Iterator
    from typing import Any, NoReturn

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_GRACE = 1.5  # seconds for the files in hand to be closed, or removed

_noticed = threading.Event()
_speaking = threading.RLock()  # a handler may interrupt the thread that is writing
_spoken: list[str] = []
_asked: list[int] = []
_line: list[str] = []  # what to say, while there is work that can be interrupted
_folders: list[str] = []
_terminal = [2]  # the file descriptor of standard error


def watch() -> None:
    """Begins to watch; call it from the main thread, before anything that takes long."""
    ours = [n for n in CODES if signal.getsignal(n) in (signal.SIG_DFL, signal.default_int_handler)]
    if threading.current_thread() is not threading.main_thread() or not ours:
        return
    for number in ours:
        signal.signal(number, _on_signal)
    atexit.register(_ignore)
    sys.unraisablehook = _on_lost_exception
    if os.name != "posix":
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(reader,), name="signals", daemon=True).start()


def working(line: str | None) -> None:
    """From now on a signal raises KeyboardInterrupt, and the process ends with `line`; None: it ends at once."""
    _line[:] = [] if line is None else [line]
    _spoken.clear()


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder that is removed too when the process ends by `end`."""
    import tempfile

    made = tempfile.TemporaryDirectory(prefix="hap2s_jax_")
    _folders.append(made.name)
    return made


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discards what C++ libraries write directly to standard error; `say` still reaches it."""
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    _terminal.append(saved)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        _terminal.remove(saved)
        os.close(saved)
        os.close(nothing)


def notice() -> int:
    """Records that the signal has reached the work and ends it, however long that takes; returns the exit code."""
    with _speaking:
        _noticed.set()
    return CODES[signal.Signals(_asked[0])] if _asked else CODES[signal.SIGINT]


def say(line: str) -> None:
    """Prints the work's last line, once, from whichever thread comes first."""
    with _speaking, contextlib.suppress(OSError):
        if not _spoken:
            _spoken.append(line)
            # Not with sys.stderr: another thread may be writing to it.
            os.write(_terminal[-1], f"error: {line}\n".encode())


def leave(code: int, *, anyway: bool = False) -> None:
    """Ends the process if a signal asked for it, or `anyway`, without waiting for threads; else returns."""
    if _asked or anyway:
        with contextlib.suppress(OSError, ValueError):  # the reader of the pipe is gone
            sys.stdout.flush()
        end(code)


def end(code: int) -> NoReturn:
    """Ends the process at once, after removing its temporary folders."""
    import shutil

    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


def _on_signal(number: int, frame: Any) -> None:
    _asked.append(number)
    if not _line or len(_asked) > 1:  # asked a second time: do not wait
        _say_and_exit(number)
    raise KeyboardInterrupt


def _wait(reader: int) -> None:
    asked = False
    while data := os.read(reader, 1):
        # Another handler was set, as when training takes SIGTERM as a request to stop.
        if data[0] not in CODES or signal.getsignal(data[0]) is not _on_signal:
            continue
        if asked:
            _say_and_exit(data[0])
        asked = True
        _noticed.wait(_GRACE)
        with _speaking:
            if not _noticed.is_set():
                _say_and_exit(data[0])


def _ignore() -> None:
    """Ignores signals once the exit code is known: Python drops our handlers next, and must end undisturbed."""
    for number in CODES:
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_IGN)


def _on_lost_exception(lost: Any) -> None:
    # Raised in a callback. The thread above is about to end the process, with one line and no traceback.
    if _asked and lost.exc_type is KeyboardInterrupt:
        return
    # On a full disk the first failed write is reported; TensorStore's others would only print tracebacks.
    if lost.exc_type is RuntimeError and str(lost.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(lost)


def _say_and_exit(number: int) -> NoReturn:
    say(_line[0] if _line else "interrupted")
    end(CODES[signal.Signals(number)])


def _is_command() -> bool:
    """Whether this process was started as one of our commands; known before their modules load."""
    started = sys.orig_argv
    if sys.argv[:1] == ["-m"] and "-m" in started[:-1]:
        return started[started.index("-m") + 1].partition(".")[0] == "hap2s_jax"
    return bool(sys.argv) and os.path.basename(sys.argv[0]).removesuffix(".exe") == "hap2s"


IS_COMMAND = _is_command()
if IS_COMMAND:
    watch()
