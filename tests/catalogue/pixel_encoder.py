"""Drawings of individuals, and an encoder that needs no training: the pixels themselves."""

from __future__ import annotations

import hashlib
import itertools
import pathlib

import numpy as np
from PIL import Image

from hap2s_jax.data import pixels
from hap2s_jax.serving.trained import Embedded


class PixelEncoder:
    """Stands in for a `TrainedEncoder`: 8 x 8 pixels, turned by `seed`."""

    dim, distance, step, average, image_size = 192, "euclidean", 7, False, (8, 8)

    def __init__(self, workdir, seed=0):
        self.workdir = pathlib.Path(workdir)
        self.fingerprint = hashlib.sha256(str(seed).encode()).hexdigest()[:16]
        turns = np.random.default_rng(seed).normal(size=(self.dim, self.dim))
        self._turn = np.linalg.qr(turns)[0].astype(np.float32)
        self.read = 0

    def describe(self):
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "average": self.average,
            "distance": self.distance,
            "image_size": [8, 8],
            "workdir": str(self.workdir),
        }

    def preprocess(self, image, *, box=None):
        data = image if isinstance(image, bytes) else pathlib.Path(image).read_bytes()
        return pixels.for_evaluation(data, self.image_size, box=box)

    def stream(self, images, *, batch_size=None, workers=None, read=None):
        images = iter(images)
        while chunk := list(itertools.islice(images, batch_size or 16)):
            rows, failures = np.zeros((len(chunk), self.dim), np.float32), []
            for n, image in enumerate(chunk):
                try:
                    self.read += 1
                    rows[n] = (read or self.preprocess)(image).reshape(-1) / 255 @ self._turn
                    failures.append(None)
                except (OSError, pixels.UnreadableImageError) as error:
                    failures.append(error)
            yield Embedded(rows, failures)

    def __call__(self, images, *, batch_size=None):
        return np.concatenate([batch.embeddings for batch in self.stream(images)])


def draw(path, individual, view, noise=12):
    """A picture of an individual: its own 8 x 8 blocks, and a little noise of this view."""
    rng = np.random.default_rng(individual)
    blocks = rng.integers(20, 236, (8, 8, 3))
    seen = blocks + np.random.default_rng([individual, view]).integers(-noise, noise + 1, blocks.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(seen.astype(np.uint8).repeat(4, 0).repeat(4, 1)).save(path)
    return path
