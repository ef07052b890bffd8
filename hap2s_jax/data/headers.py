"""Size, orientation and transparency of an encoded image, from its header, before anything is decoded."""

from __future__ import annotations

import functools
import io
import struct
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"
_SCAN = b"\xff\xda"  # a JPEG's marker before each
_MAX_WORK = 2**32  # pixels times scans; usual images have about ten
# Tags of a TIFF file, and of EXIF, which is one; the last is what a channel beyond the colours means.
_WIDTH, _HEIGHT, _BITS, _ORIENTATION, _EXTRA = 256, 257, 258, 274, 338
_CHUNK = struct.Struct(">I4s").unpack_from  # of a chunk of a PNG: length and name
# In a JPEG: the length of a segment; height and width of a frame.
_LENGTH, _SIDES = struct.Struct(">H").unpack_from, struct.Struct(">HH").unpack_from
_pillow_lock = threading.Lock()


class UnreadableImageError(ValueError):
    """The bytes are no image, part of one, or too large an image; or a box lies outside of it."""


class Header(NamedTuple):
    """The header of an image file.

    Attributes:
      kind: "jpeg", "png", "gif", "bmp", "webp", "tiff", or "other" (what Pillow knows: JPEG 2000, PNM, AVIF, ...).
      height, width: in pixels, as stored (of a TIFF as decoded, which is upright).
      orientation: 1 to 8, as EXIF numbers them; 1 is upright.
      has_alpha: whether some of it may be transparent.
    """

    kind: str
    height: int
    width: int
    orientation: int = 1
    has_alpha: bool = False

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) once the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes) -> Header:
    """Reads the header of an encoded image; its kind is recognised by the bytes, never by a file's name.

    Raises:
      UnreadableImageError: this is no image, or its header is damaged or cut off.
    """
    try:
        if data[:3] == _JPEG:
            return _jpeg(data)
        if data[:8] == _PNG:
            return _png(data)
        if data[:4] == b"GIF8":
            return _gif(data)
        if data[:2] == b"BM":
            return _bmp(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            tags = _tags(data)
            if tags.get(_BITS) in (32, 64):
                raise UnreadableImageError(
                    f"its pixels are numbers of {tags[_BITS]} bits, whose white level is unknown; save it "
                    "with 8 or 16 bits"
                )
            # OpenCV and Pillow always turn these upright themselves.
            height, width = Header("tiff", tags[_HEIGHT], tags[_WIDTH], _orientation(tags)).upright
            # 1: colours multiplied by alpha, 2: not; 0 says nothing about what the channel means.
            return Header("tiff", height, width, has_alpha=tags.get(_EXTRA) in (1, 2))
    except (struct.error, KeyError, IndexError):
        raise UnreadableImageError("the header is damaged or cut off") from None
    if not data:
        raise UnreadableImageError("the file is empty")
    image = open_pillow(data)
    orientation = image.getexif().get(_ORIENTATION, 1)
    return Header(
        "other", image.height, image.width, _orientation({_ORIENTATION: orientation}), "A" in image.mode
    )


def open_pillow(data: bytes) -> Any:
    """Opens an image with Pillow, which reads its header and no pixel.

    Raises:
      UnreadableImageError: Pillow knows no such image.
    """
    from PIL import Image

    # Pillow has a limit of pixels of its own, one for the whole process; ours is checked elsewhere.
    with _pillow_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data))
        except Exception:  # damaged headers make Pillow raise nearly anything
            raise UnreadableImageError("this is not an image in a known format") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def knows_avif() -> bool:
    """Whether AVIF can be read here, which Pillow can from version 11.3 on."""
    from PIL import features

    return "avif" in features.modules and bool(features.check("avif"))


def _jpeg(data: bytes) -> Header:
    """Walk from marker to marker to the frame header, past EXIF."""
    place, orientation = 2, 1
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = _SIDES(data, place + 5)
            if height and width:
                _check_scans(data, place, height * width)
                return Header("jpeg", height, width, orientation)
            break
        if marker in (0xD9, 0xDA):  # the end, or pixels already
            break
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        length = 0 if alone else _LENGTH(data, place + 2)[0]
        if marker == 0xE1 and data[place + 4 : place + 10] == _EXIF:
            orientation = _exif(data[place + 10 : place + 2 + length])
        place += 2 + length
    raise UnreadableImageError("the JPEG header is damaged or cut off")


