"""Text under and over images: font, line breaks, height."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hap2s_jax.errors import shown

_SIZE, _LINE_HEIGHT, _ABOVE = 14, 18, 6
_LONGEST = 500  # letters; no picture has room for more


@functools.cache
def font(size: int) -> Any:
    """Pillow's font object, `size` in pixels."""
    # Cached: a picture asks for its few sizes hundreds of times. Not Pillow's built-in face, which knows
    # Latin only: Matplotlib ships one that knows most alphabets.
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def draw_caption(draw: Any, text: str, x: float, y: float, wide: int, colour: str) -> None:
    """Writes the text centred below y, between x and x + wide, in at most two lines."""
    face = font(_SIZE)
    for number, line in enumerate(_wrapped(text, face, wide)):
        draw.text((x + wide / 2, y + _ABOVE + number * _LINE_HEIGHT), line, colour, face, anchor="ma")


def caption_height(captions: Sequence[str], wide: int) -> int:
    """Room in pixels for the longest of the captions; 0 where all are empty."""
    lines = max((len(_wrapped(text, font(_SIZE), wide)) for text in captions), default=0)
    return lines * _LINE_HEIGHT + _ABOVE if lines else 0


def _wrapped(text: str, face: Any, width: float) -> list[str]:
    """The text in one line, or in two broken between words; what is still too long is shortened."""
    words = [shown(word) for word in text[:_LONGEST].split()]
    fitting = 0
    while fitting < len(words) and face.getlength(" ".join(words[: fitting + 1])) <= width:
        fitting += 1
    fitting = max(fitting, 1)
    lines = (" ".join(words[:fitting]), " ".join(words[fitting:]))
    return [shortened(line, face, width) for line in lines if line]


def shortened(text: str, face: Any, width: float) -> str:
    """The text, cut with an ellipsis where it is wider than `width`."""
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
