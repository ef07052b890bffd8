"""Kills at random moments of training, saving, measuring and embedding; the same command then ends bit-identical.

SIGSTOP is followed by SIGCONT: a process that stood still for a while is as good as ever. Of a cluster of two, one of
the two is killed, and the other must end by itself.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from drill import Trial, WrongError

from drills import small_run

ROOT = pathlib.Path(__file__).parents[2]
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP")
STEPS = 12
CONFIG = {
    "steps": STEPS,
    "checkpoint.every_steps": 2,
    "evaluate.every_steps": 6,
    "log.every_steps": 1,
    "log.tensorboard": False,
    "schedule.name": "constant",
    "batch.classes": 2,
    "data.image_size": "32,32",
    "encoder.name": "resnet10",
    "encoder.width": 8,
    "encoder.stem": "small32",
}
_STACK = "*** Check failure"
_ABORTED = "Terminating process because the JAX distributed service detected fatal errors"
SECONDS = 3600.0  # on a machine that is busy otherwise
# The kernel ends it with its parent (PR_SET_PDEATHSIG).
_TIE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
_TIED = [sys.executable, "-I", "-S", "-c", _TIE] if sys.platform == "linux" else []


@functools.cache
def _data() -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="drill_data_"))
    small_run.images(folder, 96, 12)
    return folder


def command(workdir: pathlib.Path, *more: str) -> list[str]:
    """A short run on a few drawn pictures."""
    settings = [f"--config.{key}={value}" for key, value in (CONFIG | {"data.data_dir": _data()}).items()]
    start = [sys.executable, "-m", "hap2s_jax.main", "--config=folder:tiny,scratch", f"--workdir={workdir}"]
    return [*start, *settings, *more]


def started(arguments: list[str], errors: pathlib.Path) -> subprocess.Popen[bytes]:
    """A command that does not outlive this process, its standard error in a file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with errors.open("ab") as file:
        return subprocess.Popen(
            [*_TIED, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=file
        )


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """What a run leaves that must be the same: its log, its figures but for the times, and its last weights."""
    import hap2s_jax

    results = json.loads((workdir / "results.json").read_text())
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = {"weights": hap2s_jax.load(workdir, checkpoint=STEPS).fingerprint, "lines of the log": len(log)}
    # SIGTERM cuts a window of averages; each line here is of one step.
    for name, figures in (("test", results["test"]), *((f"step {line['step']}", line) for line in log)):
        found |= {f"{name}, {key}": value for key, value in figures.items() if not _is_of_time(key)}
    return found


def _is_of_time(key: str) -> bool:
    return "second" in key or "wait" in key


def run(workdir: pathlib.Path, processes: int) -> list[subprocess.Popen[bytes]]:
    """The processes of a run that starts or goes on; their standard error goes to `err` beside it."""
    more: list[list[str]] = [[]]
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        joining = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", "--peer_timeout=20"]
        more = [[*joining, f"--process_id={n}"] for n in range(processes)]
    return [started(command(workdir, *flags), workdir.with_name("err")) for flags in more]


@functools.cache
def undisturbed(processes: int) -> tuple[dict[str, Any], float]:
    """The outcome of a run that nobody kills, and the seconds that it takes once its programs have been compiled."""
    seconds, outcomes = 0.0, []
    for _ in range(2):
        workdir = pathlib.Path(tempfile.mkdtemp(prefix="drill_whole_")) / "run"
        began = time.monotonic()
        _finish(workdir, processes)
        seconds = time.monotonic() - began
        outcomes.append(outcome(workdir))
        shutil.rmtree(workdir.parent)
    _same(*outcomes)
    return outcomes[0], seconds


def _finish(workdir: pathlib.Path, processes: int) -> None:
    codes = [75]
    # "Run it again": a machine that stands still makes a cluster fall apart.
    while 75 in codes and {*codes} <= {0, 75}:
        codes = [process.wait(SECONDS) for process in run(workdir, processes)]
    if any(codes):
        raise WrongError(f"ended with {codes}: {workdir.with_name('err').read_text()[-2000:]}")


def _same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    differing = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
    if differing:
        key = differing[0]
        said = f"{key} is {found.get(key)} instead of {expected.get(key)}"
        raise WrongError(f"{said}, and {len(differing) - 1} more differ")


def strike(process: subprocess.Popen[bytes], name: str, random: np.random.Generator) -> None:
    """Sends the signal; after SIGSTOP lets the process go on."""
    process.send_signal(getattr(signal, name))
    if name == "SIGSTOP":
        time.sleep(float(random.uniform(0.1, 3)))
        process.send_signal(signal.SIGCONT)


def _no_traceback(errors: pathlib.Path) -> None:
    """Raises if Python or a library ended with a stack trace, but for JAX where process 0 died (docs/pods.md: 134)."""
    text = errors.read_text(errors="replace")
    if "Traceback" in text or text.count(_STACK) > text.count(_ABORTED):
        raise WrongError(text[-3000:])


def training(folder: pathlib.Path, name: str, random: np.random.Generator, processes: int = 1) -> str:
    """One run, killed one to three times, until it is done. Of several processes only one is killed: all end."""
    expected, seconds = undisturbed(processes)
    workdir, strikes = folder / "run", 0
    for _ in range(int(random.integers(1, 4))):
        alive = run(workdir, processes)
        struck = alive[int(random.integers(processes))]
        try:
            struck.wait(float(random.uniform(0.1, 1)) * seconds)
        except subprocess.TimeoutExpired:
            strike(struck, name, random)
            strikes += 1
        for process in alive:
            process.wait(SECONDS)
    _finish(workdir, processes)
    _no_traceback(workdir.with_name("err"))
    _same(outcome(workdir), expected)
    return f"{strikes} signals"


def embedding(folder: pathlib.Path, name: str, random: np.random.Generator) -> str:
    """embed, killed once, then run again."""
    pictures, output, errors = folder / "pictures", folder / "x.npz", folder / "err"
    small_run.images(pictures, 300)
    embed = [sys.executable, "-m", "hap2s_jax.embed", f"--workdir={small_run.workdir()}", "--batch_size=8"]

    def into(place: pathlib.Path) -> subprocess.Popen[bytes]:
        return started([*embed, f"--images={pictures}", f"--output={place}"], errors)

    def to_its_end(place: pathlib.Path) -> float:
        began = time.monotonic()
        if code := into(place).wait(SECONDS):
            raise WrongError(f"ended with {code}: {errors.read_text()[-2000:]}")
        return time.monotonic() - began

    seconds, strikes = to_its_end(folder / "whole.npz"), 0
    process = into(output)
    try:
        process.wait(float(random.uniform(0.1, 1)) * seconds)
    except subprocess.TimeoutExpired:
        strike(process, name, random)
        strikes = 1
        process.wait(SECONDS)
    to_its_end(output)
    _no_traceback(errors)
    with np.load(output) as ours, np.load(folder / "whole.npz") as whole:
        if not all(np.array_equal(ours[key], whole[key]) for key in whole.files if key != "model"):
            raise WrongError("other embeddings than those made at one go")
    return f"{strikes} signals"


WORK = (
    ("training", training),
    ("embedding", embedding),
    ("training", training),
    ("cluster", functools.partial(training, processes=2)),
)


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Without end: every signal in every command."""
    number = 0
    while True:
        for name in SIGNALS:
            for what, work in WORK:
                number += 1
                place = folder / str(number)
                place.mkdir()
                random = np.random.default_rng((seed, number))
                arguments = place, name, random
                yield Trial(f"{name}, {what}", lambda w=work, a=arguments: w(*a), seconds=3 * SECONDS)
                shutil.rmtree(place, ignore_errors=True)