def _check_scans(data: bytes, frame: int, pixels: int) -> None:
    """Refuses a JPEG whose many scans take long: a decoder goes over all pixels for each, however short it is."""
    first = data.find(_SCAN, frame)
    # One, that of all channels, is all that is read of a JPEG that is not progressive.
    if data[frame + 1] in (0xC0, 0xC1) and data[first + 4] == data[frame + 9]:
        return
    if (scans := data.count(_SCAN, first)) * pixels > _MAX_WORK:
        raise UnreadableImageError(
            f"it would be decoded {scans:,} times over, since it has so many scans; save it anew"
        )


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    has_alpha, orientation = data[25] in (4, 6), 1
    place, end = 33, len(data) - 8
    while place <= end:
        length, kind = _CHUNK(data, place)
        if place + 8 + length > len(data):  # decoders make room for all that a chunk promises
            raise UnreadableImageError("the image is damaged or cut off")
        if kind == b"IEND":  # what follows is no part of it
            break
        if kind == b"tRNS":
            has_alpha = True
        elif kind == b"eXIf":  # it may also come after the pixels
            orientation = _exif(data[place + 8 : place + 8 + length])
        place += 12 + length
    return Header("png", height, width, orientation, has_alpha)


def _gif(data: bytes) -> Header:
    width, height = struct.unpack_from("<HH", data, 6)
    palette = 3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0
    place, transparent = 13 + palette, False
    while data[place : place + 1] == b"!":  # skip extensions before the first picture
        transparent = transparent or (data[place + 1] == 0xF9 and bool(data[place + 3] & 1))
        place += 2
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    return Header("gif", height, width, has_alpha=transparent)


def _bmp(data: bytes) -> Header:
    # OS/2's header of 12 bytes has sides of 16 bits.
    size = struct.unpack_from("<I", data, 14)[0]
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
    bits, method = struct.unpack_from("<HI", data, 28) if size >= 56 else (0, 0)
    masked = bits == 32 and method == 3 and bool(struct.unpack_from("<I", data, 66)[0])
    # A negative height means that rows begin at the top.
    return Header("bmp", abs(height), abs(width), has_alpha=masked)


def _webp(data: bytes) -> Header:
    """The canvas of the three kinds of WebP: lossy, lossless, extended."""
    kind = data[12:16]
    if kind == b"VP8X":
        if len(data) < 30:
            raise struct.error
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        chunks = dict(_riff_chunks(data)) if data[20] & 0x08 else {}
        exif = chunks.get(b"EXIF", b"")
        return Header("webp", height, width, _exif(exif.removeprefix(_EXIF)), bool(data[20] & 0x10))
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("webp", (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 1, bool(bits >> 28 & 1))
    width, height = struct.unpack_from("<HH", data, 26)
    return Header("webp", height & 0x3FFF, width & 0x3FFF)


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        yield kind, data[place + 8 : place + 8 + length] if kind == b"EXIF" else b""
        place += 8 + length + length % 2


def _exif(block: bytes) -> int:
    """The orientation in a block of EXIF; 1 if it is damaged or has none."""
    try:
        return _orientation(_tags(block))
    except struct.error:
        return 1


def _orientation(tags: dict[int, int]) -> int:
    found = tags.get(_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def _tags(block: bytes) -> dict[int, int]:
    """The whole numbers in the first directory of a TIFF or BigTIFF file; the first of several."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        raise struct.error
    big = struct.unpack_from(order + "H", block, 2)[0] == 43
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), block, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), block, place)
    place, step, value, inside = (place + 8, 20, 12, 8) if big else (place + 2, 12, 8, 4)
    tags = {}
    for entry in range(place, place + min(count, 4096) * step, step):
        tag, kind = struct.unpack_from(order + "HH", block, entry)
        if letter := {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind):
            at, number = entry + value, struct.unpack_from(order + ("Q" if big else "I"), block, entry + 4)[0]
            if number * struct.calcsize("<" + letter) > inside:  # they lie elsewhere
                (at,) = struct.unpack_from(order + ("Q" if big else "I"), block, at)
            (tags[tag],) = struct.unpack_from(order + letter, block, at)
    return tags
