"""Drawing an icon as 64x64 RGB pixels on white, and packing pixels as small lossless PNGs."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

from experiments.emoji_build.names import IconSet

SIZE = 64
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def icon_svg(icon_set: IconSet, name: str, size: int = SIZE) -> str:
    """The SVG document of an icon: its body in its own view box, scaled to fit a square of `size` pixels."""
    icon = icon_set.icons[icon_set.root(name)]
    width, height = icon.get("width", icon_set.width), icon.get("height", icon_set.height)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )


def turn(pixels: np.ndarray, icon_set: IconSet, name: str) -> np.ndarray:
    """Apply the flips and quarter turns on the way from alias `name` to its icon; `[h, w, 3]` in and out."""
    links = []
    while name not in icon_set.icons:
        links.append(icon_set.aliases[name])
        name = links[-1]["parent"]
    for link in reversed(links):
        if link.get("hFlip"):
            pixels = pixels[:, ::-1]
        if link.get("vFlip"):
            pixels = pixels[::-1]
        pixels = np.rot90(pixels, -link.get("rotate", 0))
    return pixels


def draw(icon_set: IconSet, name: str, size: int = SIZE) -> np.ndarray:
    """Draw an icon on white; uint8 `[size, size, 3]`. Needs the extra `emoji-build`."""
    import resvg_py
    from PIL import Image

    # System fonts would make the result depend on the machine; no icon holds text.
    png = resvg_py.svg_to_bytes(
        svg_string=icon_svg(icon_set, name, size), background="#ffffff", skip_system_fonts=True
    )
    pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    return np.ascontiguousarray(turn(pixels, icon_set, name))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _filtered(rows: np.ndarray) -> list[bytes]:
    """The image data under each of PNG's filters, and under the per-row choice of the least absolute sum.

    Args:
      rows: uint8 `[h, w, channels]`.
    """
    height, width, channels = rows.shape
    left = np.zeros_like(rows)
    left[:, 1:] = rows[:, :-1]
    above = np.zeros_like(rows)
    above[1:] = rows[:-1]
    corner = np.zeros_like(rows)
    corner[1:, 1:] = rows[:-1, :-1]
    a, b, c = (x.astype(np.int16) for x in (left, above, corner))
    distance_a, distance_b, distance_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    paeth = np.where(
        (distance_a <= distance_b) & (distance_a <= distance_c), a, np.where(distance_b <= distance_c, b, c)
    )
    predictions = [np.zeros_like(a), a, b, (a + b) // 2, paeth]
    filtered = np.stack([(rows - prediction).astype(np.uint8) for prediction in predictions])
    filtered = filtered.reshape(5, height, width * channels)
    cost = np.abs(filtered.view(np.int8).astype(np.int32)).sum(-1)
    choices = [np.full(height, kind) for kind in range(5)] + [cost.argmin(0)]
    return [
        b"".join(bytes([kind]) + filtered[kind, row].tobytes() for row, kind in enumerate(choice))
        for choice in choices
    ]


def encode_png(pixels: np.ndarray) -> bytes:
    """Pack uint8 `[h, w, 3]` as the smallest PNG found: with a palette where 256 colours do, or as RGB."""
    height, width, _ = pixels.shape
    candidates = [(2, b"", data) for data in _filtered(pixels)]
    colours, indices = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) <= 256:
        # Neighbouring entries of a palette mean nothing, so that filters never help there.
        rows = np.pad(indices.reshape(height, width).astype(np.uint8), ((0, 0), (1, 0)))
        candidates.append((3, _chunk(b"PLTE", colours.tobytes()), rows.tobytes()))
    files = []
    for colour_type, palette, data in candidates:
        header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))
        image = _chunk(b"IDAT", zlib.compress(data, 9))
        files.append(PNG_SIGNATURE + header + palette + image + _chunk(b"IEND", b""))
    return min(files, key=len)
