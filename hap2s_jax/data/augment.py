"""Random changes to training images, each a pure function of numbers drawn beforehand.

Geometry and colour run in OpenCV on one image at a time: a warp of 64x64 pixels takes a third of the time of
TensorFlow's, and the result for an image cannot depend on which batch, host or thread it was made in.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Annotated

import cv2
import numpy as np

from hap2s_jax.data import auto_augment
from hap2s_jax.data.pixels import centre_part, fit, resize
from hap2s_jax.settings import Rule, Settings, between, one_of

CROPS = ("none", "pad", "random", "resized")
# Colours outside the image and under an erased patch: the ImageNet mean, which the encoders turn into zero.
IMAGENET_MEAN = (124, 116, 104)


class _Draw(enum.IntEnum):
    """The use of each random number of an image; fixed, so that switching one change on leaves the others alone."""

    AREA = 0
    RATIO = 1
    TOP = 2
    LEFT = 3
    FLIP = 4
    SCALE = 5
    SHIFT_Y = 6
    SHIFT_X = 7
    ROTATE = 8
    BRIGHTNESS = 9
    CONTRAST = 10
    ERASE = 11
    ERASE_AREA = 12
    ERASE_RATIO = 13
    ERASE_TOP = 14
    ERASE_LEFT = 15
    COLOR = 16  # and the eight after it
    AUTO = 25
    AUTO_POLICY = 26  # and the four after it


DRAWS = 31


Pair = tuple[float, float]
Color = tuple[int, int, int]
_SHARE = between(0, 1)
_COLOR = Rule(lambda color: all(0 <= value <= 255 for value in color), "red, green and blue of 0 to 255")


def _within(high: float = math.inf) -> Rule:
    words = "(smallest, largest) above 0" + ("" if math.isinf(high) else f" and up to {high:g}")
    return Rule(lambda pair: 0 < pair[0] <= pair[1] <= high, words)


@dataclasses.dataclass(frozen=True)
class Augmentation(Settings):
    """Possible random changes to a training image. The defaults change nothing but the size.

    Raises:
      UserError: a value is out of range; the message names the field.
    """

    section = "augment"
    crop: Annotated[
        str,
        'Which part of the image is resized to the encoder\'s size. "none": all of it. "pad": all, then shifted by up '
        'to `pad` pixels. "random": a part 1 / `enlarge` as high and as wide, anywhere (the usual "resize to 256, crop '
        '224" is enlarge = 256 / 224 with `keep_aspect`). "resized": a part of random area and aspect ratio (Szegedy '
        "et al. 2015).",
        one_of(*CROPS),
    ] = "none"
    keep_aspect: Annotated[
        bool,
        'Give the part the aspect ratio of the encoder\'s input ("none", "pad", "random"): nothing is squeezed, but'
        " margins are lost.",
    ] = False
    enlarge: Annotated[float, 'See crop, "random".', between(1, 16)] = 1.0
    pad: Annotated[int, 'Largest shift of "pad", pixels of the encoder\'s input.', between(0, 180)] = 10
    crop_area: Annotated[Pair, 'Smallest and largest share of the image\'s area ("resized").', _within(1)] = (
        0.16,
        1.0,
    )
    crop_ratio: Annotated[
        Pair,
        'Smallest and largest width / height ("resized"), limited to what fits the image.',
        _within(),
    ] = (0.75, 1.3333)
    flip: Annotated[bool, "Mirror half of the images. Off by default: an arrow is not its mirror image."] = (
        False
    )
    scale: Annotated[Pair, "Smallest and largest zoom factor about the centre.", _within()] = (1.0, 1.0)
    shift: Annotated[float, "Largest shift as a share of the side.", _SHARE] = 0.0
    rotate: Annotated[float, "Largest rotation, degrees.", between(0, 180)] = 0.0
    brightness: Annotated[float, "Largest change, as a share of full scale.", _SHARE] = 0.0
    contrast: Annotated[float, "Largest relative change, about mid-grey.", _SHARE] = 0.0
    color_mix: Annotated[
        float, "Largest change of an entry of the 3x3 matrix that mixes the colour channels.", _SHARE
    ] = 0.0
    auto_augment: Annotated[
        float,
        "Share of the images to which a policy of AutoAugment for ImageNet is applied (Cubuk et al. 2019).",
        _SHARE,
    ] = 0.0
    erase_probability: Annotated[
        float, "Share of the images in which a random rectangle is erased (Zhong et al. 2017).", _SHARE
    ] = 0.0
    erase_area: Annotated[Pair, "Smallest and largest share of the area to erase.", _within(1)] = (
        0.02,
        0.4,
    )
    erase_ratio: Annotated[Pair, "Smallest and largest height / width of the rectangle.", _within()] = (
        0.3,
        3.3333,
    )
    erase_color: Annotated[Color, "Red, green, blue of the erased rectangle.", _COLOR] = IMAGENET_MEAN
    fill: Annotated[
        Color, "Red, green, blue of what shift, scale, rotation or padding show outside the image.", _COLOR
    ] = IMAGENET_MEAN

    def part(
        self, height: int, width: int, size: tuple[int, int], u: np.ndarray
    ) -> tuple[int, int, int, int]:
        """Which part of an image of `height` x `width` to resize to `size`, as (top, left, height, width).

        Args:
          height: of the image, pixels.
          width: of the image, pixels.
          size: (height, width) of the encoder's input.
          u: `[DRAWS]` numbers in [0, 1).
        """
        if self.crop in ("none", "pad"):
            return centre_part(height, width, size, keep_aspect=self.keep_aspect)
        if self.crop == "random":
            part_height, part_width = fit(height, width, size, self.enlarge, self.keep_aspect)
        else:
            area = _between(self.crop_area, u[_Draw.AREA]) * height * width
            ratio = _log_between(self.crop_ratio, u[_Draw.RATIO])
            part_height = min(height, max(1, round(math.sqrt(area / ratio))))
            part_width = min(width, max(1, round(math.sqrt(area * ratio))))
        top = int(u[_Draw.TOP] * (height - part_height + 1))
        left = int(u[_Draw.LEFT] * (width - part_width + 1))
        return top, left, part_height, part_width

    def finish(self, part: np.ndarray, out: np.ndarray, u: np.ndarray) -> None:
        """Resize the part and change it.

        Args:
          part: uint8 `[height, width, 3]`, see `part`.
          out: uint8 `[h, w, 3]`, the encoder's input, contiguous; is written.
          u: `[DRAWS]` numbers in [0, 1).
        """
        # Every step writes into `out` where it can; page faults of new arrays would cost as much as the step.
        image = part
        if part.shape[:2] != out.shape[:2]:
            image = resize(part, (out.shape[0], out.shape[1]), out)
        if self.scale != (1.0, 1.0) or self.shift or self.rotate:
            image = self._warp(image, u)
        else:
            if self.flip and u[_Draw.FLIP] < 0.5:
                image = cv2.flip(image, 1, dst=out)
            if self.crop == "pad":
                image = self._shifted(image, u)
        if self.brightness or self.contrast or self.color_mix:
            image = cv2.transform(image, self._color_matrix(u), dst=out)
        if u[_Draw.AUTO] < self.auto_augment:
            image = auto_augment.auto_augment(image, u[_Draw.AUTO_POLICY :], self.fill)
        if not np.may_share_memory(image, out):
            out[...] = image
        if u[_Draw.ERASE] < self.erase_probability:
            self._erase(out, u)

    def _pad_offsets(self, u: np.ndarray) -> tuple[int, int]:
        if self.crop != "pad":
            return 0, 0
        span = 2 * self.pad + 1
        return int(u[_Draw.TOP] * span) - self.pad, int(u[_Draw.LEFT] * span) - self.pad

    def _shifted(self, image: np.ndarray, u: np.ndarray) -> np.ndarray:
        dy, dx = self._pad_offsets(u)
        height, width = image.shape[:2]
        shifted = np.empty_like(image, order="C")
        shifted[...] = self.fill
        if abs(dy) < height and abs(dx) < width:
            inside = image[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
            top, left = max(0, dy), max(0, dx)
            shifted[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return shifted

    def _warp(self, image: np.ndarray, u: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        pad_y, pad_x = self._pad_offsets(u)
        dy = (2 * u[_Draw.SHIFT_Y] - 1) * self.shift * height + pad_y
        dx = (2 * u[_Draw.SHIFT_X] - 1) * self.shift * width + pad_x
        angle = math.radians((2 * u[_Draw.ROTATE] - 1) * self.rotate)
        zoom = _between(self.scale, u[_Draw.SCALE])
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        mirror = -1.0 if self.flip and u[_Draw.FLIP] < 0.5 else 1.0
        cy, cx = (height - 1) / 2, (width - 1) / 2
        # Maps a pixel of the result to the place in the image that it shows.
        matrix = np.array([[mirror * cos, mirror * sin, cx], [-sin, cos, cy]])
        matrix[:, 2] -= matrix[:, :2] @ [cx + dx, cy + dy]
        return cv2.warpAffine(
            image,
            matrix,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=tuple(float(v) for v in self.fill),
        )

    def _color_matrix(self, u: np.ndarray) -> np.ndarray:
        mixing = np.eye(3) + self.color_mix * (2 * u[_Draw.COLOR : _Draw.COLOR + 9].reshape(3, 3) - 1)
        contrast = 1 + self.contrast * (2 * u[_Draw.CONTRAST] - 1)
        offset = 127.5 * (1 - contrast) + 255 * self.brightness * (2 * u[_Draw.BRIGHTNESS] - 1)
        return np.concatenate([contrast * mixing, np.full((3, 1), offset)], axis=1)

    def _erase(self, out: np.ndarray, u: np.ndarray) -> None:
        height, width = out.shape[:2]
        area = _between(self.erase_area, u[_Draw.ERASE_AREA]) * height * width
        ratio = _log_between(self.erase_ratio, u[_Draw.ERASE_RATIO])
        erased_height = min(height, max(1, round(math.sqrt(area * ratio))))
        erased_width = min(width, max(1, round(math.sqrt(area / ratio))))
        top = int(u[_Draw.ERASE_TOP] * (height - erased_height + 1))
        left = int(u[_Draw.ERASE_LEFT] * (width - erased_width + 1))
        corner = (left + erased_width - 1, top + erased_height - 1)
        cv2.rectangle(out, (left, top), corner, tuple(float(v) for v in self.erase_color), cv2.FILLED)


@dataclasses.dataclass(frozen=True)
class Centre:
    """The view of an image in evaluation, used like an `Augmentation`."""

    enlarge: float
    keep_aspect: bool

    def part(
        self, height: int, width: int, size: tuple[int, int], u: np.ndarray
    ) -> tuple[int, int, int, int]:
        """As `Augmentation.part`, without a draw."""
        return centre_part(height, width, size, enlarge=self.enlarge, keep_aspect=self.keep_aspect)

    def finish(self, part: np.ndarray, out: np.ndarray, u: np.ndarray) -> None:
        """As `Augmentation.finish`, without a change."""
        out[...] = resize(part, (out.shape[0], out.shape[1]))


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(u)


def _log_between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] * (bounds[1] / bounds[0]) ** float(u)
