"""Decodes the images of a source, with a policy for those that cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hap2s_jax.data.headers import UnreadableImageError
from hap2s_jax.data.images import DecodedImages
from hap2s_jax.errors import UserError

_LOG = logging.getLogger(__name__)


class Reader:
    """Policy for images that cannot be read."""

    def __init__(self, images: DecodedImages, on_unreadable: str):
        self.images = images
        self.skip = on_unreadable == "skip"
        self.unreadable: set[int] = set()
        self._warned: set[int] = set()
        self._labels = np.asarray(images.source.labels)

    def get(self, index: int, choose: Callable[..., Any], size: tuple[int, int]) -> np.ndarray | None:
        """The part of an image, or None if it cannot be read and may be skipped."""
        try:
            return self.images.get(index, choose, size)
        except (OSError, UnreadableImageError) as error:
            where = self.images.source.describe(index)
            if not self.skip:
                raise UserError(
                    f"cannot read the image {where}: {error}; fix or remove it, or set "
                    "config.data.on_unreadable=skip to leave such images out"
                ) from None
            if index not in self.unreadable:
                self.unreadable.add(index)
                _LOG.warning("skipping the image %s, which cannot be read: %s", where, error)
            return None

    def get_or_substitute(
        self, index: int, choose: Callable[..., Any], size: tuple[int, int]
    ) -> tuple[np.ndarray, int]:
        """The part of an image, or of a readable substitute of its class or of any class; and that image's number."""
        part = self.get(index, choose, size)
        if part is not None:
            return part, index
        for other in self._substitutes(index):
            part = None if other in self.unreadable else self.get(other, choose, size)
            if part is not None:
                return part, other
        raise UserError(
            f"none of the images of {self.images.source.name} can be read, such as "
            f"{self.images.source.describe(index)}; fix them, or check config.data.data_dir"
        )

    def _substitutes(self, index: int) -> Iterator[int]:
        """All other images with a class, in the order in which they are tried as substitutes: first the same class.

        The images of a class go over to as many different ones of the class that follows.
        """
        labelled = np.flatnonzero(self._labels >= 0)
        by_class = labelled[np.argsort(self._labels[labelled], kind="stable")]
        classes, first, which, size = np.unique(
            self._labels[by_class], return_index=True, return_inverse=True, return_counts=True
        )
        place, own = np.arange(len(by_class)) - first[which], int(np.flatnonzero(by_class == index)[0])
        classes_on, places_on = (which - which[own]) % len(classes), (place - place[own]) % size[which]
        ranking, same = by_class[np.lexsort((places_on, classes_on))].tolist(), size[which[own]]
        yield from ranking[1:same]
        if self._labels[index] not in self._warned:
            self._warned.add(self._labels[index])
            _LOG.warning(
                "no image of class %d of %s can be read; images of other classes replace them",
                self._labels[index],
                self.images.source.name,
            )
        yield from ranking[same:]
