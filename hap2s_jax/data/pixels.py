"""Encoded images to pixels, and from there to what the encoder sees in evaluation; OpenCV alone, no TensorFlow.

Training, its evaluation and `hap2s_jax.load` all come through here: what an image's pixels are must depend on
nothing but the image.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"

# (height, width) of an image, or of its box -> (top, left, height, width) of the part wanted.
Choose = Callable[[int, int], tuple[int, int, int, int]]


class Window(NamedTuple):
    """A part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class UnreadableImageError(ValueError):
    """The bytes are no image, or only a part of one, or a larger one than is allowed."""


def header_shape(data: bytes) -> tuple[int, int] | None:
    """(height, width) by the header of a JPEG, PNG, GIF, BMP or WebP, nothing decoded; None for other formats.

    Raises:
      UnreadableImageError: the header is damaged or cut off.
    """
    try:
        if data[:3] == _JPEG:
            return _jpeg_shape(data)
        if data[:8] == _PNG:
            width, height = struct.unpack_from(">II", data, 16)
        elif data[:4] == b"GIF8":
            width, height = struct.unpack_from("<HH", data, 6)
        elif data[:2] == b"BM":
            # OS/2's header of 12 bytes has sides of 16 bits.
            width, height = struct.unpack_from("<HH" if data[14:18] == b"\x0c\0\0\0" else "<ii", data, 18)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_shape(data)
        else:
            return None
    except struct.error:
        raise UnreadableImageError("the header is damaged or cut off") from None
    return abs(height), abs(width)  # a BMP's negative height says that its rows begin at the top


