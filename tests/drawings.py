"""A folder of classes that a tiny encoder can tell apart."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noisy(root):
    """Draws twenty classes of six noisy drawings into `root`, a folder to be; returns it."""
    rng = np.random.default_rng(0)
    for label in range(20):
        (root / f"class{label:02}").mkdir(parents=True)
        drawing = rng.integers(0, 256, (8, 8, 3))
        for number in range(6):
            noisy = np.clip(drawing + rng.normal(0, 40, drawing.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).resize((40, 40)).save(root / f"class{label:02}" / f"{number}.png")
    return root
