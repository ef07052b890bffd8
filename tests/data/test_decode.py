"""Decoding: every kind of file that stands in people's folders under the name .jpg."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from trees import encoded, picture, png16

from hap2s_jax.data.pixels import UnreadableImageError, Window, cut, decode_whole, image_shape, reduction

IMAGE = picture(1, 48, 64)


FILES = {
    "jpeg": encoded(IMAGE),
    "cmyk": encoded(IMAGE, "JPEG", "CMYK"),
    "grey": encoded(IMAGE, "JPEG", "L"),
    "png": encoded(IMAGE, "PNG"),
    "rgba": encoded(IMAGE, "PNG", "RGBA"),
    "grey-png": encoded(IMAGE, "PNG", "L"),
    "palette": encoded(IMAGE, "PNG", "P"),
    "bits": encoded(IMAGE, "PNG", "1"),
    "gif": encoded(IMAGE, "GIF", "P"),
    "bmp": encoded(IMAGE, "BMP"),
    "webp": encoded(IMAGE, "WEBP"),
    "tiff": encoded(IMAGE, "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_becomes_rgb(name):
    data = FILES[name]
    image = decode_whole(data)
    assert image.dtype == np.uint8
    assert image_shape(data) == (48, 64)
    # Decoders of lossy files differ in how they enlarge the chroma.
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(image - expected).max() <= (8 if name in ("jpeg", "cmyk", "grey", "webp") else 0)
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0] = 0


def test_sixteen_bits_become_eight():
    assert np.abs(decode_whole(png16(IMAGE)).astype(int) - IMAGE).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.6])
def test_truncated_files_are_refused(kind, kept):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = encoded(image, kind, "P" if kind == "GIF" else "RGB")
    with pytest.raises(UnreadableImageError):
        decode_whole(data[: int(kept * len(data))])


def test_text_is_no_image():
    for read in (decode_whole, image_shape):
        with pytest.raises(UnreadableImageError, match="not an image in a known format"):
            read(b"<html>404</html>")


def test_large_jpegs_are_decoded_at_a_fraction_but_never_below_the_size():
    assert [reduction((400, 600), size) for size in ((45, 70), (60, 70), (400, 70), (500, 500))] == [
        8,
        4,
        1,
        1,
    ]
    data = encoded(picture(2, 400, 600))
    assert decode_whole(data, 8).shape == (50, 75, 3)
    # A part then covers the same place.
    part = cut(decode_whole(data, 4), Window(100, 200, 200, 300), 4)
    assert part.shape == (50, 75, 3)
    whole = decode_whole(data).astype(float)
    blocks = whole[100:300, 200:500].reshape(50, 4, 75, 4, 3).mean(axis=(1, 3))
    assert np.abs(part - blocks).max() < 4


def test_a_chunk_of_a_png_that_promises_more_than_there_is():
    """Decoders make room for all that it promises."""
    whole = encoded(IMAGE, "PNG")
    assert decode_whole(whole + b"trailing bytes").shape == IMAGE.shape
    with pytest.raises(UnreadableImageError, match="the image is damaged"):
        decode_whole(whole[:33] + (2**31 - 1).to_bytes(4, "big") + b"tEXt" + whole[33:])


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_scans_without_end(progressive):
    """Each goes over all pixels, however few bytes it has."""
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "JPEG", progressive=progressive)
    data = file.getvalue()
    assert decode_whole(data).shape == IMAGE.shape
    frame = data.find(b"\xff\xc2" if progressive else b"\xff\xc0")
    scan = data.find(b"\xff\xda")
    large = data[: frame + 5] + (16000).to_bytes(2, "big") * 2 + data[frame + 9 : scan]
    # Of one channel each.
    one = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + bytes(4)
    with pytest.raises(UnreadableImageError, match="300 times over"):
        decode_whole(large + 300 * one + b"\xff\xd9")
