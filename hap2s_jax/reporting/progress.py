"""A progress bar that is also fit for a pipe or a CI log."""

from __future__ import annotations

import collections
import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO

_WINDOW_SECONDS = 20.0
_BAR_FORMAT = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"


class ProgressBar:
    """Shows step, loss, images per second (over the last 20 seconds) and the time left.

    On a terminal a bar is redrawn in place, and what is printed, warned or logged meanwhile appears above
    it. Elsewhere a plain line is printed at the first step, then every `interval` seconds, and at the end.
    A closed or broken output stops the display, never the run.

        with ProgressBar(1900, description="training", images_per_step=64) as bar:
            for step in range(1, 1901):
                bar.update(step, loss=0.25)
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        description: str = "training",
        *,
        images_per_step: int | None = None,
        interval: float = 30.0,
        file: TextIO | None = None,
        enabled: bool = True,
    ) -> None:
        """Prepares the bar; it is drawn from `__enter__` on.

        Args:
          total: steps of the whole run; initial: steps already done (a resumed run).
          description: what is under way.
          images_per_step: images in a global batch, for images per second; 1 where images are counted, not steps.
          interval: seconds between plain lines where there is no terminal.
          file: where to write; default is standard error.
          enabled: False shows nothing (all processes of a run but the first).
        """
        self._total, self._step, self._description = total, initial, description
        self._images_per_step, self._interval = images_per_step, interval
        self._file: Any = sys.stderr if file is None else file
        self._enabled = enabled and self._file is not None
        self._in_terminal = self._enabled and _is_terminal(self._file)
        self._bar: Any = None
        self._loss: float | None = None
        # Only update() fills it: the first step compiles, so the clock starts when that step is done.
        self._marks: collections.deque[tuple[float, int]] = collections.deque()
        self._last_line, self._printed_step = -float("inf"), -1
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> ProgressBar:
        if self._in_terminal:
            from tqdm import tqdm

            with self._harmless():
                self._bar = tqdm(
                    total=self._total, initial=self._step, desc=self._description, file=self._file,
                    bar_format=_BAR_FORMAT, dynamic_ncols=True, leave=True,
                )  # fmt: skip
                self._restore.enter_context(_printing_above(self._bar))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._harmless():
            self._restore.close()
        if self._bar is not None:
            with self._harmless():
                self._bar.close()
        elif self._enabled:
            self._print_line()
        self._enabled = False

    @property
    def steps_per_second(self) -> float | None:
        """Speed over the last 20 seconds; None until two steps were timed."""
        if len(self._marks) < 2 or self._marks[-1][0] <= self._marks[0][0]:
            return None
        return (self._marks[-1][1] - self._marks[0][1]) / (self._marks[-1][0] - self._marks[0][0])

    @property
    def images_per_second(self) -> float | None:
        """Speed over the last 20 seconds; None until two steps were timed or without `images_per_step`."""
        speed = self.steps_per_second
        return None if speed is None or self._images_per_step is None else speed * self._images_per_step

    def update(self, step: int, loss: float | None = None) -> None:
        """Moves on to `step` completed steps.

        Args:
          step: completed steps in all, not since the last call.
          loss: the latest; kept on show until another is given. Leave it out between log steps, where
            reading it from the device would make the step wait.
        """
        now = time.monotonic()
        self._step = step
        self._marks.append((now, step))
        while len(self._marks) > 2 and self._marks[0][0] < now - _WINDOW_SECONDS:
            self._marks.popleft()
        if not self._enabled:
            return
        self._loss = self._loss if loss is None else loss
        if self._bar is not None:
            with self._harmless():
                self._bar.set_postfix_str(self._facts(), refresh=False)
                self._bar.update(step - self._bar.n)
        elif now - self._last_line >= self._interval:
            self._print_line()

    def write(self, text: str) -> None:
        """Prints a line above the bar (in a pipe: a line like any other)."""
        if not self._enabled:
            return
        with self._harmless():
            stream = self._file if self._bar is None else _Above(self._bar, self._file)
            print(text, file=stream)
            stream.flush()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent in the block (an evaluation, say) does not count towards the speed."""
        start = time.monotonic()
        try:
            yield
        finally:
            away = time.monotonic() - start
            self._marks = collections.deque((when + away, step) for when, step in self._marks)

    def _facts(self) -> str:
        facts = [] if self._loss is None else [f"loss {_short(self._loss)}"]
        if (rate := self.images_per_second) is not None:
            facts.append(f"{rate:,.0f} images/s")
        speed = self.steps_per_second
        if speed and self._step < self._total:
            facts.append(f"{_duration((self._total - self._step) / speed)} left")
        return ", ".join(facts)

    def _print_line(self) -> None:
        if self._printed_step == self._step:
            return
        self._last_line, self._printed_step = time.monotonic(), self._step
        counted = "image" if self._images_per_step == 1 else "step"
        line = f"{self._description}: {counted} {self._step}/{self._total}"
        facts = self._facts()
        with self._harmless():
            print(f"{line}, {facts}" if facts else line, file=self._file, flush=True)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """A closed stream (ValueError) or a reader that is gone (OSError) ends only the display."""
        try:
            yield
        except (ValueError, OSError):
            self._enabled, self._bar = False, None


def _is_terminal(file: Any) -> bool:
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError, OSError):
        return False


class _Above:
    """A stand-in for a stream: for every whole line it takes the bar away, writes, and puts the bar back."""

    def __init__(self, bar: Any, stream: Any) -> None:
        self._bar, self._stream, self._begun = bar, stream, ""

    def write(self, text: str) -> int:
        # print() hands over the line and its end apart; a bar drawn in between would wipe the line out.
        whole, end, self._begun = (self._begun + text).rpartition("\n")
        if end:
            self._bar.clear()
            self._stream.write(whole + end)
            self._stream.flush()
            self._bar.refresh()
        return len(text)

    def finish(self) -> None:
        if self._begun:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _printing_above(bar: Any) -> Iterator[None]:
    """Sends what is printed, warned (to sys.stderr) and logged through `_Above` where that is a terminal."""
    old = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    new = {name: _Above(bar, stream) for name, stream in old.items() if _is_terminal(stream)}
    # Handlers hold on to the stream that they were made with; absl's wraps the one that has it.
    handlers = [getattr(handler, "python_handler", handler) for handler in logging.getLogger().handlers]
    swapped = []
    for name, stream in new.items():
        setattr(sys, name, stream)
        for handler in handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is old[name]:
                handler.setStream(stream)
                swapped.append((handler, old[name]))
    try:
        yield
    finally:
        for handler, stream in swapped:
            handler.setStream(stream)
        for name in new:
            setattr(sys, name, old[name])
        for stream in new.values():
            stream.finish()


def _short(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
