"""Raw pixels as embeddings: the figure that every encoder has to beat."""

from __future__ import annotations

from typing import Any

import numpy as np

from hap2s_jax.data.pixels import resize

NAME = "raw pixels"
# Longest side; larger images are shrunk to it.
SIDE = 64
# Multiplications in the distances of all pairs: a few seconds on two cores.
_AFFORDABLE = 5e10


def size_of(image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in which pixels are compared."""
    scale = min(1.0, SIDE / max(image_size))
    return max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))


def is_affordable(images: int, image_size: tuple[int, int]) -> bool:
    """Whether comparing these images takes only a few seconds."""
    return images**2 * 3 * int(np.prod(size_of(image_size))) <= _AFFORDABLE


def embed(variables: None, images: Any) -> np.ndarray:  # NumPy's or JAX's
    """The pixels of uint8 images `[n, h, w, 3]`, 0 to 1, as an encoder without variables."""
    size = size_of(images.shape[1:3])
    pixels = np.stack([resize(image, size).reshape(-1) for image in np.asarray(images)])
    return pixels / np.float32(255)
