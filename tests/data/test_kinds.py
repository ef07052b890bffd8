"""The kinds of image files that people have: orientation, transparency, other formats, promises too large to keep."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import threading
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from trees import encoded, picture

from hap2s_jax.data import pixels
from hap2s_jax.data.headers import UnreadableImageError, read_header
from hap2s_jax.data.pixels import Decoding, decode_whole, image_shape

SIZE = (48, 64)
STORED = picture(1, *SIZE)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def turned(orientation: int, kind: str = "JPEG", image: np.ndarray = STORED, **options) -> bytes:
    lossless = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    return saved(
        Image.fromarray(image), kind, exif=turned_exif(orientation), **lossless.get(kind, {}), **options
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_in_every_format_that_has_one(kind, orientation):
    if kind == "AVIF":
        pytest.importorskip("PIL._avif")
    data = turned(orientation, kind)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    assert image_shape(data) == expected.shape[:2] == (SIZE if orientation < 5 else SIZE[::-1])
    assert np.abs(decode_whole(data) - expected).max() <= (8 if kind in ("JPEG", "AVIF") else 0)
    if kind != "TIFF":  # which decoders always turn upright
        expected, as_stored = STORED.astype(int), Decoding(exif=False)
        assert image_shape(data, as_stored) == SIZE
        assert np.abs(decode_whole(data, decoding=as_stored) - expected).max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_fractions_are_those_of_the_upright_image(orientation):
    image = picture(3, 400, 640)
    data = turned(orientation, image=image, quality=95)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    box = np.array([40, 80, 360, 320])  # decoded at a quarter
    seen = pixels.for_evaluation(data, (60, 80), box=box)
    expected = np.asarray(Image.fromarray(upright[80:320, 40:360]).resize((80, 60), Image.Resampling.BOX))
    assert np.abs(seen.astype(int) - expected).mean() < 2
    seen = pixels.for_evaluation(data, (60, 80), box=box, decoding=Decoding(exif=False))
    expected = np.asarray(Image.fromarray(image[80:320, 40:360]).resize((80, 60), Image.Resampling.BOX))
    assert np.abs(seen.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_that_opencv_does_not_read_are_upright_too(orientation):
    exif = turned_exif(orientation)
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (6, 9)).astype(np.uint16))
    for image in (Image.fromarray(np.dstack([STORED, np.full(SIZE, 255, np.uint8)])), grey):
        data = saved(image, "TIFF", exif=exif)
        levels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        expected = levels[..., :3] if levels.ndim == 3 else np.repeat((levels >> 8)[..., None], 3, axis=2)
        np.testing.assert_array_equal(decode_whole(data), expected)


@pytest.mark.parametrize(
    "block", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"no"]
)
def test_damaged_exif_means_upright(block):
    stream = encoded(STORED)
    data = stream[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block + stream[2:]
    np.testing.assert_array_equal(decode_whole(data), decode_whole(stream))
    assert read_header(turned(9)).orientation == 1


RGB = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (16, 24), np.uint8)
ALPHA[:4], ALPHA[4:8] = 0, 255
CUT_OUT = Image.fromarray(np.dstack([RGB, ALPHA]))
PALETTE = Image.fromarray(RGB).quantize(16)


def _png(bits: int, colours: int, samples: np.ndarray, key: tuple[int, ...] = ()) -> bytes:
    """A PNG that Pillow cannot write, with a transparent colour."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 24, 16, bits, colours, 0, 0, 0))]
    parts += [(b"tRNS", struct.pack(f">{len(key)}H", *key))] if key else []
    rows = samples.astype(">u2" if bits == 16 else "u1").reshape(16, -1)
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


WIDE = RGB.astype(int) * 257
TRANSPARENT = {
    "rgba": (saved(CUT_OUT, "PNG"), RGB, ALPHA),
    "grey": (saved(CUT_OUT.convert("LA"), "PNG"), None, ALPHA),
    "palette-index": (saved(PALETTE, "PNG", transparency=3), None, None),
    "palette-bytes": (saved(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))), None, None),
    "rgb-key": (saved(Image.fromarray(RGB), "PNG", transparency=tuple(map(int, RGB[2, 3]))), RGB, None),
    "grey-key": (saved(Image.fromarray(RGB[..., 0]), "PNG", transparency=int(RGB[2, 3, 0])), None, None),
    "rgba-16": (_png(16, 6, np.dstack([WIDE, ALPHA.astype(int) * 257])), RGB, ALPHA),
    "grey-16": (_png(16, 4, np.dstack([WIDE[..., 0], ALPHA.astype(int) * 257])), None, ALPHA),
    "gif": (saved(PALETTE, "GIF", transparency=3), None, None),
    "webp": (saved(CUT_OUT, "WEBP", lossless=True, exact=True), RGB, ALPHA),
    "tiff": (saved(CUT_OUT, "TIFF"), RGB, ALPHA),
    "jp2": (saved(CUT_OUT, "JPEG2000", irreversible=False), RGB, ALPHA),
}


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 90)])
def test_transparent_images_lie_on_the_background(name, background):
    data, colours, alpha = TRANSPARENT[name]
    layers = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    if colours is not None:  # the oracle itself is right
        assert np.abs(layers[..., :3][ALPHA > 0].astype(int) - colours[ALPHA > 0]).max() == 0
    if alpha is not None:
        np.testing.assert_array_equal(layers[..., 3], alpha)
    share = layers[..., 3:] / 255
    expected = layers[..., :3] * share + np.array(background) * (1 - share)
    image = decode_whole(data, decoding=Decoding(background=background))
    assert np.abs(image - expected).max() <= 0.5
    assert (layers[..., 3] == 0).any()
    assert (image[layers[..., 3] == 0] == background).all()


