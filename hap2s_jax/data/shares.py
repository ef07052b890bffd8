"""Boxes as shares of their images, as MegaDetector and YOLO write them, in the integers that boxes in pixels have.

The image's size is known only once it is read, so a share s is kept until then, as -1 - round(s * 2**30). A box in
pixels whose right and bottom sides lie below 0 would be outside its image, so the two are never confused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ONE = 2**30


def encode(corners: np.ndarray) -> np.ndarray:
    """int32 boxes `[..., 4]` of shares between 0 and 1: left, top, right, bottom."""
    return (-1 - np.round(corners * _ONE)).astype(np.int32)


def decode(box: np.ndarray) -> list[float] | None:
    """Left, top, right and bottom of a box `[4]` as shares; None for one in pixels, or a whole image."""
    return ((-1.0 - box.astype(float)) / _ONE).tolist() if box[2] < 0 and box[3] < 0 else None


def in_pixels(box: np.ndarray, height: int, width: int) -> Sequence[int]:
    """Left, top, right and bottom of a box `[4]` in an image, in pixels."""
    shares = decode(box)
    if shares is None:
        return [int(side) for side in box]
    return [round(share * side) for share, side in zip(shares, (width, height) * 2, strict=True)]
