"""Bicubic interpolation as torch has it, which published position embeddings are resized by."""

from __future__ import annotations

import functools

import numpy as np


@functools.cache
def resize_matrix(before: int, after: int, antialias: bool) -> np.ndarray:
    """Bicubic interpolation of `before` values to `after` `[after, before]`, by torch's rule: Keys' kernel with
    a = -0.75, or with a = -0.5 over a support that grows with the ratio where it is filtered against aliasing.
    """
    ratio = before / after
    stretch = max(ratio, 1.0) if antialias else 1.0
    a = -0.5 if antialias else -0.75
    centres = (np.arange(after) + 0.5) * ratio - 0.5
    reach = int(np.ceil(2 * stretch))
    matrix = np.zeros((after, before))
    for row, centre in enumerate(centres):
        taps = np.arange(int(np.floor(centre)) - reach, int(np.floor(centre)) + reach + 2)
        if antialias:  # beyond the border nothing counts
            taps = taps[(taps >= 0) & (taps < before)]
        weights = _keys((taps - centre) / stretch, a)
        # Without, the border's value goes on beyond it.
        np.add.at(matrix[row], np.clip(taps, 0, before - 1), weights / weights.sum())
    return matrix.astype(np.float32)


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
