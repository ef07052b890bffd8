"""Parts of encoded images, with no more decoded than is needed: TensorFlow can decode a window of a JPEG."""

from __future__ import annotations

import os

import numpy as np

from hap2s_jax.data.pixels import (
    UnreadableImageError,
    Window,
    cut,
    decode_whole,
    image_shape,
    is_jpeg,
    reduction,
)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

# The accelerator belongs to JAX; TensorFlow would take its whole memory.
tf.config.set_visible_devices([], "GPU")

__all__ = ["UnreadableImageError", "Window", "decode", "image_shape", "tf"]


def decode(data: bytes, window: Window | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image, or a part of it, to RGB.

    The format is told by the bytes, never by a file's name. Grey, CMYK, palette and 16-bit images come out
    as 8-bit RGB; transparency is dropped. The orientation that a camera noted in EXIF is not applied.

    Args:
      data: the encoded image: JPEG, PNG, GIF (first frame), BMP, or what OpenCV reads (WebP, TIFF).
      window: the part wanted; None for the whole.
      size: (height, width) to which the caller will resize. A JPEG several times larger is decoded at a half,
        a quarter or an eighth, never below `size`.

    Returns:
      uint8 `[height, width, 3]`, read-only.

    Raises:
      UnreadableImageError: the bytes are not a whole image.
    """
    if not is_jpeg(data):
        image = decode_whole(data)
        return image if window is None else cut(image, window)
    ratio = 1
    if size is not None:
        ratio = reduction(window[2:] if window is not None else image_shape(data), size)
    if window is None:
        return decode_whole(data, ratio)
    if ratio > 1:
        return cut(decode_whole(data, ratio), window, ratio)
    try:
        # The same transform as OpenCV's, bit for bit; TensorFlow's default is a faster one with larger errors.
        return _view(
            tf.raw_ops.DecodeAndCropJpeg(
                contents=data, crop_window=list(window), channels=3, dct_method="INTEGER_ACCURATE"
            )
        )
    except tf.errors.OpError as error:
        raise UnreadableImageError(_reason(error)) from None


def _view(tensor: tf.Tensor) -> np.ndarray:
    # Tensor.numpy() would copy.
    return np.asarray(memoryview(tensor))  # pyright: ignore[reportArgumentType] - eager tensors are buffers


def _reason(error: tf.errors.OpError) -> str:
    return (error.message or "unknown error").split("{{")[0].split(" [Op:")[0].strip().rstrip(",.")
