"""Encoded images to pixels, with no more decoded than is needed."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

# The accelerator belongs to JAX; TensorFlow would take its whole memory.
tf.config.set_visible_devices([], "GPU")

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_TENSORFLOW_FORMATS = (_JPEG, _PNG, b"GIF8", b"BM")


class Window(NamedTuple):
    """A part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class UnreadableImageError(ValueError):
    """The bytes are no image, or only a part of one."""


def image_shape(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image; from the header alone for JPEG and PNG.

    Raises:
      UnreadableImageError: there is no header to read.
    """
    if data[:3] == _JPEG:
        return _jpeg_shape(data)
    if data[:8] == _PNG and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    image = _decode_whole(data, 1)
    return image.shape[0], image.shape[1]


def decode(data: bytes, window: Window | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image, or a part of it, to RGB.

    The format is told by the bytes, never by a file's name. Grey, CMYK, palette and 16-bit images come out
    as 8-bit RGB; transparency is dropped. The orientation that a camera noted in EXIF is not applied.

    Args:
      data: the encoded image: JPEG, PNG, GIF (first frame), BMP, or what OpenCV reads (WebP, TIFF).
      window: the part wanted; None for the whole. Of a JPEG, only this part is decoded.
      size: (height, width) to which the caller will resize. A JPEG several times larger is decoded at a half,
        a quarter or an eighth, never below `size`.

    Returns:
      uint8 `[height, width, 3]`, read-only.

    Raises:
      UnreadableImageError: the bytes are not a whole image.
    """
    if data[:3] != _JPEG:
        image = _decode_whole(data, 1)
        return image if window is None else _cut(image, window)
    ratio = 1
    if size is not None:
        height, width = window[2:] if window is not None else image_shape(data)
        while ratio < 8 and height >= 2 * ratio * size[0] and width >= 2 * ratio * size[1]:
            ratio *= 2
    if window is None:
        return _decode_whole(data, ratio)
    if ratio > 1:
        return _cut(_decode_whole(data, ratio), Window(*(v // ratio for v in window)))
    try:
        return _view(tf.raw_ops.DecodeAndCropJpeg(contents=data, crop_window=list(window), channels=3))
    except tf.errors.OpError as error:
        raise UnreadableImageError(_reason(error)) from None


def _jpeg_shape(data: bytes) -> tuple[int, int]:
    """Walk from marker to marker to the frame header; TensorFlow's operation for it takes ten times as long."""
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


def _decode_whole(data: bytes, ratio: int) -> np.ndarray:
    if not data:
        raise UnreadableImageError("the file is empty")
    try:
        if data[:3] == _JPEG:
            return _view(tf.raw_ops.DecodeJpeg(contents=data, channels=3, ratio=ratio))
        if data.startswith(_TENSORFLOW_FORMATS):
            return _view(tf.raw_ops.DecodeImage(contents=data, channels=3, expand_animations=False))
    except tf.errors.OpError as error:
        raise UnreadableImageError(_reason(error)) from None
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UnreadableImageError("this is no image in a known format")
    return np.ascontiguousarray(image[:, :, ::-1])


def _cut(image: np.ndarray, window: Window) -> np.ndarray:
    top, left, height, width = window
    return image[top : top + height, left : left + width]


def _view(tensor: tf.Tensor) -> np.ndarray:
    # Tensor.numpy() would copy.
    return np.asarray(memoryview(tensor))  # pyright: ignore[reportArgumentType] - eager tensors are buffers


def _reason(error: tf.errors.OpError) -> str:
    return (error.message or "unknown error").split("{{")[0].split(" [Op:")[0].strip().rstrip(",.")
