"""Decoded images of a source, kept in memory where they all fit."""

from __future__ import annotations

import threading
import weakref

import numpy as np

from hap2s_jax.data.headers import Header, UnreadableImageError
from hap2s_jax.data.pixels import (
    DEFAULT,
    Choose,
    Decoding,
    allowed_header,
    cut,
    decode_whole,
    image_shape,
    place,
    reduction,
)
from hap2s_jax.data.source import Source

CACHE_BYTES = 512 * 2**20
_SAMPLE = 32


class DecodedImages:
    """The images of a source, decoded on demand; kept when all of them fit into `cache_bytes`.

    All `DecodedImages` of one source object share their cache, because evaluation uses the same images many times
    in a run. The cache changes no pixel: a part is always cut out of the whole image, decoded at the fraction that
    the part allows. (Decoding a window alone saves nothing: most of the time goes into
    unpacking the bits before it.)

    Args:
      source: the encoded images. Its optional attribute `boxes`, int `[N, 4]` (left, top, right, bottom, the
        last two exclusive), limits each image to a box.
      cache_bytes: how much to keep; 0 keeps nothing. Whether all images fit is judged from the headers of a few.
      decoding: how the bytes are decoded.
    """

    def __init__(self, source: Source, cache_bytes: int = CACHE_BYTES, decoding: Decoding = DEFAULT):
        self.source = source
        self.decoding = decoding
        self._kept = _kept_images(source, cache_bytes, decoding)
        self._boxes: np.ndarray | None = getattr(source, "boxes", None)

    @property
    def cached(self) -> bool:
        """Whether decoded images are kept."""
        return self._kept is not None

    def get(self, index: int, choose: Choose, size: tuple[int, int]) -> np.ndarray:
        """A part of image number `index`, about to be resized to `size`.

        Args:
          index: which image.
          choose: (height, width) of the image (or its box) -> (top, left, height, width) of the part wanted.
          size: (height, width) to which the part will be resized.

        Returns:
          uint8 `[height, width, 3]`, read-only; large JPEGs at a fraction of their resolution, never below `size`.

        Raises:
          UnreadableImageError: the bytes are no image, or of too many pixels, or its box lies outside.
          OSError: the bytes cannot be read.
        """
        data = None
        known = None if self._kept is None else self._kept.headers.get(index)
        if known is None:
            data = self.source.read(index)
            known = allowed_header(data, self.decoding)
        header, (height, width) = known
        window = place(height, width, choose, None if self._boxes is None else self._boxes[index])
        ratio = reduction(window[2:], size) if header.kind == "jpeg" else 1
        image = None if self._kept is None else self._kept.images.get((index, ratio))
        if image is None:
            data = self.source.read(index) if data is None else data
            image = decode_whole(data, ratio, self.decoding, header)
            if self._kept is not None:
                self._kept.add(index, known, ratio, image)
        return cut(image, window, ratio)


class _Kept:
    def __init__(self, cache_bytes: int, decoding: Decoding):
        self.settings = (cache_bytes, decoding)
        # Keys: the image's number, and the fraction of its size at which a JPEG was decoded.
        self.images: dict[tuple[int, int], np.ndarray] = {}
        # Values: the header, and height and width as decoded.
        self.headers: dict[int, tuple[Header, tuple[int, int]]] = {}
        self._room = cache_bytes
        self._lock = threading.Lock()

    def add(self, index: int, header: tuple[Header, tuple[int, int]], ratio: int, image: np.ndarray) -> None:
        with self._lock:
            self.headers[index] = header
            # The estimate may have been too low; images that do not fit are decoded each time.
            if image.nbytes <= self._room and (index, ratio) not in self.images:
                self._room -= image.nbytes
                self.images[index, ratio] = image


# The values must not refer to their keys, or no source would ever be freed.
_of_source: weakref.WeakKeyDictionary[Source, _Kept] = weakref.WeakKeyDictionary()


def _kept_images(source: Source, cache_bytes: int, decoding: Decoding) -> _Kept | None:
    if not cache_bytes:  # without a cache no image is read for the estimate
        return None
    try:
        kept = _of_source.get(source)
        if kept is not None and kept.settings == (cache_bytes, decoding):
            return kept
        if _estimate_bytes(source, decoding) > cache_bytes:
            return None
        _of_source[source] = _Kept(cache_bytes, decoding)
        return _of_source[source]
    except TypeError:  # a source without hash or weak references gets a cache of its own.
        fits = _estimate_bytes(source, decoding) <= cache_bytes
        return _Kept(cache_bytes, decoding) if fits else None


def _estimate_bytes(source: Source, decoding: Decoding) -> float:
    """Estimates the bytes of all decoded images from a few of them."""
    sizes = []
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLE, dtype=np.int64)) if len(source) else ():
        try:
            height, width = image_shape(source.read(int(index)), decoding)
        except (OSError, UnreadableImageError):
            continue
        sizes.append(3 * height * width)
    return float(np.mean(sizes)) * len(source) if sizes else 0.0
