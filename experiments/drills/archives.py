"""Zip archives with traversal, links, bombs, lies and a great many entries, in the place of a gallery or of weights.

The only archives that are read are these two kinds, and the package's own pictures; none is ever extracted.
"""

from __future__ import annotations

import io
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np
from drill import Trial

from drills.files import HAS_TORCH, _honest_arrays, _npy, changed_bytes
from hap2s_jax.evaluation.archive import from_npz
from hap2s_jax.models import weight_files
from hap2s_jax.serving import vectors

NAMES = (
    "../../evil.npy",
    "/evil.npy",
    "C:\\evil.npy",
    "embeddings.npy",
    "a/" * 2000 + "x",
    "\x1b[2J.npy",
    "archive/data.pkl",
)


def made(random: np.random.Generator, kind: str) -> bytes:
    """An archive with something wrong in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in _honest_arrays(random).items():
            archive.writestr(f"{name}.npy", _npy(array))
        if kind == "traversal":
            archive.writestr(str(random.choice(NAMES)), random.bytes(30))
        elif kind == "link":
            info = zipfile.ZipInfo("labels.npy" if random.integers(0, 2) else "link")
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
        elif kind == "bomb":
            name = str(random.choice(["paths.npy", "data.pkl", "archive/data/0"]))
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(int(random.integers(100, 400))):
                    member.write(bytes(2**20))
        elif kind == "entries":
            for number in range(int(random.integers(20_000, 60_000))):
                archive.writestr(zipfile.ZipInfo(str(number)), b"")
        elif kind == "within":
            inner = made(random, "bomb")
            archive.writestr("model.npy", inner)
    data = file.getvalue()
    return changed_bytes(data, random) if random.integers(0, 3) == 0 else data


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Without end, one kind after the other."""

    def weights(path: pathlib.Path) -> None:
        weight_files.check(weight_files.read_tensors(path), str(path))

    readers = [("x.npz", vectors.read), ("x.npz", lambda path: from_npz(str(path)))]
    if HAS_TORCH:
        import torch  # noqa: F401  (its import is no part of a trial)

        readers.append(("x.pth", weights))
    number = 0
    while True:
        for kind in ("honest", "traversal", "link", "bomb", "entries", "within"):
            number += 1
            data = made(np.random.default_rng((seed, number)), kind)
            for name, read in readers:
                path = folder / name
                path.write_bytes(data)
                yield Trial(
                    kind, lambda r=read, p=path: r(p), folder, is_warm_up=kind == "honest" and number < 9
                )
