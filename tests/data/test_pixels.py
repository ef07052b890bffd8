"""What evaluation sees of an image: the same without TensorFlow, from the cache, and from the header's promise."""

from __future__ import annotations

import io
import json
import pathlib
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from trees import encoded, picture

from hap2s_jax.data import pixels
from hap2s_jax.data.batches import Reading, eval_batches

KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")


class _Memory:
    """A source of encoded images in memory."""

    name = "memory"
    cameras = None
    class_names = ("a",)

    def __init__(self, files, boxes=None):
        self.files, self.boxes = files, boxes
        self.labels = np.zeros(len(files), np.int32)

    def __len__(self):
        return len(self.files)

    def read(self, index):
        return self.files[index]

    def describe(self, index):
        return f"file {index}"


def _jpeg(image, **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", **options)
    return stream.getvalue()


FILES = [encoded(picture(n, 60 + 37 * n, 300 - 31 * n), kind) for n, kind in enumerate(KINDS)]
FILES += [_jpeg(picture(9, 301, 447), subsampling=2, quality=80), _jpeg(picture(8, 97, 33), progressive=True)]
BOXES = np.array([[5, 3, 40 + n, 50] for n in range(len(FILES))], np.int32)


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize("boxes", [None, BOXES])
@pytest.mark.parametrize("options", [{}, {"enlarge": 256 / 224, "keep_aspect": True}])
def test_the_pipeline_and_a_single_image_agree_to_the_bit(cache_bytes, boxes, options):
    source, size = _Memory(FILES, boxes), (24, 20)
    for _ in range(2):  # the second pass comes from what was kept
        made = eval_batches(
            source, Reading(size, cache_bytes=cache_bytes, num_workers=2), batch_size=3, **options
        )
        seen = np.concatenate([batch["image"][batch["mask"]] for batch in made])
        for number, file in enumerate(FILES):
            box = None if boxes is None else boxes[number]
            alone = pixels.for_evaluation(file, size, box=box, **options)
            np.testing.assert_array_equal(seen[number], alone, str(number))


def test_whole_images_are_what_tensorflow_decodes():
    from hap2s_jax.data.tf.quiet import tf

    rng = np.random.default_rng(0)
    for image in (picture(1, 48, 64), picture(2, 301, 447), rng.integers(0, 256, (77, 103, 3), np.uint8)):
        for subsampling in (0, 1, 2):
            data = _jpeg(image, subsampling=subsampling)
            for ratio in (1, 2, 4, 8):
                theirs = tf.raw_ops.DecodeJpeg(
                    contents=data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
                )
                np.testing.assert_array_equal(pixels.decode_whole(data, ratio), theirs.numpy())
    for kind in ("PNG", "GIF", "BMP"):
        data = encoded(picture(3, 48, 64), kind)
        theirs = tf.raw_ops.DecodeImage(contents=data, channels=3, expand_animations=False)
        np.testing.assert_array_equal(pixels.decode_whole(data), theirs.numpy())


def test_an_array_is_treated_as_the_file_that_holds_it():
    image = picture(4, 90, 70)
    for options in ({}, {"enlarge": 1.2, "keep_aspect": True}):
        from_file = pixels.for_evaluation(encoded(image, "PNG"), (32, 16), **options)
        np.testing.assert_array_equal(pixels.for_evaluation(image, (32, 16), **options), from_file)


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_tells_the_shape(kind):
    data = encoded(picture(1, 48, 64), kind)
    assert pixels.image_shape(data) == (48, 64)
    with pytest.raises(pixels.UnreadableImageError, match=r"damaged|not an image"):
        pixels.image_shape(data[:9])


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_of_every_kind(lossless):
    for exif in (b"", b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"):
        stream = io.BytesIO()
        Image.fromarray(picture(1, 49, 65)).save(stream, "WEBP", lossless=lossless, exif=exif)
        assert pixels.image_shape(stream.getvalue()) == (49, 65)


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few hundred bytes whose header promises `side` x `side` pixels."""
    chunk = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", chunk), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_more_pixels_than_allowed_are_refused_by_the_header():
    with pytest.raises(pixels.UnreadableImageError, match=r"60000 x 60000 pixels, more than the 1,000,000"):
        pixels.for_evaluation(bomb(), (8, 8), decoding=pixels.Decoding(max_pixels=1_000_000))
    with pytest.raises(pixels.UnreadableImageError):  # more than OpenCV's own limit
        pixels.for_evaluation(bomb(), (8, 8))


def test_nothing_is_printed_about_what_cannot_be_read(capfd):
    whole = [encoded(picture(1, 48, 64), kind) for kind in KINDS]
    for data in (b"", b"<html>", bomb(), *(data[: len(data) // 2] for data in whole)):
        with pytest.raises(pixels.UnreadableImageError):
            pixels.decode_whole(data)
    assert capfd.readouterr() == ("", "")


def test_an_old_bitmap_header_of_16_bits_tells_the_shape():
    header = b"BM" + struct.pack("<IHHI", 26 + 3 * 4 * 2, 0, 0, 26) + struct.pack("<IHHHH", 12, 3, 2, 1, 24)
    rows = np.arange(2 * 12, dtype=np.uint8).tobytes()  # rows of 9 bytes, padded to 12
    assert pixels.image_shape(header + rows) == (2, 3)
    assert pixels.decode_whole(header + rows).shape == (2, 3, 3)


@pytest.mark.parametrize("how", [(1.1, True), (256 / 224, False), (1.0, True)])
def test_the_preprocessing_that_the_page_shows_is_exact(tmp_path, monkeypatch, how):
    page = pathlib.Path(__file__).parents[2] / "docs" / "use.md"
    (code,) = (
        b for b in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if "def preprocess" in b
    )
    settings = {"enlarge": how[0], "keep_aspect": how[1]}
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "preprocessing.json").write_text(
        json.dumps({"image_size": [64, 48], **settings})
    )
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code, scope)
    exif = Image.Exif()
    exif[274] = 6
    for size in ((64, 64), (61, 50), (150, 131), (640, 411)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8))
        for name, options in (("x.png", {}), ("x.jpg", {"exif": exif})):
            image.resize(size, Image.Resampling.BICUBIC).save(name, **options)
            expected = pixels.for_evaluation(pathlib.Path(name).read_bytes(), (64, 48), **settings)
            np.testing.assert_array_equal(scope["preprocess"](name), expected)


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "png"), ("LA", "png"), ("RGBA", "webp"), ("RGBA", "tiff")]
)
def test_every_row_of_a_transparent_image_lies_on_the_background(mode, kind):
    random = np.random.default_rng(0)  # more rows than are mixed at a time
    stored = random.integers(0, 256, (700, 600, len(mode)), np.uint8)
    file = io.BytesIO()
    Image.fromarray(stored, mode).save(
        file, kind, **({"lossless": True, "exact": True} if kind == "webp" else {})
    )
    alpha = stored[..., -1:] / 255
    mixed = np.broadcast_to(stored[..., :-1], (700, 600, 3)) * alpha + np.array([0, 100, 255]) * (1 - alpha)
    found = pixels.decode_whole(file.getvalue(), decoding=pixels.DEFAULT._replace(background=(0, 100, 255)))
    assert np.abs(found - mixed).max() <= 0.5 + 1e-6
