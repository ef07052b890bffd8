"""Encoded images to pixels, and from there to what the encoder sees in evaluation; OpenCV and Pillow, no TensorFlow.

Training, its evaluation and `hap2s_jax.load` all come through here: what an image's pixels are must depend on
nothing but the image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from hap2s_jax.data import shares
from hap2s_jax.data.headers import Header, UnreadableImageError, open_pillow, read_header
from hap2s_jax.data.opencv import imdecode, opencv

# (height, width) of an image, or of its box -> (top, left, height, width) of the part wanted.
Choose = Callable[[int, int], tuple[int, int, int, int]]


class Decoding(NamedTuple):
    """How an image's bytes become pixels; a config has it under `data`.

    Attributes:
      exif: whether an image is turned upright as its EXIF (or TIFF) orientation says. Boxes are then those of the
        upright image, which is what people and most annotation tools see; otherwise of the stored pixels.
      background: red, green and blue, 0 to 255, behind transparent images; None ignores transparency, which shows
        the colours hidden under it.
      max_pixels: images whose header claims more count as unreadable and are not decoded.
    """

    exif: bool = True
    background: tuple[int, int, int] | None = (255, 255, 255)
    max_pixels: int = 2**28


DEFAULT = Decoding()


class Window(NamedTuple):
    """A part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def image_shape(data: bytes, decoding: Decoding = DEFAULT) -> tuple[int, int]:
    """(height, width) that an encoded image will have decoded, from the header alone.

    Raises:
      UnreadableImageError: there is no header to read, or it promises too many pixels.
    """
    return allowed_header(data, decoding)[1]


def allowed_header(data: bytes, decoding: Decoding) -> tuple[Header, tuple[int, int]]:
    """The header of an encoded image, and (height, width) that it will have decoded.

    Raises:
      UnreadableImageError: see `image_shape`.
    """
    header = read_header(data)
    if header.height * header.width > decoding.max_pixels:
        raise UnreadableImageError(
            f"it would be {header.width} x {header.height} pixels, more than the {decoding.max_pixels:,} allowed "
            "(data.max_pixels)"
        )
    return header, header.upright if decoding.exif else (header.height, header.width)


def decode_whole(
    data: bytes, ratio: int = 1, decoding: Decoding = DEFAULT, header: Header | None = None
) -> np.ndarray:
    """Decode an image to RGB.

    Grey, CMYK, palette and 16-bit images come out as 8-bit RGB.

    Args:
      data: the encoded image: JPEG, PNG, GIF (first frame), BMP, WebP, TIFF, or what else OpenCV or Pillow reads here.
      ratio: 1, 2, 4 or 8: a JPEG is decoded at that fraction of its size; other formats know only 1.
      decoding: orientation, background and limit.
      header: of `data`, where it has been read already and found to be allowed.

    Returns:
      uint8 `[height, width, 3]`, read-only.

    Raises:
      UnreadableImageError: the bytes are not a whole image, or one of too many pixels.
    """
    if header is None:
        header = allowed_header(data, decoding)[0]
    cv2, image = opencv(), None
    if header.has_alpha and decoding.background is not None:
        image = _composite(data, header.kind, decoding.background)
    elif (image := imdecode(data, _imread_flags(ratio if header.kind == "jpeg" else 1))) is not None:
        for band in _bands(*image.shape[:2]):  # OpenCV copies what it converts in place
            cv2.cvtColor(image[band], cv2.COLOR_BGR2RGB, dst=image[band])
    elif header.kind in ("tiff", "other"):  # what OpenCV does not know
        image = _from_pillow(data, "RGB", np.asarray)
    if image is None:
        raise UnreadableImageError("the image is damaged or cut off")
    if header.orientation > 1 and decoding.exif:
        image = _upright(image, header.orientation)
    image.flags.writeable = False
    return image


@functools.cache
def _imread_flags(ratio: int) -> int:
    cv2 = opencv()
    size = cv2.IMREAD_COLOR if ratio == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{ratio}")
    return size | cv2.IMREAD_IGNORE_ORIENTATION


