"""Test-time augmentation: an image's embedding as the mean over several views of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any  # an encoder's variables
Embed = Callable[[PyTree, jax.Array], jax.Array]
VIEWS = ("flip", "five_crops", "zooms")
# Sizes of the additional views of "zooms", relative to the whole image.
ZOOMS = (0.8, 0.9, 1.1, 1.25)
# Places of the crops: (0, 0) is the top left, (1, 1) the bottom right.
_PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))


def over_views(embed: Embed, views: Sequence[str], *, crop: float = 0.875, normalize: bool = False) -> Embed:
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
    if not (makers := _makers(views, crop)):
        return embed

    def embed_views(variables: PyTree, images: jax.Array) -> jax.Array:
        # A loop, so that the program contains the encoder only once, however many views there are.
        def add(total: jax.Array, view: jax.Array) -> tuple[jax.Array, None]:
            embedding = embed(variables, jax.lax.switch(view, makers, images))
            return total + (_unit(embedding) if normalize else embedding), None

        embedding = jax.eval_shape(lambda: embed(variables, _whole(images)))
        nothing = jnp.zeros(embedding.shape, embedding.dtype)
        total, _ = jax.lax.scan(add, nothing, jnp.arange(len(makers)))
        return _unit(total) if normalize else total / len(makers)

    return embed_views


def at_once(
    embed: Embed, views: Sequence[str], *, crop: float = 0.875, normalize: bool, size: tuple[int, int]
) -> Embed:
    """`over_views` of images `[n, *size, 3]` for converters that support neither loops nor branches.

    All views go through `embed` in one batch. Each is two products with constant matrices, one for either side of the
    image, since cutting, mirroring and resizing treat rows and columns apart.
    """
    if not (makers := _makers(views, crop)):
        return embed
    # Resizes images that are 1 in one row, or in one column, and 0 elsewhere.
    rows = np.broadcast_to(np.eye(size[0], dtype=np.float32)[:, :, None, None], (size[0], *size, 1))
    columns = np.broadcast_to(np.eye(size[1], dtype=np.float32)[:, None, :, None], (size[1], *size, 1))
    matrices = [
        (np.asarray(make(jnp.asarray(rows)))[:, :, 0, 0], np.asarray(make(jnp.asarray(columns)))[:, 0, :, 0])
        for make in makers
    ]

    def embed_views(variables: PyTree, images: jax.Array) -> jax.Array:
        def made(rows: np.ndarray, columns: np.ndarray) -> jax.Array:
            high = jnp.einsum("nhwc,hH->nHwc", _whole(images), rows, precision="highest")
            return jnp.einsum("nhwc,wW->nhWc", high, columns, precision="highest")

        embeddings = embed(variables, jax.lax.concatenate([made(*pair) for pair in matrices], 0))
        if normalize:
            embeddings = _unit(embeddings)
        total = embeddings.reshape(len(makers), -1, embeddings.shape[1]).sum(0)
        return _unit(total) if normalize else total / len(makers)

    return embed_views


def _makers(views: Sequence[str], crop: float) -> list[Callable[[jax.Array], jax.Array]]:
    """The functions that make the views of images; none without views. Raises ValueError for an unknown one."""
    unknown = [name for name in views if name not in VIEWS]
    if unknown:
        raise ValueError(f"views must be among {', '.join(VIEWS)}, but holds {unknown[0]!r}.")
    if not 0 < crop <= 1:
        raise ValueError(f"crop must lie between 0 and 1, but is {crop}.")

    if not views:
        return []
    makers: list[Callable[[jax.Array], jax.Array]] = [_whole]
    if "five_crops" in views:
        makers = [functools.partial(_crop, share=crop, place=place) for place in _PLACES]
    if "zooms" in views:
        makers += [functools.partial(_zoom, factor=factor) for factor in ZOOMS]
    if "flip" in views:
        makers += [functools.partial(_mirrored, make=make) for make in makers]
    return makers


def views_of(settings: Any) -> list[str]:  # a section of a config
    """The views that `config.evaluate` asks for, in the order of `VIEWS`."""
    return [name for name in VIEWS if settings[name]]


def _unit(rows: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(length == 0, 1, length)


def _whole(images: jax.Array) -> jax.Array:
    return jnp.asarray(images).astype(jnp.float32)


def _mirrored(images: jax.Array, make: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return make(images)[:, :, ::-1]


def _crop(images: jax.Array, share: float, place: tuple[float, float]) -> jax.Array:
    """The crop with `share` of the sides at `place`, enlarged to the size of the images `[n, h, w, 3]`."""
    height, width = images.shape[1:3]
    h, w = max(1, round(height * share)), max(1, round(width * share))
    top, left = int((height - h) * place[0]), int((width - w) * place[1])
    return _resized(images[:, top : top + h, left : left + w], images.shape)


def _zoom(images: jax.Array, factor: float) -> jax.Array:
    """Images `[n, h, w, 3]` at `factor` of their size about the centre, cut or edged to the size that they had."""
    sides = images.shape[1:3]
    beyond = [round(side * (1 / factor - 1) / 2) for side in sides]
    if factor > 1:
        top, left = (-margin for margin in beyond)
        shown = images[:, top : sides[0] - top, left : sides[1] - left]
    else:
        shown = jnp.pad(images, ((0, 0), *((margin, margin) for margin in beyond), (0, 0)), mode="edge")
    return _resized(shown, images.shape)


def _resized(images: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    images = _whole(images)
    return images if images.shape == shape else jax.image.resize(images, shape, "linear")
