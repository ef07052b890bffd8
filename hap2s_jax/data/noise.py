"""Wrong training data on purpose, for the study of robustness: flipped labels, foreign images.

How the outliers of the HAP2S paper were made is not known; both kinds here are this project's own. Which images
are changed depends only on the seed and the number of images. A larger fraction changes the same images and more, so
that studies over fractions are paired. A flipped label is the same at every fraction; a foreign image is not.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

import numpy as np

from hap2s_jax.data.draws import hash_words, permutation
from hap2s_jax.data.source import Derived, Source
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.atomic import replacing

KINDS = ("labels", "images")
FILE_NAME = "noise.json"
# Words that keep the two uses of the seed apart.
_WHICH, _WHAT = 0, 1


@dataclass(frozen=True)
class NoiseRecord:
    """A record of the noise: what was done to which images.

    Attributes:
      kind: "labels" (flipped) or "images" (swapped for foreign ones).
      fraction: the share of images touched.
      seed: the draw.
      indices: the images touched, rising.
      before: their true labels.
      after: their labels now; for foreign images, the number of the image in the foreign source.
      images: where each image touched comes from.
      before_names: the names of their true classes.
      after_names: the names of their classes now; for foreign images, where the foreign image comes from.
    """

    kind: str
    fraction: float
    seed: int
    indices: list[int]
    before: list[int]
    after: list[int]
    images: list[str]
    before_names: list[str]
    after_names: list[str]

    def describe(self) -> str:
        """One line for the log."""
        done = "labels flipped" if self.kind == "labels" else "images swapped for foreign ones"
        return f"noise: {len(self.indices):,} training {done} ({self.fraction:.1%}, seed {self.seed})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


class NoisySource(Derived):
    """A source with other labels, or with some images of another source in place of its own.

    Args:
      source: the clean source.
      labels: int `[N]`, the labels now.
      foreign: where the swapped images come from, or None.
      swapped: index -> image number in `foreign`.
    """

    def __init__(
        self,
        source: Source,
        labels: np.ndarray,
        foreign: Source | None = None,
        swapped: dict[int, int] | None = None,
    ):
        self.source = source
        self.name = f"{source.name} with noise"
        self.labels = np.asarray(labels, np.int32)
        self.cameras = source.cameras
        self.class_names = source.class_names
        self._foreign = foreign
        self._swapped = swapped or {}
        boxes = getattr(source, "boxes", None)
        if boxes is not None and self._swapped:
            boxes = boxes.copy()
            # An empty box stands for the whole image.
            boxes[list(self._swapped)] = 0
        self.boxes = boxes

    def __len__(self) -> int:
        """The number of images."""
        return len(self.source)

    def origin(self, index: int) -> tuple[Source, int]:
        """The source of image number `index`, and its number there."""
        if self._foreign is not None and index in self._swapped:
            return self._foreign, self._swapped[index]
        return self.source, index


def flip_labels(source: Source, fraction: float, seed: int) -> tuple[NoisySource, NoiseRecord]:
    """Give a fraction of the images the label of another class, all other classes alike.

    Args:
      source: at least two classes; images labelled below 0 are left alone.
      fraction: share of the labelled images, in [0, 1]; rounded to whole images.
      seed: any integer.

    Raises:
      UserError: the fraction is out of range, or there is only one class.
    """
    labels = np.asarray(source.labels).astype(np.int32)
    chosen = _chosen(labels, fraction, seed)
    classes = np.unique(labels[labels >= 0])
    if len(chosen) and len(classes) < 2:
        raise UserError("data.noise: labels can be flipped only between at least two classes")
    flipped = labels.copy()
    for index in chosen.tolist():
        # Adding 1 to C - 1 places to the own class reaches every other class and never itself.
        steps = 1 + int(hash_words(seed, _WHAT, index)[0] % np.uint64(len(classes) - 1))
        place = int(np.searchsorted(classes, labels[index]))
        flipped[index] = classes[(place + steps) % len(classes)]
    names = [source.class_names[label] for label in flipped[chosen].tolist()]
    record = _record("labels", fraction, seed, source, chosen, flipped[chosen].tolist(), names)
    return NoisySource(source, flipped), record


def swap_images(
    source: Source, foreign: Source, fraction: float, seed: int
) -> tuple[NoisySource, NoiseRecord]:
    """Replaces a fraction of a source's images by images that belong to none of its classes.

    Args:
      source: the images to learn from.
      foreign: images of other classes, each used once as long as there are enough. Never those that are tested
        on: training would see them.
      fraction: share of the labelled images, in [0, 1]; rounded to whole images.
      seed: any integer.

    Raises:
      UserError: the fraction is out of range, or there are no foreign images.
    """
    labels = np.asarray(source.labels)
    chosen = _chosen(labels, fraction, seed)
    if len(chosen) and not len(foreign):
        raise UserError("data.noise: there are no foreign images")
    order = permutation(len(foreign), seed, _WHAT)
    swapped = {index: int(order[i % len(order)]) for i, index in enumerate(chosen.tolist())}
    names = [foreign.describe(place) for place in swapped.values()]
    record = _record("images", fraction, seed, source, chosen, list(swapped.values()), names)
    return NoisySource(source, labels, foreign, swapped), record


def _record(
    kind: str,
    fraction: float,
    seed: int,
    source: Source,
    chosen: np.ndarray,
    after: list[int],
    after_names: list[str],
) -> NoiseRecord:
    indices, before = chosen.tolist(), np.asarray(source.labels)[chosen].tolist()
    images = [source.describe(index) for index in indices]
    names = [source.class_names[label] for label in before]
    return NoiseRecord(kind, fraction, seed, indices, before, after, images, names, after_names)


def _chosen(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    if not 0 <= fraction <= 1:
        raise UserError(f"data.noise.fraction: must lie in [0, 1], found {fraction}")
    labelled = np.flatnonzero(labels >= 0)
    return np.sort(labelled[permutation(len(labelled), seed, _WHICH)[: round(fraction * len(labelled))]])
