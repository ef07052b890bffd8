"""Quarter turns of the training images as additional classes."""

from __future__ import annotations

import numpy as np

from hap2s_jax.data import pixels
from hap2s_jax.data.source import Source
from hap2s_jax.errors import UserError

TURNS = 4


class QuarterTurns:
    """A source and its copies turned by 90, 180 and 270 degrees; each class of each turn is a class of its own.

    Where classes are few and upright is part of what an image shows, four times as many classes teach an encoder more
    about classes it has not seen than any augmentation within a class does (Santoro et al., "Meta-Learning with
    Memory-Augmented Neural Networks", 2016, on characters). Not for images whose turns look alike, such as seen from
    above.

    Image ``turn * N + i`` is image i of the source turned anticlockwise `turn` times, its class ``turn * C + label``.
    Junk, label -1, stays junk. Turned images are encoded as PNG, without loss.

    Args:
      source: the images to turn.
      decoding: how they are decoded, so that all are upright before they are turned.

    Raises:
      UserError: the source has boxes, which are not turned.
    """

    def __init__(self, source: Source, decoding: pixels.Decoding = pixels.DEFAULT):
        if getattr(source, "boxes", None) is not None:
            raise UserError(
                f"data.quarter_turns: the images of {source.name} have boxes, which cannot be turned; crop the images "
                "to their boxes first, or set data.quarter_turns=false"
            )
        self.source, self._decoding = source, decoding
        self.name = f"{source.name} in four turns"
        classes = len(source.class_names)
        labels = np.asarray(source.labels)
        self.labels = np.concatenate(
            [np.where(labels >= 0, labels + turn * classes, labels) for turn in range(TURNS)]
        ).astype(np.int32)
        self.cameras = None if source.cameras is None else np.tile(source.cameras, TURNS)
        # All names of a turn begin with the same letter, so that names sort in the order of the labels.
        self.class_names = tuple(f"{90 * turn:03d} {c}" for turn in range(TURNS) for c in source.class_names)

    def __len__(self) -> int:
        """Four times the images of the source."""
        return TURNS * len(self.source)

    def origin(self, index: int) -> tuple[Source, int]:
        """The source of image number `index`, and its number there."""
        return self.source, int(index) % len(self.source)

    def read(self, index: int) -> bytes:
        """The encoded image number `index`."""
        turn, upright = divmod(int(index), len(self.source))
        data = self.source.read(upright)
        if not turn:
            return data
        return pixels.encode_png(np.rot90(pixels.decode_whole(data, decoding=self._decoding), turn))

    def describe(self, index: int) -> str:
        """The origin of image number `index`."""
        turn, upright = divmod(int(index), len(self.source))
        return self.source.describe(upright) + (f" turned by {90 * turn} degrees" if turn else "")