def test_a_transparent_grey_of_sixteen_bits():
    data = _png(16, 0, WIDE[..., 0], (int(WIDE[2, 3, 0]),))
    image = decode_whole(data, decoding=Decoding(background=(1, 2, 3)))
    clear = RGB[..., 0] == RGB[2, 3, 0]
    assert (image[clear] == (1, 2, 3)).all()
    assert (image[~clear] == RGB[..., :1][~clear]).all()


def test_without_a_background_transparency_is_dropped_and_opaque_images_are_as_they_were():
    np.testing.assert_array_equal(
        decode_whole(saved(CUT_OUT, "PNG"), decoding=Decoding(background=None)), RGB
    )
    opaque = Image.fromarray(np.dstack([RGB, np.full_like(ALPHA, 255)]))
    np.testing.assert_array_equal(decode_whole(saved(opaque, "PNG")), RGB)


def test_a_transparent_image_with_an_orientation():
    data = saved(CUT_OUT, "PNG", exif=turned_exif(6))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    image = decode_whole(data)
    assert (image[upright[..., 3] == 0] == 255).all()
    np.testing.assert_array_equal(image[upright[..., 3] == 255], upright[..., :3][upright[..., 3] == 255])


@pytest.mark.parametrize("kind", ["PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_other_kinds_that_are_read(kind, mode):
    if kind == "AVIF":
        pytest.importorskip("PIL._avif")
    data = saved(Image.fromarray(STORED).convert(mode), kind, **({"quality": 100} if kind == "AVIF" else {}))
    expected = np.asarray(Image.fromarray(STORED).convert(mode).convert("RGB")).astype(int)
    assert image_shape(data) == SIZE
    assert np.abs(decode_whole(data) - expected).max() <= (0 if kind == "PPM" else 12)
    with pytest.raises(UnreadableImageError):
        decode_whole(data[: len(data) // 2])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_tiff_of_32_bits_is_named(dtype):
    for image in (RGB, RGB[..., 0]):
        data = cv2.imencode(".tiff", image.astype(dtype))[1].tobytes()
        with pytest.raises(UnreadableImageError, match="32 bits, whose white level is unknown"):
            decode_whole(data)


def promising(side: int) -> dict[str, bytes]:
    """Files of a few hundred bytes whose headers promise `side` x `side` pixels."""
    small = {kind: encoded(picture(1, 32, 32), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM")}
    frame = small["JPEG"].index(b"\xff\xc0") + 5
    tags = bytearray(small["TIFF"])
    for tag in (256, 257):
        at = (
            tags.index(struct.pack("<HHII", tag, 4, 1, 32))
            if struct.pack("<HHII", tag, 4, 1, 32) in tags
            else None
        )
        at = tags.index(struct.pack("<HHI", tag, 3, 1)) if at is None else at
        tags[at : at + 12] = struct.pack("<HHII", tag, 4, 1, side)
    jp2 = saved(Image.fromarray(picture(1, 32, 32)), "JPEG2000")
    return {
        "jpeg": small["JPEG"][:frame] + struct.pack(">HH", side, side) + small["JPEG"][frame + 4 :],
        "png": small["PNG"][:16] + struct.pack(">II", side, side) + small["PNG"][24:],
        "gif": small["GIF"][:6] + struct.pack("<HH", side, side) + small["GIF"][10:],
        "bmp": small["BMP"][:18] + struct.pack("<ii", side, side) + small["BMP"][26:],
        "tiff": bytes(tags),
        "ppm": small["PPM"].replace(b"32 32", f"{side} {side}".encode()),
        "jp2": jp2.replace(struct.pack(">II", 32, 32), struct.pack(">II", side, side)),
    }


@pytest.mark.parametrize("kind", promising(1000))
def test_too_many_pixels_are_refused_by_the_header_in_every_format(kind, monkeypatch):
    data = promising(20_000)[kind]
    monkeypatch.setattr(pixels, "imdecode", lambda *_: pytest.fail("decoded"))
    for read in (decode_whole, image_shape, lambda data: pixels.for_evaluation(data, (8, 8))):
        with pytest.raises(UnreadableImageError, match=r"20000 x 20000 pixels, more than the 268,435,456"):
            read(data)
    assert image_shape(data, Decoding(max_pixels=10**9)) == (20_000, 20_000)


def test_the_decoders_own_lines_stay_off_the_terminal_and_others_do_not(capfd):
    rng = np.random.default_rng(0)
    damaged = []
    for kind in ("JPEG", "PNG"):
        for _ in range(20):
            data = bytearray(encoded(picture(1, 64, 96), kind))
            place = int(rng.integers(len(data) // 3, len(data) - 4))
            data[place : place + 4] = rng.bytes(4)
            damaged.append(bytes(data))

    def decode_all():
        for data in damaged:
            with contextlib.suppress(UnreadableImageError):
                decode_whole(data)

    threads = [threading.Thread(target=decode_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capfd.readouterr() == ("", "")
    print("ours", file=sys.stderr)
    os.write(2, b"too\n")
    assert capfd.readouterr().err == "ours\ntoo\n"


def test_a_box_outside_or_empty_is_refused_and_one_that_leans_out_is_cut():
    def choose(height, width):
        return 0, 0, height, width

    assert pixels.place(50, 60, choose, np.array([40, 30, 90, 80])) == (30, 40, 20, 20)
    assert pixels.place(50, 60, choose, np.zeros(4)) == (0, 0, 50, 60)  # no box
    for box in ([60, 0, 90, 20], [-5, 0, 0, 20], [10, 10, 10, 20], [30, 10, 20, 20]):
        with pytest.raises(
            UnreadableImageError, match=r"its box .* is empty, or outside the image of 60 x 50"
        ):
            pixels.place(50, 60, choose, np.array(box))
