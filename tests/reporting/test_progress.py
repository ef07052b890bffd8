import io
import logging
import os
import re
import subprocess
import sys
import warnings

import pytest

from hap2s_jax.reporting import progress
from hap2s_jax.reporting.progress import ProgressBar


class Clock:
    """Stands in for the time module."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_pipe_a_line_now_and_then(clock: Clock) -> None:
    out = io.StringIO()
    with ProgressBar(1000, 400, "training", images_per_step=64, interval=30, file=out) as bar:
        for step in range(401, 1001):
            clock.now += 0.5
            bar.update(step, loss=0.25 if step % 10 == 0 else None)
    lines = out.getvalue().splitlines()
    assert lines[0] == "training: step 401/1000"
    assert lines[1] == "training: step 461/1000, loss 0.2500, 128 images/s, 4:30 left"
    assert lines[-1] == "training: step 1000/1000, loss 0.2500, 128 images/s"
    assert len(lines) == 1 + 540 // 60 + 1
    out = io.StringIO()
    with ProgressBar(132, 0, "embedding", images_per_step=1, file=out) as bar:
        bar.update(16)
    assert out.getvalue().splitlines()[0] == "embedding: image 16/132"


def test_speed_is_that_of_the_recent_steps_without_compiling_and_pauses(clock: Clock) -> None:
    bar = ProgressBar(1000, images_per_step=10, enabled=False)
    clock.now += 60  # compiles
    bar.update(1)
    assert bar.images_per_second is None
    for step in range(2, 102):
        clock.now += 1
        bar.update(step)
    assert bar.images_per_second == pytest.approx(10)
    with bar.paused():
        clock.now += 500
    for step in range(102, 200):
        clock.now += 0.25
        bar.update(step)
        if step == 103:
            assert 10 < bar.images_per_second < 13
    assert bar.images_per_second == pytest.approx(40)


def test_in_a_terminal_all_is_printed_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(sys, "stdout", out)
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        with ProgressBar(10, description="training") as bar:
            bar.update(3, loss=0.5)
            print("printed", file=sys.stderr)
            print("to stdout")
            # pytest records warnings; a plain interpreter shows them with this very function.
            print(
                warnings.formatwarning("collapse", UserWarning, "train.py", 7, "").rstrip(), file=sys.stderr
            )
            logging.getLogger("hap2s").warning("logged")
            bar.write("written")
            print("begun", end="", file=sys.stderr)
        assert sys.stderr is out
        assert sys.stdout is out
        assert handler.stream is out
    finally:
        logging.getLogger().removeHandler(handler)
    text = out.getvalue()
    assert "loss 0.5000" in text
    # What stands on the screen: a carriage return starts the line over.
    screen = [re.split("[\r]", line)[-1].rstrip() for line in text.split("\n")]
    for expected in (
        "printed",
        "to stdout",
        "train.py:7: UserWarning: collapse",
        "logged",
        "written",
        "begun",
    ):
        assert expected in screen


@pytest.mark.parametrize("terminal", [False, True])
def test_a_closed_output_never_breaks_the_run(terminal: bool) -> None:
    out = Terminal() if terminal else io.StringIO()
    with ProgressBar(10, interval=0, file=out) as bar:
        bar.update(1, loss=1.0)
        out.close()
        for step in range(2, 11):
            bar.update(step, loss=1.0)
        bar.write("into the void")


def test_a_reader_that_went_away_never_breaks_the_run() -> None:
    code = (
        "from hap2s_jax.reporting.progress import ProgressBar\n"
        "with ProgressBar(2000, interval=0) as bar:\n"
        "    for step in range(1, 2001): bar.update(step, loss=0.5)\n"
        "print('done')"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=write, stdout=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stdout == "done\n"


def test_no_standard_error_and_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with ProgressBar(2) as bar:
        bar.update(1)
        bar.write("nowhere")
    out = io.StringIO()
    with ProgressBar(2, file=out, enabled=False) as bar:
        bar.update(1)
    assert out.getvalue() == ""


def test_an_error_inside_passes_through_and_the_streams_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    with pytest.raises(RuntimeError, match="boom"), ProgressBar(2):
        raise RuntimeError("boom")
    assert sys.stderr is out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (59.6, "1:00"), (3600, "1:00:00"), (93784, "26:03:04")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text
