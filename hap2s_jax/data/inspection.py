"""Inspects a data set: counts and decodes its parts, and shows images as the encoder will see them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hap2s_jax.data import presence
from hap2s_jax.data.headers import UnreadableImageError
from hap2s_jax.data.pixels import centre_part, decode_whole, for_evaluation, place
from hap2s_jax.data.source import Source
from hap2s_jax.errors import reason
from hap2s_jax.reporting.environment import usable_cores

_SHOWN = 10


class View(NamedTuple):
    """How evaluation cuts an image; see `hap2s_jax.data.pixels.centre_part`."""

    size: tuple[int, int] = (224, 224)
    enlarge: float = 256 / 224
    keep_aspect: bool = True

    def part(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of what is kept."""
        return centre_part(height, width, self.size, enlarge=self.enlarge, keep_aspect=self.keep_aspect)

    def image(self, source: Source, index: int) -> np.ndarray:
        """Image number `index` as the encoder sees it, uint8 `[*size, 3]`."""
        boxes = getattr(source, "boxes", None)
        box = None if boxes is None else boxes[index]
        cut = {"enlarge": self.enlarge, "keep_aspect": self.keep_aspect}
        return for_evaluation(source.read(index), self.size, box=box, **cut)


@dataclass
class Report:
    """Findings in one part of a data set.

    Attributes:
      part: "train", "validation" or "test".
      images: how many.
      classes: how many have an image.
      cameras: how many took an image; 0 where they are not known.
      single_image: names of the classes with one image: never a positive pair.
      single_camera: names of the classes seen by one camera: never a match across cameras.
      unreadable: places of the images that cannot be read, each with the reason.
      readable: bool `[N]`, which images are not among these.
      cropped: places of images that lose more than half to the centre crop.
      sides: (smallest, median, largest) height and width of the images that were decoded.
    """

    part: str
    images: int
    classes: int
    cameras: int
    single_image: list[str]
    single_camera: list[str]
    unreadable: list[str] = field(default_factory=list)
    readable: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    cropped: list[str] = field(default_factory=list)
    sides: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None

    def add_unreadable(self, source: Source, index: int, why: str) -> None:
        """Notes that image number `index` cannot be read."""
        self.unreadable.append(f"{source.describe(index)} ({why})")
        self.readable[index] = False

    def lines(self) -> Iterator[str]:
        """The report in words."""
        cameras = f", {self.cameras} cameras" if self.cameras else ""
        yield f"{self.part}: {self.images:,} images, {self.classes:,} classes{cameras}"
        if self.sides is not None:
            yield "  height x width: " + ", ".join(
                f"{word} {h}x{w}"
                for word, (h, w) in zip(("smallest", "median", "largest"), self.sides, strict=True)
            )
        for what, which in (
            ("classes with one image", self.single_image),
            ("classes seen by one camera", self.single_camera),
            ("images that cannot be read", self.unreadable),
            ("images that lose more than half to the centre crop", self.cropped),
        ):
            if which:
                more = f", and {len(which) - _SHOWN:,} more" if len(which) > _SHOWN else ""
                yield f"  {len(which):,} {what}: {', '.join(which[:_SHOWN])}{more}"


def check(part: str, source: Source, view: View, *, decode: bool = True) -> Report:
    """Count and, if wished, decode the images of one part.

    Args:
      part: its name.
      source: its images.
      view: what the encoder will see of them.
      decode: whether to decode them all, on every core; otherwise files that are missing or empty are found.
    """
    labels = np.asarray(source.labels)
    counts = np.bincount(labels, minlength=len(source.class_names))
    single_camera = []
    if source.cameras is not None:
        pairs = np.unique(np.stack([labels, source.cameras]), axis=1)
        seen_by = np.bincount(pairs[0], minlength=len(counts))
        single_camera = [source.class_names[c] for c in np.flatnonzero((seen_by == 1) & (counts > 1))]
    report = Report(
        part,
        len(source),
        int(np.sum(counts > 0)),
        0 if source.cameras is None else len(np.unique(source.cameras[source.cameras >= 0])),
        [source.class_names[c] for c in np.flatnonzero(counts == 1)],
        single_camera,
    )
    report.readable = np.ones(len(source), bool)
    if decode:
        _decode_all(source, view, report)
        return report
    for index in range(len(source)):
        if fault := presence.fault(source, index):
            report.add_unreadable(source, index, fault)
    return report


def _decode_all(source: Source, view: View, report: Report) -> None:
    from hap2s_jax.reporting.progress import ProgressBar

    boxes = getattr(source, "boxes", None)

    def look(index: int) -> tuple[tuple[int, int], float] | str:
        try:
            height, width = decode_whole(source.read(index)).shape[:2]
            whole = place(height, width, lambda h, w: (0, 0, h, w), None if boxes is None else boxes[index])
        except (OSError, UnreadableImageError) as error:
            return reason(error)
        kept = view.part(whole.height, whole.width)
        return (height, width), kept[2] * kept[3] / (whole.height * whole.width)

    shapes = []
    with ThreadPoolExecutor(usable_cores()) as pool, ProgressBar(len(source), description=report.part) as bar:
        for index, found in enumerate(pool.map(look, range(len(source)), chunksize=32)):
            if isinstance(found, str):
                report.add_unreadable(source, index, found)
            else:
                shapes.append(found[0])
                if found[1] < 0.5:
                    report.cropped.append(source.describe(index))
            bar.update(index + 1)
    if shapes:
        middle = np.median(np.array(shapes), axis=0).astype(int)
        by_area = sorted(shapes, key=lambda s: s[0] * s[1])
        report.sides = (by_area[0], (int(middle[0]), int(middle[1])), by_area[-1])
