"""Augmentation: each change does what its name says, and nothing happens by default."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from trees import picture

from hap2s_jax.data.augment import DRAWS, IMAGENET_MEAN, Augmentation
from hap2s_jax.data.draws import uniforms
from hap2s_jax.data.pixels import centre_part, resize
from hap2s_jax.errors import UserError

IMAGE = picture(3, 64, 48)
MIDDLE = np.full(DRAWS, 0.5)


def run(augmentation, u=MIDDLE, image=IMAGE, size=None):
    size = size or image.shape[:2]
    top, left, height, width = augmentation.part(*image.shape[:2], size, u)
    assert 0 <= top <= top + height <= image.shape[0]
    assert 0 <= left <= left + width <= image.shape[1]
    out = np.empty((*size, 3), np.uint8)
    augmentation.finish(image[top : top + height, left : left + width], out, u)
    return out


def draws(count=200, seed=0):
    return uniforms(seed, 0, np.arange(count), DRAWS)


def test_the_defaults_only_resize():
    for u in draws(20):
        np.testing.assert_array_equal(run(Augmentation(), u), IMAGE)
        np.testing.assert_array_equal(run(Augmentation(), u, size=(32, 20)), resize(IMAGE, (32, 20)))


def test_flip_mirrors_half_of_them():
    outs = [run(Augmentation(flip=True), u) for u in draws()]
    mirrored = sum(np.array_equal(out, IMAGE[:, ::-1]) for out in outs)
    assert mirrored + sum(np.array_equal(out, IMAGE) for out in outs) == len(outs)
    assert 80 < mirrored < 120


def test_flip_is_the_same_in_a_warp():
    # A shift too small to see takes the other path through the code.
    for u in draws(20):
        warped = run(Augmentation(flip=True, shift=1e-9), u)
        assert np.abs(warped.astype(int) - run(Augmentation(flip=True), u)).max() <= 1


def test_pad_shifts_by_whole_pixels_and_fills():
    augmentation = Augmentation(crop="pad", pad=5, fill=(1, 2, 3))
    seen = set()
    for u in draws():
        out = run(augmentation, u)
        for dy in range(-5, 6):
            for dx in range(-5, 6):
                padded = np.full((64 + 10, 48 + 10, 3), (1, 2, 3), np.uint8)
                padded[5 + dy : 69 + dy, 5 + dx : 53 + dx] = IMAGE
                if np.array_equal(out, padded[5:-5, 5:-5]):
                    seen.add((dy, dx))
                    break
            else:
                continue
            break
        else:
            pytest.fail("not a whole-pixel shift")
    assert {dy for dy, _ in seen} == {dx for _, dx in seen} == set(range(-5, 6))


def test_shift_in_a_warp_goes_where_it_says():
    u = MIDDLE.copy()
    u[6], u[7] = 1.0, 0.0  # down and to the left, by as much as allowed
    out = run(Augmentation(shift=0.25, fill=(9, 9, 9)), u)
    assert (out[:16] == 9).all()
    assert (out[:, -12:] == 9).all()
    assert np.abs(out[16:, :-12].astype(int) - IMAGE[:-16, 12:]).max() <= 1


def test_scale_zooms_about_the_centre():
    image = np.zeros((64, 64, 3), np.uint8)
    image[24:40, 24:40] = 255
    out = run(Augmentation(scale=(2.0, 2.0)), image=image)
    assert abs(int((out[..., 0] > 127).sum()) - 32 * 32) < 70
    assert out[20, 20].min() > 200
    assert out[12, 12].max() < 50


def test_rotation_keeps_a_disc_and_turns_a_bar():
    y, x = np.mgrid[:65, :65] - 32
    disc = np.repeat(((x**2 + y**2 < 400) * 255).astype(np.uint8)[..., None], 3, 2)
    u = MIDDLE.copy()
    u[8] = 1.0
    turned = run(Augmentation(rotate=90, fill=(0, 0, 0)), u, disc)
    assert np.mean(turned != disc) < 0.05
    bar = np.repeat(((abs(y) < 4) * 255).astype(np.uint8)[..., None], 3, 2)
    assert (
        np.mean(np.abs(run(Augmentation(rotate=90), u, bar).astype(int) - bar.transpose(1, 0, 2)) > 40) < 0.03
    )


def test_brightness_and_contrast_are_what_they_say():
    u = MIDDLE.copy()
    u[9] = 1.0
    flat = np.full((8, 8, 3), 100, np.uint8)
    assert run(Augmentation(brightness=0.2), u, flat)[0, 0].tolist() == [151] * 3
    u = MIDDLE.copy()
    u[10] = 0.0
    assert run(Augmentation(contrast=0.5), u, flat)[0, 0, 0] in (113, 114)  # half-way from 100 to 127.5


def test_color_mixing_is_a_matrix_near_the_identity():
    image = np.random.default_rng(0).integers(60, 180, (16, 16, 3), np.uint8)
    for u in draws(20):
        out = run(Augmentation(color_mix=0.1), u, image)
        matrix, *_ = np.linalg.lstsq(
            image.reshape(-1, 3).astype(float), out.reshape(-1, 3).astype(float), rcond=None
        )
        assert np.abs(matrix - np.eye(3)).max() <= 0.105
        assert np.abs(matrix - np.eye(3)).max() > 0.01


def test_erasing_paints_one_rectangle_within_its_bounds():
    augmentation = Augmentation(erase_probability=0.5, erase_color=(255, 0, 255))
    erased = 0
    for u in draws():
        changed = (run(augmentation, u) != IMAGE).any(axis=2)
        if changed.any():
            erased += 1
            rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
            assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert 0.01 < changed.mean() < 0.45
    assert 80 < erased < 120


def test_resized_crops_keep_their_area_and_ratio():
    augmentation = Augmentation(crop="resized", crop_area=(0.2, 0.5), crop_ratio=(0.5, 2.0))
    parts = np.array([augmentation.part(300, 300, (64, 64), u) for u in draws()])
    area, ratio = parts[:, 2] * parts[:, 3] / 300**2, parts[:, 3] / parts[:, 2]
    assert area.min() > 0.19
    assert area.max() < 0.51
    assert 0.49 < ratio.min() < 0.6
    assert 1.7 < ratio.max() < 2.02


def test_random_crop_is_resize_and_crop():
    # "Resize to 256, crop 224" of a 500x375 image takes a square of 375 * 224 / 256 pixels.
    augmentation = Augmentation(crop="random", enlarge=256 / 224, keep_aspect=True)
    parts = np.array([augmentation.part(375, 500, (224, 224), u) for u in draws()])
    assert set(parts[:, 2]) == set(parts[:, 3]) == {328}
    assert parts[:, 0].min() < 5
    assert parts[:, 0].max() > 375 - 328 - 5
    # TriNet's 256x128 out of 288x144 squeezes instead.
    assert Augmentation(crop="random", enlarge=1.125).part(144, 80, (256, 128), MIDDLE)[2:] == (128, 71)


def test_centre_part_is_resize_and_centre_crop():
    assert centre_part(375, 500, (224, 224), enlarge=256 / 224, keep_aspect=True) == (23, 86, 328, 328)
    assert centre_part(375, 500, (224, 224)) == (0, 0, 375, 500)
    assert centre_part(100, 300, (50, 100), keep_aspect=True) == (0, 50, 100, 200)


def test_one_change_more_leaves_the_others_alone():
    for u in draws(20):
        parts = [Augmentation(crop="resized", flip=flip).part(90, 80, (64, 64), u) for flip in (False, True)]
        assert parts[0] == parts[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", "centre"),
        ("enlarge", 0.5),
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (0.5, 0.2)),
        ("crop_ratio", (0.5, 1.0, 2.0)),
        ("scale", (0.0, 1.0)),
        ("shift", 2.0),
        ("brightness", -0.1),
        ("erase_probability", 1.5),
        ("erase_area", (0.1, 1.5)),
        ("pad", -1),
        ("rotate", 360.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=rf"augment\.{field}\b"):
        Augmentation(**{field: value})


def test_fields_are_plain_values_that_a_config_can_hold():
    fields = dataclasses.asdict(Augmentation())
    assert Augmentation(**fields) == Augmentation()
    assert fields["fill"] == IMAGENET_MEAN