def image_shape(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image, from the header alone for the formats of `header_shape`.

    Raises:
      UnreadableImageError: there is no header to read.
    """
    return header_shape(data) or decode_whole(data).shape[:2]


def decode_whole(data: bytes, ratio: int = 1) -> np.ndarray:
    """Decode an image to RGB.

    The format is told by the bytes, never by a file's name. Grey, CMYK, palette and 16-bit images come out
    as 8-bit RGB; transparency is dropped. The orientation that a camera noted in EXIF is not applied.

    Args:
      data: the encoded image: JPEG, PNG, GIF (first frame), BMP, or what else OpenCV reads (WebP, TIFF, ...).
      ratio: 1, 2, 4 or 8: a JPEG is decoded at that fraction of its size; other formats know only 1.

    Returns:
      uint8 `[height, width, 3]`, read-only.

    Raises:
      UnreadableImageError: the bytes are not a whole image.
    """
    if not data:
        raise UnreadableImageError("the file is empty")
    if is_jpeg(data):
        _jpeg_shape(data)  # libjpeg prints to the terminal about a header that is cut off
    else:
        ratio = 1
    cv2 = _opencv()
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _imread_flags(ratio))
    except cv2.error:  # more pixels than OpenCV's own limit, 2**30, for one
        image = None
    if image is None:
        known = header_shape(data) is not None
        raise UnreadableImageError(
            "the image is damaged or cut off" if known else "this is no image in a known format"
        )
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    image.flags.writeable = False
    return image


def encode_png(image: np.ndarray) -> bytes:
    """RGB uint8 `[h, w, 3]` as a PNG, which loses nothing and takes little time rather than little space."""
    cv2 = _opencv()
    flags = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]), flags)[1].tobytes()


@functools.cache
def _opencv() -> Any:
    import cv2

    # Whoever asks does so from threads of his own; OpenCV's would only fight them, and the encoder, for the cores.
    cv2.setNumThreads(1)
    # What cannot be read is reported by whoever asked for it, in one line.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


@functools.cache
def _imread_flags(ratio: int) -> int:
    cv2 = _opencv()
    size = cv2.IMREAD_COLOR if ratio == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{ratio}")
    return size | cv2.IMREAD_IGNORE_ORIENTATION


def reduction(part: tuple[int, int], size: tuple[int, int]) -> int:
    """The greatest of 1, 2, 4 and 8 by which a `part` (height, width) may be divided without falling below `size`."""
    ratio = 1
    while ratio < 8 and part[0] >= 2 * ratio * size[0] and part[1] >= 2 * ratio * size[1]:
        ratio *= 2
    return ratio


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes are a JPEG, the one format that can be decoded at a fraction of its size."""
    return data[:3] == _JPEG


def cut(image: np.ndarray, window: Window, ratio: int = 1) -> np.ndarray:
    """The `window` of an image, which is given at 1 / `ratio` of the size that the window's numbers mean."""
    top, left, height, width = (v // ratio for v in window)
    return image[top : top + height, left : left + width]


def centre_part(
    height: int, width: int, size: tuple[int, int], *, enlarge: float = 1.0, keep_aspect: bool = False
) -> tuple[int, int, int, int]:
    """The central part of an image that evaluation resizes to `size`, as (top, left, height, width).

    Args:
      height: of the image, pixels.
      width: of the image, pixels.
      size: (height, width) of the encoder's input.
      enlarge: 256 / 224 is what others call "resize to 256, centre crop 224"; 1 loses nothing at the margin.
      keep_aspect: whether the part has the aspect ratio of `size`; otherwise the image is squeezed.
    """
    part_height, part_width = fit(height, width, size, enlarge, keep_aspect)
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


def fit(height: int, width: int, size: tuple[int, int], enlarge: float, keep_aspect: bool) -> tuple[int, int]:
    """(height, width) of the part of an image that is to become `size`; see `centre_part`."""
    part_height, part_width = height / enlarge, width / enlarge
    if keep_aspect:
        pixels = min(part_height / size[0], part_width / size[1])
        part_height, part_width = pixels * size[0], pixels * size[1]
    return max(1, round(part_height)), max(1, round(part_width))


def resize(image: np.ndarray, size: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """Resize uint8 `[H, W, 3]` to `size` (height, width): bilinear, averaging areas when halving or more.

    The result is written into `out`, contiguous and of that size, where it is given; an image that has that size
    already is returned itself, and `out` is left as it is.
    """
    if image.shape[:2] == tuple(size):
        return image
    cv2 = _opencv()
    halves = image.shape[0] >= 2 * size[0] and image.shape[1] >= 2 * size[1]
    interpolation = cv2.INTER_AREA if halves else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), dst=out, interpolation=interpolation)


def place(height: int, width: int, choose: Choose, box: np.ndarray | None = None) -> Window:
    """The window that `choose` takes of an image, or of a `box` in it: left, top, right, bottom, both exclusive."""
    top = left = 0
    if box is not None:
        x1, y1, x2, y2 = (int(v) for v in box)
        # A box that misses the image is a fault of the annotation; the whole image is the best guess.
        x1, y1, x2, y2 = max(0, x1), max(0, y1), min(width, x2), min(height, y2)
        if x2 > x1 and y2 > y1:
            left, top, height, width = x1, y1, y2 - y1, x2 - x1
    part = choose(height, width)
    return Window(top + part[0], left + part[1], part[2], part[3])


def for_evaluation(
    image: bytes | np.ndarray,
    size: tuple[int, int],
    *,
    enlarge: float = 1.0,
    keep_aspect: bool = False,
    box: np.ndarray | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """An image as the encoder sees it in evaluation, the same that `data.batches.eval_batches` makes.

    Args:
      image: encoded, or uint8 `[H, W, 3]`. A JPEG several times larger than `size` is decoded at a fraction.
      size: (height, width) of the encoder's input.
      enlarge, keep_aspect: see `centre_part`.
      box: (left, top, right, bottom) to which the image is limited first, or None.
      max_pixels: an encoded image whose header promises more is refused before it is decoded.

    Returns:
      uint8 `[*size, 3]`.

    Raises:
      UnreadableImageError: the bytes are not a whole image, or of too many pixels.
    """

    def choose(height: int, width: int) -> tuple[int, int, int, int]:
        return centre_part(height, width, size, enlarge=enlarge, keep_aspect=keep_aspect)

    if isinstance(image, bytes):
        promised = header_shape(image)
        if max_pixels is not None and promised is not None and promised[0] * promised[1] > max_pixels:
            raise UnreadableImageError(
                f"it would be {promised[1]} x {promised[0]} pixels, more than the {max_pixels:,} allowed"
            )
        if promised is not None and is_jpeg(image):
            window = place(*promised, choose, box)
            ratio = reduction(window[2:], size)
            return resize(cut(decode_whole(image, ratio), window, ratio), size)
        image = decode_whole(image)
    window = place(image.shape[0], image.shape[1], choose, box)
    return resize(cut(image, window), size)


def _jpeg_shape(data: bytes) -> tuple[int, int]:
    """Walk from marker to marker to the frame header."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, place + 5)
            if height and width:
                return height, width
            break
        if marker in (0xD9, 0xDA):  # the end, or pixels already
            break
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        place += 2 if alone else 2 + struct.unpack_from(">H", data, place + 2)[0]
    raise UnreadableImageError("the JPEG header is damaged or cut off")


def _webp_shape(data: bytes) -> tuple[int, int]:
    """The canvas of the three kinds of WebP: lossy, lossless, extended."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        if len(data) < 30:
            raise struct.error
        return height, width
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return height & 0x3FFF, width & 0x3FFF
