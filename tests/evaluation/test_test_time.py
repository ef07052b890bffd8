"""Views of an image: what is averaged."""

from __future__ import annotations

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax.evaluation.test_time import ZOOMS, at_once, over_views


def embed(variables, images):
    """Top left pixel and mean of each image, so that mirror and crop both show."""
    x = jnp.asarray(images, jnp.float32)
    return variables * jnp.concatenate([x[:, 0, 0], x.mean(axis=(1, 2))], axis=1)


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3)).astype(np.uint8)


def test_no_views_is_the_function_itself():
    np.testing.assert_array_equal(over_views(embed, ())(2.0, IMAGES), embed(2.0, IMAGES))


def test_flip_averages_with_the_mirror_image():
    found = np.asarray(over_views(embed, ("flip",))(1.0, IMAGES))
    x = IMAGES.astype(np.float32)
    np.testing.assert_allclose(found[:, :3], (x[:, 0, 0] + x[:, 0, -1]) / 2)
    np.testing.assert_allclose(found[:, 3:], x.mean(axis=(1, 2)), rtol=1e-6)


def test_five_crops_are_the_corners_and_the_centre():
    found = np.asarray(over_views(embed, ("five_crops",), crop=0.5)(1.0, IMAGES))
    x = IMAGES.astype(np.float32)
    corners = [x[:, 2, 1], x[:, 0, 0], x[:, 0, 3], x[:, 4, 0], x[:, 4, 3]]
    np.testing.assert_allclose(found[:, :3], np.mean(corners, axis=0), rtol=1e-6)
    ten = over_views(embed, ("five_crops", "flip"), crop=1.0)(1.0, IMAGES)
    np.testing.assert_allclose(ten, over_views(embed, ("flip",))(1.0, IMAGES), rtol=1e-6)


def test_zooms_agree_with_opencv():
    image = cv2.GaussianBlur(
        np.random.default_rng(1).integers(0, 256, (40, 40, 3)).astype(np.uint8), (0, 0), 2
    )
    found = np.asarray(over_views(lambda _, x: x.astype(jnp.float32), ("zooms",))(None, image[None])[0])
    expected = [image.astype(np.float64)]
    for factor in ZOOMS:
        edge = 19.5 * (1 - factor)
        matrix = np.array([[factor, 0, edge], [0, factor, edge]])
        expected.append(cv2.warpAffine(image, matrix, (40, 40), borderMode=cv2.BORDER_REPLICATE))
    # Cuts are of whole pixels, and what becomes smaller is smoothed first.
    assert np.abs(found - np.mean(expected, axis=0)).mean() < 0.2
    assert np.abs(found - image).mean() > 2


def test_normalized_views_weigh_alike():
    found = np.asarray(over_views(lambda _, x: x[:, 0, 0] * 1.0, ("flip",), normalize=True)(None, IMAGES))
    sides = [IMAGES[:, 0, 0].astype(np.float64), IMAGES[:, 0, -1].astype(np.float64)]
    expected = np.mean([s / np.linalg.norm(s, axis=1, keepdims=True) for s in sides], axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("views", "crop", "message"),
    [
        (("rotate",), 0.9, "views must be among flip, five_crops, zooms, but holds 'rotate'"),
        ((), 0.0, "crop must lie"),
    ],
)
def test_bad_input_is_one_clear_error(views, crop, message):
    with pytest.raises(ValueError, match=message):
        over_views(embed, views, crop=crop)


@pytest.mark.parametrize("views", [("flip", "zooms"), ("five_crops", "flip"), ()])
@pytest.mark.parametrize("normalize", [True, False])
def test_all_at_once_gives_the_same(views, normalize):
    found = at_once(embed, views, normalize=normalize, size=(8, 6))(1.0, IMAGES)
    np.testing.assert_allclose(found, over_views(embed, views, normalize=normalize)(1.0, IMAGES), rtol=1e-5)
