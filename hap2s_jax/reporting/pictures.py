"""Pictures of retrievals and contact sheets, composed with Pillow without losing sharpness."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.reporting.captions import caption_height, draw_caption, font, shortened

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

# Blue and vermilion of Okabe and Ito (2008): told apart with every kind of colour vision, and in grey.
RIGHT, WRONG = "#0072B2", "#D55E00"
_INK, _GREY, _LINE, _PAPER = "#1f2328", "#6e7781", "#d8dee4", "#ffffff"
_TILE = 112  # Side of a shown image in pixels; if it is not square, the square root of its area.
_CELL = 40  # The side of a cell of the mosaic.
_FRAME, _GAP, _MARGIN = 6, 14, 28
_INSET = _FRAME + 3
_TICK = [[(0.27, 0.52), (0.44, 0.69), (0.74, 0.34)]]
_CROSS = [[(0.31, 0.31), (0.69, 0.69)], [(0.69, 0.31), (0.31, 0.69)]]
_FINE = 4  # Frames and marks are drawn this much larger and reduced: Pillow's own edges are jagged.


def retrievals(
    path: str | os.PathLike[str],
    query_images: npt.ArrayLike,
    neighbour_images: npt.ArrayLike,
    is_correct: npt.ArrayLike | None,
    *,
    query_captions: Sequence[str] | None = None,
    neighbour_captions: Sequence[Sequence[str]] | None = None,
    title: str = "Queries and their nearest neighbours",
    legend: Sequence[str] = ("same class", "another class"),
) -> None:
    """Draws one row per query: the query on the left, its neighbours by rank, right and wrong ones framed.

    Right ones are blue with a tick, wrong ones vermilion with a cross.

    Args:
      path: the PNG file to write (replaced at once, or left as it was).
      query_images: `[q, h, w, 3]`, uint8.
      neighbour_images: `[q, k, h, w, 3]`, uint8, nearest first; images that the protocol removes for a
        query (same class, same camera) must be left out by the caller.
      is_correct: `[q, k]`, bool: the neighbour has the query's class. None where nobody can say so: no frames.
      query_captions: `[q]`, under the queries; neighbour_captions: `[q][k]`, under the neighbours. Shortened
        to the image's width.
      title: the heading; legend: what right and wrong mean.

    Raises:
      ValueError: shapes that do not fit one another.
      UserError: the file cannot be written.
    """
    queries = _checked_images("query_images", query_images, 4)
    neighbours = _checked_images("neighbour_images", neighbour_images, 5)
    correct: Any = np.full(neighbours.shape[:2], None)
    if is_correct is None:
        legend = ()
    else:
        correct = np.asarray(is_correct, dtype=bool)
    if neighbours.shape[0] != len(queries) or correct.shape != neighbours.shape[:2]:
        raise ValueError(
            f"query_images, neighbour_images, is_correct are {queries.shape}, {neighbours.shape}, {correct.shape}; "
            "they should agree in [q, k]"
        )
    count, ranks = correct.shape
    names = query_captions if query_captions is not None else [""] * count
    below = neighbour_captions if neighbour_captions is not None else [[""] * ranks] * count
    if len(names) != count or [len(texts) for texts in below] != [ranks] * count:
        raise ValueError(
            f"captions have other lengths; they should be [q] and [q][k] texts, with q = {count} and k = {ranks}"
        )
    wide, high = (side + 2 * _INSET for side in _tile_size(queries))
    # The gap between the query and its neighbours is wider.
    columns = [_MARGIN, *(_MARGIN + wide + 3 * _GAP + rank * (wide + _GAP) for rank in range(ranks))]
    captions = [[name, *texts] for name, texts in zip(names, below, strict=True)]
    heights = [high + caption_height(texts, wide) + 2 * _GAP for texts in captions]
    top = _MARGIN + 84
    heading = font(26).getlength(title) + _legend_width(legend) + 2 * _MARGIN
    width = max(columns[-1] + wide + _MARGIN, round(heading))
    picture, draw = _canvas(width, top + sum(heights) - 2 * _GAP + _MARGIN)
    draw.text((_MARGIN, _MARGIN), title, _INK, font(26), anchor="lt")
    _draw_legend(picture, draw, width - _MARGIN, _MARGIN + 12, legend)
    for column, x in enumerate(columns):
        draw.text((x + wide / 2, top - 16), str(column or "query"), _GREY, font(17), anchor="ms")
    y = top
    for row, height in enumerate(heights):
        if row:
            draw.line([(_MARGIN, y - _GAP), (width - _MARGIN, y - _GAP)], _LINE)
        tiles = [_tile(queries[row], wide, high, inset=_INSET)]
        for image, right in zip(neighbours[row], correct[row].tolist(), strict=True):
            tiles.append(_tile(image, wide, high, right, inset=_INSET))
        for column, x in enumerate(columns):
            picture.paste(tiles[column], (x, y))
            draw_caption(draw, captions[row][column], x, y + high, wide, _GREY if column else _INK)
        y += height
    _save(picture, path)


def contact_sheet(
    images: Iterable[npt.NDArray[np.uint8]],
    captions: Sequence[str] | None,
    path: str | os.PathLike[str],
    *,
    columns: int | None = None,
    title: str | None = None,
) -> None:
    """Draws the images in rows, each with its caption below: to see what a reader or an augmentation gives.

    Args:
      images: `[n, h, w, 3]` uint8, or a sequence of n arrays `[h, w, 3]` of any sizes.
      captions: n texts, shortened to the image's width; or None.
      path: the PNG file to write.
      columns: images in a row; default: about as wide as high, at most 12.
      title: the heading.

    Raises:
      ValueError: no image, or not as many captions as images.
      UserError: the file cannot be written.
    """
    pictures = [_checked_images("images", image, 3) for image in images]
    if not pictures or (captions is not None and len(captions) != len(pictures)):
        raise ValueError(
            f"captions are {len(captions or ())}, images {len(pictures)}; they should be as many, at least one"
        )
    wide, high = _tile_size(pictures)
    columns = columns or min(12, max(1, round((1.5 * len(pictures)) ** 0.5)))
    row_height = high + caption_height(captions or (), wide) + _GAP
    top = _MARGIN + (50 if title else 0)
    rows = -(-len(pictures) // columns)
    width = 2 * _MARGIN + columns * (wide + _GAP) - _GAP
    picture, draw = _canvas(width, top + rows * row_height - _GAP + _MARGIN)
    if title:
        draw.text(
            (_MARGIN, _MARGIN),
            shortened(title, font(22), width - 2 * _MARGIN),
            _INK,
            font(22),
            anchor="lt",
        )
    for i, image in enumerate(pictures):
        x, y = _MARGIN + i % columns * (wide + _GAP), top + i // columns * row_height
        picture.paste(_tile(image, wide, high), (x, y))
        if captions:
            draw_caption(draw, captions[i], x, y + high, wide, _INK)
    _save(picture, path)


def mosaic(
    images: npt.NDArray[np.uint8],
    cells: npt.NDArray[np.int64],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    note: str = "",
) -> None:
    """Draws every image small in its own cell of a grid; the picture of `plots.embedding_map`.

    Args:
      images: `[n, h, w, 3]`, uint8.
      cells: `[n, 2]`, column and row, from 0 at the top left.
      path: the PNG file to write.
      title: the heading, left. note: smaller, right.

    Raises:
      UserError: the file cannot be written.
    """
    from PIL import Image

    images = _checked_images("images", images, 4)
    top = _MARGIN + (60 if title or note else 0)
    columns, rows = cells.max(axis=0) + 1
    heading = font(26).getlength(title) + font(18).getlength(note) + 3 * _MARGIN
    width = max(2 * _MARGIN + int(columns) * _CELL, round(heading))
    picture, draw = _canvas(width, top + int(rows) * _CELL + _MARGIN)
    draw.text((_MARGIN, _MARGIN + 12), title, _INK, font(26), anchor="lm")
    draw.text((width - _MARGIN, _MARGIN + 12), note, _GREY, font(18), anchor="rm")
    for image, (column, row) in zip(images, cells.tolist(), strict=True):
        scale = (_CELL - 2) / max(image.shape[:2])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
        corner = (
            _MARGIN + column * _CELL + (_CELL - size[0]) // 2,
            top + row * _CELL + (_CELL - size[1]) // 2,
        )
        picture.paste(small, corner)
    _save(picture, path)


def _checked_images(name: str, images: Any, rank: int) -> npt.NDArray[np.uint8]:
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != rank or array.shape[-1] != 3 or 0 in array.shape:
        shape = {3: "[h, w, 3]", 4: "[q, h, w, 3]", 5: "[q, k, h, w, 3]"}[rank]
        raise ValueError(f"{name} is {array.dtype} {array.shape}; it should be uint8 {shape} and not empty")
    return array


def _tile_size(images: Any) -> tuple[int, int]:
    """Width and height of a tile that suits the median shape of the images; odd shapes are fitted in."""
    aspect = float(np.median([image.shape[1] / image.shape[0] for image in images]))
    root = min(max(aspect, 0.4), 2.5) ** 0.5
    return round(_TILE * root), round(_TILE / root)


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), _PAPER)
    return picture, ImageDraw.Draw(picture)


def _tile(
    image: npt.NDArray[np.uint8], wide: int, high: int, is_correct: bool | None = None, *, inset: int = 0
) -> Image.Image:
    """The image, fitted into wide x high minus the inset; framed and marked if it is right or wrong."""
    from PIL import Image, ImageDraw

    room = (wide - 2 * inset, high - 2 * inset)
    scale = min(room[0] / image.shape[1], room[1] / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (wide, high), _PAPER)
    tile.paste(small, ((wide - size[0]) // 2, (high - size[1]) // 2))
    if is_correct is None:
        return tile
    colour = RIGHT if is_correct else WRONG
    frame = Image.new("L", (wide * _FINE, high * _FINE), 0)
    box = (0, 0, wide * _FINE - 1, high * _FINE - 1)
    ImageDraw.Draw(frame).rounded_rectangle(box, 14 * _FINE, outline=255, width=_FRAME * _FINE)
    tile.paste(colour, mask=frame.reduce(_FINE))
    mark = _mark(30, is_correct)
    tile.paste(mark, (wide - mark.width, high - mark.height), mark)
    return tile


def _mark(size: int, is_correct: bool) -> Image.Image:
    """A white tick or cross on a disc, with transparency."""
    from PIL import Image, ImageDraw

    fine = size * _FINE
    disc = Image.new("RGBA", (fine, fine), RIGHT if is_correct else WRONG)
    alpha = Image.new("L", (fine, fine), 0)
    ImageDraw.Draw(alpha).ellipse((0, 0, fine - 1, fine - 1), fill=255)
    draw, thick = ImageDraw.Draw(disc), fine // 8
    for stroke in _TICK if is_correct else _CROSS:
        points = [(x * fine, y * fine) for x, y in stroke]
        draw.line(points, "white", thick, joint="curve")
        for x, y in points:
            draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill="white")
    disc.putalpha(alpha)
    return disc.reduce(_FINE)


def _legend_width(legend: Sequence[str]) -> float:
    return sum(font(18).getlength(text) + 26 + 8 + 28 for text in legend)


def _draw_legend(
    picture: Image.Image, draw: ImageDraw.ImageDraw, right: float, middle: float, legend: Sequence[str]
) -> None:
    left = right - _legend_width(legend)
    for text, is_correct in zip(legend, (True, False), strict=False):
        mark = _mark(26, is_correct)
        picture.paste(mark, (round(left + 28), round(middle - mark.height / 2)), mark)
        draw.text((left + 28 + 26 + 8, middle), text, _INK, font(18), anchor="lm")
        left += _legend_width([text])


def _save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, "PNG")
