"""Exceptions: a mistake that the user can correct, a request to stop, and a bucket that does not answer."""

from __future__ import annotations

import difflib
import errno
import os
import re
import textwrap
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can correct: wrong config, missing data, unreadable file.

    Its message is one line that names the thing, what it was, what it should be and, if there is one,
    the command that corrects it. The commands print only the message, without a traceback.
    """


class Preempted(Exception):
    """Training was asked to stop (SIGTERM), has saved its state, and goes on when the command is run again.

    Attributes:
      step: completed updates, which is the step of the checkpoint.
    """

    def __init__(self, step: int):
        where = f"saved at step {step}" if step else "nothing was trained yet"
        super().__init__(f"asked to stop: {where}; the same command goes on from there")
        self.step = step


class Unreachable(Exception):
    """A bucket did not answer in spite of retries. Saved files stay, and the same command goes on later.

    Attributes:
      where: the place, or what happened there.
    """

    def __init__(self, where: str, why: str):
        super().__init__(
            f"{where}: the bucket does not answer ({why}); the same command goes on from what is saved, once it does"
        )
        self.where = where


_SHOWN = 900  # letters of a line


def shown(text: str) -> str:
    """Text that may come out of somebody's file, for a terminal: what is not printed, such as the sequences that move
    the cursor or begin a line, stands escaped, and what goes on and on lacks its middle.
    """
    text = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 3 :]}"
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def reason(error: BaseException) -> str:
    """Why something failed, in one line: the first line of a library's message.

    A very long line is reduced to the error of the disk, if it names one, or else cut between words.
    """
    lines = [
        line.strip() for line in str(getattr(error, "strerror", None) or error).splitlines() if line.strip()
    ]
    # TensorFlow's messages begin with headings, and <what is not there>.
    said = (line for line in lines if not line.endswith(":") and not re.fullmatch("<[^<>]*>", line))
    line = next(said, *lines[:1] or [type(error).__name__])
    if len(line) <= 200:
        return line
    faults = [
        os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
    ]
    return next((fault for fault in faults if fault in line), textwrap.shorten(line, 200, placeholder=" ..."))


def require(holds: bool, key: str, value: object, wanted: str) -> None:
    """Raises a UserError unless `holds`; `wanted` says what `value` should be, such as "at least 1"."""
    if not holds:
        raise UserError(f"{key} is {value}; it should be {wanted}")


def did_you_mean(word: object, known: Iterable[object], *, cutoff: float = 0.6) -> str:
    """Gives " (did you mean 'x'?)" for the known name nearest to `word`, or "" if none is within `cutoff`."""
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=cutoff)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown_name(what: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry, with the nearest right one and all of them."""
    names = sorted(known)
    name = name[:200] if isinstance(name, str) else name
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {what} {name!r:.300}; {hint}known: {', '.join(names)}")
