"""A disk that is full, read-only or gone while checkpoints, embeddings and files are written.

Full is a small tmpfs where the user may mount one, and elsewhere a limit on the size of files; read-only is that tmpfs
mounted anew, or a folder's rights; gone is a folder that is moved away.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import pathlib
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator

import numpy as np
from drill import Trial, WrongError

from drills import small_run


@contextlib.contextmanager
def disk(folder: pathlib.Path, megabytes: int) -> Iterator[pathlib.Path]:
    """A small disk of its own below `folder`, or the folder with a limit on the size of files."""
    place = pathlib.Path(tempfile.mkdtemp(prefix="disk_", dir=folder))
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes * 2**18, before[1]))
    try:
        yield place
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=False)
        shutil.rmtree(place, ignore_errors=True)


def keep_mounts_to_ourselves() -> None:
    """What is mounted from here on ends with this process, however that ends; nothing happens without the right to."""
    if ctypes.CDLL(None).unshare(0x20000) == 0:  # CLONE_NEWNS
        subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True)


def make_read_only(place: pathlib.Path) -> None:
    """Mounts it anew, or takes the rights away."""
    done = subprocess.run(["mount", "-o", "remount,ro", str(place)], check=False, capture_output=True)
    if done.returncode:
        for path in [place, *place.rglob("*")]:
            if path.is_dir():
                path.chmod(0o500)


def broken(place: pathlib.Path, fault: str, random: np.random.Generator) -> None:
    """Brings the fault about."""
    if fault == "full":
        with contextlib.suppress(OSError), (place / "ballast").open("wb", 0) as file:
            while True:
                file.write(bytes(2 ** int(random.integers(8, 14))))
    elif fault == "read-only":
        make_read_only(place)
    else:
        (place / "gone").mkdir()
        for path in list(place.iterdir()):
            if path.name != "gone":
                path.rename(place / "gone" / path.name)


def mended(place: pathlib.Path, fault: str) -> None:
    """Takes it away again, but for what is read-only."""
    if fault == "full":
        (place / "ballast").unlink(missing_ok=True)
    elif fault == "gone":
        for path in (place / "gone").iterdir():
            shutil.rmtree(place / path.name, ignore_errors=True)
            path.rename(place / path.name)


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Without end: every fault with every writer. What was whole before must be whole afterwards."""
    from hap2s_jax import embed
    from hap2s_jax.reporting.metric_log import MetricLog
    from hap2s_jax.run.learner import Learner
    from hap2s_jax.training.checkpoint import Checkpointer

    keep_mounts_to_ourselves()
    encoder, learner = small_run.encoder(), Learner.create(small_run.settings())
    state = learner.initial_state(8)
    pictures = folder / "pictures"
    small_run.images(pictures)

    def checkpoint(place: pathlib.Path, fault: str, random: np.random.Generator) -> None:
        checkpointer = Checkpointer(place / "checkpoints")
        checkpointer.save(dataclasses.replace(state, step=np.int32(1)))
        checkpointer._wait()
        broken(place, fault, random)
        try:
            for step in (2, 3):
                checkpointer.save(dataclasses.replace(state, step=np.int32(step)))
            checkpointer.close()
        finally:
            mended(place, fault)
            again = Checkpointer(place / "checkpoints", read_only=True)
            if not again.steps:
                raise WrongError("no checkpoint is left")
            again.restore(state, again.steps[-1])

    def embedding(place: pathlib.Path, fault: str, random: np.random.Generator) -> None:
        broken(place, fault, random)
        embed.embed_images(encoder, pictures, place / "x.npz", show_progress=False, overwrite=True)

    def log(place: pathlib.Path, fault: str, random: np.random.Generator) -> None:
        with MetricLog(place / "log", tensorboard=False) as metrics:
            metrics.write(1, {"loss": 1.0}, part="train")
            broken(place, fault, random)
            for step in range(2, 30_000):
                metrics.write(step, {"loss": 1.0}, part="train")
                if fault != "full":
                    break

    def attempt(writer: object, fault: str, random: np.random.Generator) -> None:
        try:
            with disk(folder, 4) as place:
                writer(place, fault, random)  # type: ignore[operator]
        except OSError as error:  # the writers' own errors are UserErrors
            raise WrongError(f"{type(error).__name__}: {error}") from error

    number = 0
    while True:
        for fault in ("full", "read-only", "gone"):
            for writer in (checkpoint, embedding, log):
                number += 1
                random = np.random.default_rng((seed, number))
                arguments = writer, fault, random
                yield Trial(f"{fault}, {writer.__name__}", lambda a=arguments: attempt(*a), seconds=60.0)