def _bands(height: int, width: int) -> Iterator[slice]:
    """Rows of some 250,000 pixels at a time: what is made of a band stays in the cache, and needs no second image."""
    step = max(1, 2**18 // max(width, 1))
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def _composite(data: bytes, kind: str, background: tuple[int, int, int]) -> np.ndarray | None:
    """A transparent image on a background, as stored; None where it is damaged."""
    cv2, image = opencv(), None

    def mixed(rgba: np.ndarray) -> np.ndarray:
        alpha = rgba[..., 3:].astype(np.uint16)
        if alpha.min(initial=255) == 255:
            return rgba[..., :3]
        mixture = rgba[..., :3] * alpha + (255 - alpha) * np.array(background, np.uint16)
        return ((mixture + 127) // 255).astype(np.uint8)

    # For other formats and for grey images OpenCV drops alpha or multiplies by it.
    if kind in ("png", "webp"):
        image = imdecode(data, cv2.IMREAD_UNCHANGED)
        if image is None:
            return None
    if image is None or image.ndim != 3 or image.shape[2] != 4:
        return _from_pillow(data, "RGBA", mixed)
    height, width = image.shape[:2]
    # In place: three bytes are written where four were read, never ahead of the reading.
    made = image.reshape(-1).view(np.uint8)[: height * width * 3].reshape(height, width, 3)
    for band in _bands(height, width):
        part = image[band] if image.dtype == np.uint8 else (image[band] >> 8).astype(np.uint8)
        made[band] = mixed(cv2.cvtColor(part, cv2.COLOR_BGRA2RGBA))
    return made


def _from_pillow(data: bytes, mode: str, to_rgb: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """An image as Pillow decodes it, RGB or RGBA, and `to_rgb` makes it RGB."""
    image = open_pillow(data)

    def pixels(band: slice) -> np.ndarray:
        part = image.crop((0, band.start, image.width, band.stop))
        if not image.mode.startswith("I;16"):
            return np.asarray(part.convert(mode))
        levels, key = np.asarray(part), image.info.get("transparency")
        grey = np.repeat((levels >> 8).astype(np.uint8)[..., None], len(mode), axis=2)
        if mode == "RGBA":
            grey[..., 3] = np.where(levels == key, 0, 255)
        return grey

    try:
        made = np.empty((image.height, image.width, 3), np.uint8)
        for band in _bands(image.height, image.width):
            made[band] = to_rgb(pixels(band))
        return made
    except Exception:  # a damaged file makes Pillow raise nearly anything
        raise UnreadableImageError("the image is damaged or cut off") from None


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """The stored pixels turned and mirrored as EXIF's `orientation` says."""
    cv2 = opencv()
    if orientation >= 5:
        image = cv2.transpose(image)
    axis = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if axis is None else cv2.flip(image, axis)


def encode_png(image: np.ndarray) -> bytes:
    """RGB uint8 `[h, w, 3]` as a PNG, which loses nothing and takes little time rather than little space."""
    cv2 = opencv()
    flags = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]), flags)[1].tobytes()


def reduction(part: tuple[int, int], size: tuple[int, int]) -> int:
    """The greatest of 1, 2, 4 and 8 by which a `part` (height, width) may be divided without falling below `size`."""
    ratio = 1
    while ratio < 8 and part[0] >= 2 * ratio * size[0] and part[1] >= 2 * ratio * size[1]:
        ratio *= 2
    return ratio


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
    cv2 = opencv()
    halves = image.shape[0] >= 2 * size[0] and image.shape[1] >= 2 * size[1]
    interpolation = cv2.INTER_AREA if halves else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), dst=out, interpolation=interpolation)


def place(height: int, width: int, choose: Choose, box: np.ndarray | None = None) -> Window:
    """The window that `choose` takes of an image, or of a `box` in it: left, top, right, bottom, both exclusive.

    A box, in pixels or of `shares`, is cut to the image; one of zeros alone stands for the whole image.

    Raises:
      UnreadableImageError: the box lies outside the image, or is empty.
    """
    top = left = 0
    if box is not None and np.any(box):
        x1, y1, x2, y2 = shares.in_pixels(np.asarray(box), height, width)
        left, top, right, bottom = max(0, x1), max(0, y1), min(width, x2), min(height, y2)
        if right <= left or bottom <= top:
            raise UnreadableImageError(
                f"its box {x1}, {y1}, {x2}, {y2} (left, top, right, bottom) is empty, or outside the image of "
                f"{width} x {height} pixels"
            )
        height, width = bottom - top, right - left
    part = choose(height, width)
    return Window(top + part[0], left + part[1], part[2], part[3])


def for_evaluation(
    image: bytes | np.ndarray,
    size: tuple[int, int],
    *,
    enlarge: float = 1.0,
    keep_aspect: bool = False,
    box: np.ndarray | None = None,
    decoding: Decoding = DEFAULT,
) -> np.ndarray:
    """An image as the encoder sees it in evaluation, the same that `data.batches.eval_batches` makes.

    Args:
      image: encoded, or uint8 `[H, W, 3]`. A JPEG several times larger than `size` is decoded at a fraction.
      size: (height, width) of the encoder's input.
      enlarge, keep_aspect: see `centre_part`.
      box: (left, top, right, bottom) to which the image is limited first, or None.
      decoding: what is made of an encoded image.

    Returns:
      uint8 `[*size, 3]`.

    Raises:
      UnreadableImageError: the bytes are not a whole image, or of too many pixels, or the box lies outside.
    """

    def choose(height: int, width: int) -> tuple[int, int, int, int]:
        return centre_part(height, width, size, enlarge=enlarge, keep_aspect=keep_aspect)

    if isinstance(image, bytes):
        header, (height, width) = allowed_header(image, decoding)
        window = place(height, width, choose, box)
        ratio = reduction(window[2:], size) if header.kind == "jpeg" else 1
        return resize(cut(decode_whole(image, ratio, decoding, header), window, ratio), size)
    window = place(image.shape[0], image.shape[1], choose, box)
    return resize(cut(image, window), size)
