"""kill -9 in the middle of what writes a gallery's store: nothing that was confirmed is lost, nothing is half there,
and the next command goes on.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from drill import Trial

from hap2s_jax.catalogue import adding, moving
from hap2s_jax.catalogue.store import Store
from hap2s_jax.data.opencv import opencv
from hap2s_jax.serving.trained import Embedded

KINDS = ("add", "relabel", "re_embed", "undo")
_IMAGES, _ENROLLED, _AT_ONCE, _TOGETHER = 60, 30, 4, 3
_LONGEST = 0.4  # seconds until the kill


class Encoder:
    """The first pixels of an image, times `scale`; enough for what is tried here."""

    dim, distance, step, average, image_size = 12, "euclidean", 1, False, (2, 2)
    workdir = pathlib.Path("/none")

    def __init__(self, scale: int):
        self.scale, self.fingerprint = scale, f"{scale:016x}"

    def describe(self) -> dict[str, Any]:
        """As `TrainedEncoder.describe`."""
        return {"fingerprint": self.fingerprint, "distance": self.distance, "step": 1, "workdir": "/none"}

    def preprocess(self, image: pathlib.Path, *, box: Any = None) -> np.ndarray:
        """As `TrainedEncoder.preprocess`."""
        return opencv().imread(str(image))[:2, :2]

    def stream(self, images: Any, *, batch_size: Any = None, read: Any = None) -> Iterator[Embedded]:
        """As `TrainedEncoder.stream`."""
        for image in images:
            vector = (read or self.preprocess)(image).reshape(1, -1).astype(np.float32) * self.scale
            yield Embedded(vector, [None])


def write(kind: str, folder: str, images: str) -> None:
    """What is killed: prints when it is ready, and every decision that is confirmed."""
    store = Store(folder)
    print("ready 0", flush=True)
    if kind == "add":
        print("done", _add(store, pathlib.Path(images)), flush=True)
    elif kind == "re_embed":
        print("done", _re_embed(store), flush=True)
    for turn in itertools.count() if kind in ("relabel", "undo") else ():
        chosen = store.ids[turn % 20 : turn % 20 + _TOGETHER].tolist()
        print("decided", store.relabel(chosen, f"animal {turn}"), flush=True)
        if kind == "undo":
            print("decided", store.undo()[0], flush=True)


def _add(store: Store, images: pathlib.Path) -> int:
    return adding.add(store, images, Encoder(1), at_once=_AT_ONCE, show_progress=False).new  # type: ignore[arg-type]


def _re_embed(store: Store) -> int:
    return moving.re_embed(store, Encoder(2), at_once=_AT_ONCE, show_progress=False).total  # type: ignore[arg-type]


@contextlib.contextmanager
def _started(kind: str, folder: pathlib.Path, images: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has just begun to write."""
    command = f"from drills.gallery import write; write({kind!r}, {str(folder)!r}, {str(images)!r})"
    here = pathlib.Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, cwd=here
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready 0\n"
            yield process
        finally:
            process.kill()


def _kill(process: subprocess.Popen[str], after: float) -> list[tuple[str, int]]:
    """Kills it after so many seconds; what it has told until then."""
    time.sleep(after)
    process.kill()
    assert process.stdout is not None
    whole = [line.split() for line in process.stdout if line.endswith("\n")]
    return [(what, int(number)) for what, number in whole]


def check(kind: str, folder: pathlib.Path, images: pathlib.Path, told: list[tuple[str, int]]) -> None:
    """Raises AssertionError unless the store is whole, holds what was told, and the same command goes on."""
    store = Store(folder)
    confirmed = {number for what, number in told if what == "decided"}
    rows = collections.Counter(store.log.column("number").to_pylist())
    assert confirmed <= set(rows), f"lost: {sorted(confirmed - set(rows))}"
    assert sorted(rows) == [*range(1, len(rows) + 1)], "decisions are missing"
    assert len(rows) <= len(confirmed) + 1, "more than one decision that nobody was told of"
    assert set(rows.values()) <= {_TOGETHER}, "a decision is half there"
    assert len(set(store.ids.tolist())) == len(store.ids)
    if kind == "re_embed":
        assert not told or store.encoder["fingerprint"] == Encoder(2).fingerprint
        if store.encoder["fingerprint"] == Encoder(1).fingerprint:
            assert _re_embed(store) == _ENROLLED
        assert store.encoder["fingerprint"] == Encoder(2).fingerprint
    elif kind == "add":
        _add(store, images)
        assert len(Store(folder).ids) == _IMAGES
    else:
        number = store.relabel(store.ids[:_TOGETHER].tolist(), "the next command")
        assert number == len(rows) + 1
        assert store.undo() == (number + 1, 0)


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Kills at random moments, turn by turn of each kind."""
    random = np.random.default_rng(seed)
    images, base = folder / "images", folder / "base"
    images.mkdir()
    for n in range(_IMAGES):
        opencv().imwrite(str(images / f"{n:02d}.png"), random.integers(0, 256, (4, 4, 3)).astype(np.uint8))
    (folder / "some.csv").write_text("path\n" + "".join(f"images/{n:02d}.png\n" for n in range(_ENROLLED)))
    store = Store.create(base, Encoder(1))  # type: ignore[arg-type]
    adding.add(store, folder / "some.csv", Encoder(1), show_progress=False)  # type: ignore[arg-type]
    yield Trial("honest", lambda: Store(base), is_warm_up=True)
    for number in itertools.count():
        for kind in KINDS:
            copy, after = folder / f"{kind} {number}", float(random.uniform(0, _LONGEST))
            shutil.copytree(base, copy)
            # Begun outside of the trial, whose time is limited.
            with _started(kind, copy, images) as process:

                def run(
                    kind: str = kind,
                    copy: pathlib.Path = copy,
                    after: float = after,
                    process: subprocess.Popen[str] = process,
                ) -> None:
                    check(kind, copy, images, _kill(process, after))

                yield Trial(kind, run)
            shutil.rmtree(copy)
