"""AutoAugment's policy for ImageNet, stateless, in OpenCV (Cubuk et al., "AutoAugment", CVPR 2019, table 9).

A policy is 25 pairs of operations; an image gets one pair, each half with its own probability and strength. Colours as
Pillow defines them, which is what the policy was searched with; rotation and shear are bilinear and about the centre.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

# Draws for one image: the pair, whether each half is done, the sign of each half's strength.
DRAWS = 5

Fill = tuple[int, int, int]
_LEVELS = np.arange(256)
_GREY = np.array([0.299, 0.587, 0.114])

# (operation, probability, strength of 0 to 9), twice
_POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)


def auto_augment(image: np.ndarray, u: np.ndarray, fill: Fill) -> np.ndarray:
    """One pair of the policy's operations on uint8 `[h, w, 3]`; the argument is not changed.

    Args:
      image: uint8 `[h, w, 3]`, red first.
      u: `[DRAWS]` numbers in [0, 1).
      fill: red, green, blue of what rotation and shear bring in from outside.
    """
    pair = _POLICY[int(u[0] * len(_POLICY))]
    for (name, probability, strength), does, sign in zip(pair, u[1:3], u[3:5], strict=True):
        if does < probability:
            image = OPERATIONS[name](image, strength / 9 * (1 if sign < 0.5 else -1), fill)
    return image


def _looked_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Looks each value up in `table` `[256]`, or `[256, 3]` with one column per channel."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(image, np.ascontiguousarray(table if table.ndim == 1 else table[None]))


def posterize(image: np.ndarray, strength: float, fill: Fill) -> np.ndarray:
    """Keeps the 8 to 4 upper bits."""
    dropped = round(4 * abs(strength))
    return _looked_up(image, _LEVELS >> dropped << dropped)


def solarize(image: np.ndarray, strength: float, fill: Fill) -> np.ndarray:
    """Inverts values from a limit of 256 down to 0 on."""
    return _looked_up(image, np.where(256 * (1 - abs(strength)) <= _LEVELS, 255 - _LEVELS, _LEVELS))


def invert(image: np.ndarray, strength: float, fill: Fill) -> np.ndarray:
    """The negative."""
    return cv2.bitwise_not(image)


def autocontrast(image: np.ndarray, strength: float, fill: Fill) -> np.ndarray:
    """Stretches each channel to 0 ... 255."""
    low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    low = np.where(high > low, low, 0)
    return _looked_up(image, np.floor((_LEVELS[:, None] - low) * scale + 1e-9))


def equalize(image: np.ndarray, strength: float, fill: Fill) -> np.ndarray:
    """Makes each channel's histogram flat."""
    tables = []
    for channel in np.moveaxis(image, -1, 0):
        counts = np.bincount(channel.ravel(), minlength=256)
        step = (channel.size - counts[channel.max()]) // 255
        below = np.cumsum(counts) - counts
        tables.append((below + step // 2) // step if step else _LEVELS)
    return _looked_up(image, np.stack(tables, axis=1))


def color(image: np.ndarray, strength: float, fill: Fill) -> np.ndarray:
    """Saturation times 0.1 to 1.9."""
    factor = 1 + 0.9 * strength
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * _GREY[None])


def contrast(image: np.ndarray, strength: float, fill: Fill) -> np.ndarray:
    """Distance from the mean grey times 0.1 to 1.9."""
    factor = 1 + 0.9 * strength
    mean = math.floor(float(image.mean((0, 1)) @ _GREY) + 0.5)
    return _looked_up(image, np.rint(factor * _LEVELS + (1 - factor) * mean))


def sharpness(image: np.ndarray, strength: float, fill: Fill) -> np.ndarray:
    """Distance from a smoothed image times 0.1 to 1.9; the margin of one pixel stays."""
    kernel = np.ones((3, 3))
    kernel[1, 1] = 5
    factor = 1 + 0.9 * strength
    smooth = cv2.filter2D(image, -1, kernel / kernel.sum())
    result = cv2.addWeighted(image, factor, smooth, 1 - factor, 0)
    result[[0, -1]], result[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return result


def rotate(image: np.ndarray, strength: float, fill: Fill) -> np.ndarray:
    """By up to 30 degrees."""
    angle = math.radians(30 * strength)
    return _mapped(
        image, np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]), fill
    )


def shear(image: np.ndarray, strength: float, fill: Fill) -> np.ndarray:
    """Rows shift by up to 0.3 of their distance from the middle."""
    return _mapped(image, np.array([[1, 0.3 * strength], [0, 1]]), fill)


def _mapped(image: np.ndarray, matrix: np.ndarray, fill: Fill) -> np.ndarray:
    height, width = image.shape[:2]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    return cv2.warpAffine(
        image,
        np.concatenate([matrix, (centre - matrix @ centre)[:, None]], axis=1),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=tuple(float(v) for v in fill),
    )


OPERATIONS: dict[str, Callable[[np.ndarray, float, Fill], np.ndarray]] = {
    "posterize": posterize,
    "solarize": solarize,
    "invert": invert,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "rotate": rotate,
    "shear": shear,
}
