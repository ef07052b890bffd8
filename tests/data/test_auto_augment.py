"""AutoAugment's operations against Pillow's, and its policy's draws."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from trees import picture

from hap2s_jax.data.augment import DRAWS, Augmentation
from hap2s_jax.data.auto_augment import _POLICY, OPERATIONS, auto_augment
from hap2s_jax.data.draws import uniforms

IMAGE = np.clip(
    picture(5, 60, 44).astype(int) + np.random.default_rng(0).integers(-20, 21, (60, 44, 3)), 10, 230
).astype(np.uint8)
FILL = (1, 2, 3)


def pillow(name, image, strength):
    factor = 1 + 0.9 * strength
    return {
        "posterize": lambda i: ImageOps.posterize(i, 8 - round(4 * abs(strength))),
        "solarize": lambda i: ImageOps.solarize(i, 256 * (1 - abs(strength))),
        "invert": ImageOps.invert,
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "color": lambda i: ImageEnhance.Color(i).enhance(factor),
        "contrast": lambda i: ImageEnhance.Contrast(i).enhance(factor),
        "sharpness": lambda i: ImageEnhance.Sharpness(i).enhance(factor),
        "rotate": lambda i: i.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=FILL),
    }[name](Image.fromarray(image))


@pytest.mark.parametrize("strength", [-1.0, -4 / 9, 0.0, 5 / 9, 1.0])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "shear"])
def test_an_operation_is_pillows(name, strength):
    ours = OPERATIONS[name](IMAGE, strength, FILL).astype(int)
    difference = np.abs(ours - np.asarray(pillow(name, IMAGE, strength), int))
    if name == "rotate":  # where the edge of the image falls is another matter
        assert difference[20:40, 15:30].max() <= 1
        assert np.quantile(difference, 0.9) <= 2
    else:
        # Pillow rounds greys and products to whole numbers on the way.
        assert difference.max() <= {"color": 2, "contrast": 1, "sharpness": 2}.get(name, 0)


def test_shear_moves_rows_by_their_distance_from_the_middle():
    image = np.zeros((41, 41, 3), np.uint8)
    image[:, 20] = 200
    sheared = OPERATIONS["shear"](image, 1.0, FILL)
    assert sheared[20, 20, 0] == 200
    assert sheared[10, 20 + 3, 0] == 200
    assert sheared[30, 20 - 3, 0] == 200


def test_flat_images_stay_finite_and_flat():
    flat = np.full((8, 8, 3), 77, np.uint8)
    for name in ("autocontrast", "equalize", "contrast", "color", "sharpness"):
        np.testing.assert_array_equal(OPERATIONS[name](flat, 1.0, FILL), flat)


def test_a_pair_is_drawn_and_each_half_with_its_probability():
    assert len(_POLICY) == 25
    assert {half[0] for pair in _POLICY for half in pair} == set(OPERATIONS)
    # The first pair: posterize with 0.4, rotate with 0.6, here the first alone.
    before = IMAGE.copy()
    once = auto_augment(IMAGE, np.array([0.0, 0.39, 0.61, 0.0, 0.0]), FILL)
    np.testing.assert_array_equal(once, OPERATIONS["posterize"](IMAGE, 8 / 9, FILL))
    both = auto_augment(IMAGE, np.array([0.0, 0.39, 0.59, 0.0, 0.9]), FILL)
    np.testing.assert_array_equal(both, OPERATIONS["rotate"](once, -1.0, FILL))
    np.testing.assert_array_equal(auto_augment(IMAGE, np.array([0.0, 0.9, 0.9, 0.0, 0.0]), FILL), before)
    np.testing.assert_array_equal(IMAGE, before)


def test_a_share_of_the_images_is_changed_and_no_other_draw_moves():
    def run(u, **options):
        out = np.empty_like(IMAGE)
        Augmentation(flip=True, **options).finish(IMAGE, out, u)
        return out

    drawn = uniforms(0, 0, np.arange(200), DRAWS)
    np.testing.assert_array_equal(drawn[:, :25], uniforms(0, 0, np.arange(200), 25))
    changed = [not np.array_equal(run(u), run(u, auto_augment=0.5)) for u in drawn]
    # Of the half that is drawn some get a pair of which neither half is done.
    assert 50 < sum(changed) < 110
    for u in drawn[:50]:
        assert np.array_equal(run(u), run(u, auto_augment=0.5)) or u[25] < 0.5
