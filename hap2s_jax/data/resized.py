"""Images made smaller, or cut to their boxes, once and for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hap2s_jax.data import shares
from hap2s_jax.data.headers import UnreadableImageError, read_header
from hap2s_jax.data.opencv import opencv
from hap2s_jax.data.pixels import cut, decode_whole, encode_png, place, resize

_QUALITY = 95


class Change(NamedTuple):
    """The changes to images that are packed.

    Attributes:
      call: (bytes, box or None) -> both; None keeps all as they are.
      keeps_boxes: whether images have their boxes still.
      said: in words.
    """

    call: Callable[[bytes, np.ndarray | None], tuple[bytes, np.ndarray | None]] | None = None
    keeps_boxes: bool = True
    said: str = "as they are"


def change(longest_side: int | None, apply_boxes: bool) -> Change:
    """Makes images smaller, or cuts them to their boxes.

    They are turned upright as EXIF says and laid on white where they are transparent, as they are by default when they
    are read. JPEGs become JPEGs (quality 95), all others PNGs. An image that has nothing changed, and one that cannot
    be read, keeps its bytes.

    Args:
      longest_side: larger images are resized to it, boxes with them; None keeps their sizes.
      apply_boxes: whether images are cut to their boxes, and have none then.
    """
    if longest_side is None and not apply_boxes:
        return Change()

    def changed(data: bytes, box: np.ndarray | None) -> tuple[bytes, np.ndarray | None]:
        try:
            image = decode_whole(data)
            window = place(
                image.shape[0], image.shape[1], lambda h, w: (0, 0, h, w), box if apply_boxes else None
            )
        except UnreadableImageError:
            return data, box  # training on it will decide what to do
        part = cut(image, window)
        kept = None if apply_boxes else box
        share = min(1.0, (longest_side or max(part.shape)) / max(part.shape[:2]))
        if part.shape == image.shape and share == 1:
            return data, kept
        size = (max(1, round(part.shape[0] * share)), max(1, round(part.shape[1] * share)))
        small = resize(part, size)
        if kept is not None and np.any(kept) and shares.decode(kept) is None:
            low, high = np.floor(kept[:2] * share), np.ceil(kept[2:] * share)
            kept = np.concatenate([low, high]).astype(np.int32)
        return (_jpeg(small) if read_header(data).kind == "jpeg" else encode_png(small)), kept

    return Change(changed, not apply_boxes, f"longest side {longest_side}, cut to boxes: {apply_boxes}")


def _jpeg(image: np.ndarray) -> bytes:
    cv2 = opencv()
    flags = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    return cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), flags)[1].tobytes()
