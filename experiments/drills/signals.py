"""SIGINT and SIGTERM at random moments of every command: one line, the right exit code, within two seconds.

And to its end: silent on standard error but for its own words. Either way nothing is left in the temporary folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from drill import Trial, WrongError

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 3600.0  # of the longest trial, which prepares the others
_ENDS, _SAVES = 2.0, 120.0  # seconds in which a command ends; training first saves a checkpoint


class Command(NamedTuple):
    """A command line, and how it begins: what must not be there yet is removed before."""

    name: str
    arguments: tuple[str, ...]
    makes: str = ""


def commands(folder: pathlib.Path) -> list[Command]:
    """All commands, on a run, images and a gallery in `folder`."""
    run, gallery, photos = (str(folder / name) for name in ("run", "gallery.npz", "photos"))
    tiny = ("--config=emoji:tiny", "--config.log.tensorboard=false", "--config.num_devices=1")
    return [
        Command("main", (*tiny, f"--workdir={folder / 'new'}", "--config.steps=200"), "new"),
        Command("evaluate", (f"--workdir={run}", "--rerank", "--confidence=0.95")),
        Command("evaluate", (f"--embeddings={gallery}", "--confidence=0.95")),
        Command("embed", (f"--workdir={run}", f"--images={photos}", f"--output={folder / 'x.npz'}"), "x.npz"),
        Command("search", (f"--gallery={gallery}", "--query", photos)),
        Command("search", (f"--workdir={run}", "--calibrate")),
        Command("export", (f"--workdir={run}", f"--output={folder / 'exported'}"), "exported"),
        Command(
            "convert", (str(folder / "resnet.safetensors"), str(folder / "x.safetensors")), "x.safetensors"
        ),
        Command("gallery", ("create", str(folder / "store"), f"--workdir={run}"), "store"),
        Command("gallery", ("add", str(folder / "kept"), f"--images={photos}")),
        Command("pack", ("--name=folder", f"--data_dir={photos}", f"--output={folder / 'packed'}"), "packed"),
        Command(
            "check_data",
            ("--name=folder", f"--data_dir={photos}", f"--sheet={folder / 'sheet.png'}"),
            "sheet.png",
        ),
        Command("demo", (f"--gallery={gallery}",)),
        Command("rehearse", ("--config=emoji:tiny", "--topology=v5e:2x2", "--no_largest")),
    ]


def prepare(folder: pathlib.Path) -> None:
    """A run of two steps, a folder of images and their gallery."""
    from safetensors.numpy import save_file

    from hap2s_jax.data import emoji

    test = emoji.load().test
    for index in range(0, len(test), max(1, len(test) // 60)):
        path = folder / "photos" / str(test.labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(test.read(index))
    main, *_ = commands(folder)
    run, photos = f"--workdir={folder / 'run'}", f"--images={folder / 'photos'}"
    lines = {
        "main": (*main.arguments[:-2], run, "--config.steps=2"),
        "embed": (run, photos, f"--output={folder / 'gallery.npz'}"),
        "gallery": ("create", str(folder / "kept"), run),
    }
    for name, arguments in lines.items():
        subprocess.run(_line(name, arguments), cwd=ROOT, check=True, capture_output=True, timeout=SECONDS)
    names = ("conv1.weight", "layer1.0.conv1.weight")
    save_file({name: np.ones((8, 8, 3, 3), np.float32) for name in names}, folder / "resnet.safetensors")


def _line(name: str, arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", f"hap2s_jax.{name}", *arguments]


@contextlib.contextmanager
def started(command: Command, folder: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """A command, with a temporary folder of its own.

    Raises:
      WrongError: at the end something is left there.
    """
    if command.makes:
        shutil.rmtree(folder / command.makes, ignore_errors=True)
        (folder / command.makes).unlink(missing_ok=True)
    temporary = folder / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with subprocess.Popen(
        _line(command.name, command.arguments),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
    if left := [path.name for path in temporary.rglob("*")]:
        raise WrongError(f"{command} leaves in the temporary folder: {left}")


def whole(command: Command, folder: pathlib.Path) -> None:
    """A command to its end.

    Raises:
      WrongError: it fails, or a library talks.
    """
    with started(command, folder) as process:
        _, errors = process.communicate()
    if process.returncode or re.search(
        "^(WARNING: All log|[IW][01][0-9]{3} )|absl|Warning:", errors, re.MULTILINE
    ):
        raise WrongError(f"{command}: {process.returncode}\n{errors}")


def interrupted(command: Command, number: int, after: float, folder: pathlib.Path) -> None:
    """Starts a command, sends the signal `after` seconds, and looks at how it ends.

    Raises:
      AssertionError: otherwise than with one line, its code and in time.
    """
    with started(command, folder) as process:
        try:
            _, errors = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            is_training = command.name == "main"
            try:
                errors, took = _end(process, _SAVES if is_training else 20 * _ENDS)
            finally:
                process.kill()
        else:  # it was quicker
            assert process.returncode == 0, f"{process.returncode}: {errors}"
            return
    saved = (folder / command.makes / "checkpoints").is_dir() if command.name == "main" else False
    codes = {0, 130} if number == signal.SIGINT else {0, 143} | ({75} if saved else set())
    # What training says of the state that it saved is no error.
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    lines = lines or [errors] * (is_training and errors != "")
    told = f"{command}, signal {number} after {after:.2f} s: code {process.returncode} after {took:.1f} s\n{errors}"
    assert process.returncode in codes, told
    assert process.returncode == 0 or len(lines) == 1, told
    assert "Traceback" not in errors, told
    assert is_training or took < _ENDS + _slack(), told


def _end(process: subprocess.Popen[str], seconds: float) -> tuple[str, float]:
    """What a process says on standard error until it ends, and the seconds that takes, without those in which this
    process too stood still.
    """
    for tick in range(int(seconds / 0.1)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=0.1)[1], 0.1 * tick
    raise WrongError(f"{process.args} has not ended after {seconds:g} s")


def _slack() -> float:
    """Seconds more, as many as this machine has runnable processes for each core."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Each command to its end; then without end each in turn, either signal, at a moment between its first second and
    its twentieth.
    """
    yield Trial("start", lambda: prepare(folder), is_warm_up=True, seconds=SECONDS)
    for command in commands(folder):
        if command.name != "demo":  # which has none
            yield Trial(f"{command.name} whole", functools.partial(whole, command, folder), seconds=SECONDS)
    random = np.random.default_rng(seed)
    while True:
        for command in commands(folder):
            number = signal.SIGINT if random.integers(2) else signal.SIGTERM
            after = float(20 ** random.random())  # before, a busy machine is still starting Python
            kind = f"{command.name} {signal.Signals(number).name}"
            run = functools.partial(interrupted, command, number, after, folder)
            yield Trial(kind, run, seconds=SECONDS)
