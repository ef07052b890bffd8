"""Decoded images of a source, kept in memory where they all fit."""

from __future__ import annotations

import threading
import weakref

import numpy as np

from hap2s_jax.data.pixels import Choose, cut, decode_whole, is_jpeg, place, reduction
from hap2s_jax.data.source import Source
from hap2s_jax.data.tf.decode import UnreadableImageError, decode, image_shape

CACHE_BYTES = 512 * 2**20
_SAMPLE = 32


class DecodedImages:
    """The images of a source, decoded on demand; kept when all of them fit into `cache_bytes`.

    Every `DecodedImages` of one source object shares what is kept, because evaluation comes back to the same
    images many times in a run.

    Whether they fit is judged once, from the headers of a few images: what is kept has full resolution, while
    large JPEGs are otherwise decoded at a fraction of it, so which of the two is used must not depend on what
    happens to be in memory.

    Args:
      source: the encoded images. Its optional attribute `boxes`, int `[N, 4]` (left, top, right, bottom, the
        last two exclusive), limits each image to a box.
      cache_bytes: how much to keep; 0 keeps nothing.
      for_evaluation: pixels as `pixels.for_evaluation` has them, whatever is kept: a part is always cut out of the
        whole, decoded at the fraction that the part allows. Otherwise what is quickest.
    """

    def __init__(self, source: Source, cache_bytes: int = CACHE_BYTES, for_evaluation: bool = False):
        self.source = source
        self._for_evaluation = for_evaluation
        self._kept = _kept_images(source, cache_bytes)
        self._boxes = _boxes(source)

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
          uint8 `[height, width, 3]`, read-only; large JPEGs at a fraction of their resolution, see `decode`.

        Raises:
          UnreadableImageError: the bytes are no image.
          OSError: the bytes cannot be read.
        """
        box = None if self._boxes is None else self._boxes[index]
        if self._for_evaluation:
            return self._evaluated(index, choose, size, box)
        image = None if self._kept is None else self._whole(index, self._kept)
        data = self.source.read(index) if image is None else b""
        height, width = image.shape[:2] if image is not None else image_shape(data)
        window = place(height, width, choose, box)
        if image is not None:
            return cut(image, window)
        return decode(data, None if window == (0, 0, height, width) else window, size)

    def _evaluated(
        self, index: int, choose: Choose, size: tuple[int, int], box: np.ndarray | None
    ) -> np.ndarray:
        kept = _Kept(0) if self._kept is None else self._kept
        data = b""
        if index not in kept.shapes:
            data = self.source.read(index)
            kept.shapes[index] = (*image_shape(data), is_jpeg(data))
        height, width, reducible = kept.shapes[index]
        window = place(height, width, choose, box)
        ratio = reduction(window[2:], size) if reducible else 1
        image = kept.images.get((index, ratio))
        if image is None:
            image = decode_whole(data or self.source.read(index), ratio)
            kept.add((index, ratio), image)
        return cut(image, window, ratio)

    def _whole(self, index: int, kept: _Kept) -> np.ndarray:
        image = kept.images.get((index, 1))
        if image is None:
            image = decode(self.source.read(index))
            kept.add((index, 1), image)
        return image


class _Kept:
    def __init__(self, cache_bytes: int):
        self.cache_bytes = cache_bytes
        # By number and by the fraction of its size at which a JPEG was decoded.
        self.images: dict[tuple[int, int], np.ndarray] = {}
        self.shapes: dict[int, tuple[int, int, bool]] = {}
        self._room = cache_bytes
        self._lock = threading.Lock()

    def add(self, key: tuple[int, int], image: np.ndarray) -> None:
        with self._lock:
            # The estimate may have been too low; what no longer fits is decoded anew each time.
            if image.nbytes <= self._room and key not in self.images:
                self._room -= image.nbytes
                self.images[key] = image


# The values must not refer to their keys, or no source would ever be freed.
_of_source: weakref.WeakKeyDictionary[Source, _Kept] = weakref.WeakKeyDictionary()


def _kept_images(source: Source, cache_bytes: int) -> _Kept | None:
    try:
        kept = _of_source.get(source)
        if kept is not None and kept.cache_bytes == cache_bytes:
            return kept
        if _estimate_bytes(source) > cache_bytes:
            return None
        _of_source[source] = _Kept(cache_bytes)
        return _of_source[source]
    except TypeError:  # A source that cannot be hashed or referred to weakly has its images to itself.
        return _Kept(cache_bytes) if _estimate_bytes(source) <= cache_bytes else None


def _estimate_bytes(source: Source) -> float:
    """Bytes of all images decoded, from a few of them spread over the source."""
    sizes = []
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLE, dtype=np.int64)) if len(source) else ():
        try:
            height, width = image_shape(source.read(int(index)))
        except (OSError, UnreadableImageError):
            continue
        sizes.append(3 * height * width)
    return float(np.mean(sizes)) * len(source) if sizes else 0.0


def _boxes(source: Source) -> np.ndarray | None:
    """The boxes of a source, also through a `Subset`, which knows nothing of them."""
    boxes = getattr(source, "boxes", None)
    if boxes is None and isinstance(getattr(source, "source", None), Source) and hasattr(source, "indices"):
        inner = _boxes(source.source)  # pyright: ignore[reportAttributeAccessIssue] - asked for just above
        boxes = None if inner is None else inner[source.indices]  # pyright: ignore[reportAttributeAccessIssue]
    return boxes
