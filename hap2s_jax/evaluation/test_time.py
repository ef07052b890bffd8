"""Test-time augmentation: an image's embedding as the mean over several views of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

VIEWS = ("flip", "five_crops", "zooms")
# How much larger or smaller than the whole image the further views of "zooms" are.
ZOOMS = (0.8, 0.9, 1.1, 1.25)


def over_views(
    embed: Callable[[Any, jax.Array], jax.Array],
    views: Sequence[str],
    *,
    crop: float = 0.875,
    normalize: bool = False,
) -> Callable[[Any, jax.Array], jax.Array]:
    """Wraps `embed(variables, images [b, h, w, 3]) -> [b, d]` so that it averages over views of each image.

    Args:
      embed: a pure function, compiled or not.
      views: "flip" adds every view's mirror image, "five_crops" takes the centre and the four corners, enlarged to
        the size that the encoder knows, instead of the whole image; "zooms" adds the whole image at `ZOOMS` of its
        size about its centre, its border repeated where it becomes smaller. Together they are 18 views, none is
        `embed` itself.
      crop: side of the crops as a share of the image's.
      normalize: whether every view's embedding, and their mean, are scaled to length 1.

    Returns:
      A function like `embed`; it holds one view at a time.
    """
    unknown = [name for name in views if name not in VIEWS]
    if unknown:
        raise ValueError(f"views must be among {', '.join(VIEWS)}, but holds {unknown[0]!r}.")
    if not 0 < crop <= 1:
        raise ValueError(f"crop must lie between 0 and 1, but is {crop}.")

    if not views:
        return embed

    def embed_views(variables: Any, images: jax.Array) -> jax.Array:
        parts = _five_crops(images, crop) if "five_crops" in views else [images]
        if "zooms" in views:
            parts = [*parts, *(_zoom(images, factor) for factor in ZOOMS)]
        if "flip" in views:
            parts = [*parts, *(part[:, :, ::-1] for part in parts)]
        total: Any = 0
        for part in parts:
            embedding = embed(variables, part)
            total = total + (_unit(embedding) if normalize else embedding)
        return _unit(total) if normalize else total / len(parts)

    return embed_views


def _unit(rows: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(length == 0, 1, length)


def _five_crops(images: jax.Array, crop: float) -> list[jax.Array]:
    height, width = images.shape[1:3]
    h, w = max(1, round(height * crop)), max(1, round(width * crop))
    top, left = height - h, width - w
    corners = [(top // 2, left // 2), (0, 0), (0, left), (top, 0), (top, left)]
    crops = [images[:, y : y + h, x : x + w] for y, x in corners]
    if (h, w) == (height, width):
        return crops
    return [jax.image.resize(crop.astype(jnp.float32), images.shape, "linear") for crop in crops]


def _zoom(images: jax.Array, factor: float) -> jax.Array:
    """Images `[n, h, w, 3]` at `factor` of their size about the centre, cut or edged to the size that they had."""
    sides = images.shape[1:3]
    beyond = [round(side * (1 / factor - 1) / 2) for side in sides]
    if factor > 1:
        top, left = (-margin for margin in beyond)
        shown = images[:, top : sides[0] - top, left : sides[1] - left]
    else:
        shown = jnp.pad(images, ((0, 0), *((margin, margin) for margin in beyond), (0, 0)), mode="edge")
    return jax.image.resize(shown.astype(jnp.float32), images.shape, "linear")
