"""Which data sets are there, and are they whole?

    python -m hap2s_jax.check_data                                            # all of them: found or not, and where
    python -m hap2s_jax.check_data --name=market1501 --data_dir=DIR           # one of them, every image decoded
    python -m hap2s_jax.check_data --name=folder --data_dir=FOLDER --sheet=sheet.png
    python -m hap2s_jax.check_data --name=cuhk03 --option=detection=labeled --decode=false

Ends with code 1 where images cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from absl import flags

from hap2s_jax import cli
from hap2s_jax.data import registry
from hap2s_jax.data.pixels import UnreadableImageError, decode_whole
from hap2s_jax.data.source import Dataset, Source
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.environment import usable_cores

_NAME = flags.DEFINE_string("name", None, "Data set to check; without it, all are listed.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where data sets lie; the folder or CSV itself for --name=folder."
)
_OPTION = flags.DEFINE_multi_string("option", [], "Option of the data set, KEY=VALUE; may be repeated.")
_DECODE = flags.DEFINE_bool("decode", True, "Whether to decode every image, which finds damaged ones.")
_SHEET = flags.DEFINE_string(
    "sheet", None, "PNG file for a contact sheet: classes in rows, their images beside them."
)

_SHOWN = 10
_SHEET_CLASSES, _SHEET_IMAGES = 8, 8


@dataclass
class Report:
    """What was found in one part of a data set.

    Attributes:
      part: "train", "validation" or "test".
      images: how many.
      classes: how many have an image.
      cameras: how many took an image; 0 where they are not known.
      single_image: names of the classes with one image: never a positive pair.
      single_camera: names of the classes seen by one camera: never a match across cameras.
      unreadable: where the images that cannot be read are, each with the reason.
      sides: (smallest, median, largest) height and width of the images that were decoded.
    """

    part: str
    images: int
    classes: int
    cameras: int
    single_image: list[str]
    single_camera: list[str]
    unreadable: list[str] = field(default_factory=list)
    sides: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None

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
        ):
            if which:
                more = f", and {len(which) - _SHOWN:,} more" if len(which) > _SHOWN else ""
                yield f"  {len(which):,} {what}: {', '.join(which[:_SHOWN])}{more}"


def check(part: str, source: Source, *, decode: bool = True) -> Report:
    """Count and, if wished, decode the images of one part.

    Args:
      part: its name.
      source: its images.
      decode: whether to decode them all, on every core.
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
        0 if source.cameras is None else len(np.unique(source.cameras)),
        [source.class_names[c] for c in np.flatnonzero(counts == 1)],
        single_camera,
    )
    if decode:
        _decode_all(source, report)
    return report


def _decode_all(source: Source, report: Report) -> None:
    from hap2s_jax.reporting.progress import ProgressBar

    def shape(index: int) -> tuple[int, int] | str:
        try:
            return decode_whole(source.read(index)).shape[:2]
        except (OSError, UnreadableImageError) as error:
            return f"{source.describe(index)} ({error})"

    shapes = []
    with ThreadPoolExecutor(usable_cores()) as pool, ProgressBar(len(source), description=report.part) as bar:
        for done, found in enumerate(pool.map(shape, range(len(source)), chunksize=32), start=1):
            if isinstance(found, str):
                report.unreadable.append(found)
            else:
                shapes.append(found)
            bar.update(done)
    if shapes:
        middle = np.median(np.array(shapes), axis=0).astype(int)
        by_area = sorted(shapes, key=lambda s: s[0] * s[1])
        report.sides = (by_area[0], (int(middle[0]), int(middle[1])), by_area[-1])


def unanswerable(dataset: Dataset) -> int | None:
    """Queries that no gallery image can answer, by identity and, where known, camera; None without queries."""
    if dataset.query is None or dataset.gallery is None:
        return None
    labels, cameras = dataset.test.labels, dataset.test.cameras
    if cameras is None:
        return int(np.sum(~np.isin(labels[dataset.query], labels[dataset.gallery])))
    seen: dict[int, set[int]] = {}
    for label, camera in zip(
        labels[dataset.gallery].tolist(), cameras[dataset.gallery].tolist(), strict=True
    ):
        seen.setdefault(label, set()).add(camera)
    asked = zip(labels[dataset.query].tolist(), cameras[dataset.query].tolist(), strict=True)
    return sum(not seen.get(label, set()) - {camera} for label, camera in asked)


def draw_sheet(dataset: Dataset, path: str) -> None:
    """A contact sheet of the training images: a row for each of a few classes, spread over all of them."""
    from hap2s_jax.reporting.pictures import contact_sheet

    source, images, captions = dataset.train, [], []
    counts = np.bincount(source.labels)
    # Classes with enough images fill their rows.
    classes = np.flatnonzero(counts >= min(_SHEET_IMAGES, int(np.median(counts))))
    for c in classes[np.unique(np.linspace(0, len(classes) - 1, _SHEET_CLASSES).astype(int))]:
        for index in np.flatnonzero(source.labels == c)[:_SHEET_IMAGES]:
            try:
                images.append(decode_whole(source.read(int(index))))
            except (OSError, UnreadableImageError):
                images.append(np.zeros((64, 64, 3), np.uint8))
            camera = "" if source.cameras is None else f" camera {source.cameras[index]}"
            captions.append(f"{source.class_names[c]}{camera}")
    contact_sheet(images, captions, path, columns=_SHEET_IMAGES, title=f"{dataset.name}, training images")


def list_all(data_dir: str | None) -> Iterator[str]:
    """A line or two for every data set: found or not, where it is looked for and where to get it."""
    bases = registry.search_directories(data_dir)
    for entry in registry.ENTRIES.values():
        if entry.read is None:
            yield f"{entry.name:12} found     {entry.title}, {entry.url}"
            continue
        if not entry.markers:
            yield f"{entry.name:12}           {entry.title}: --name={entry.name} --data_dir=FOLDER_OR_CSV"
            continue
        root = entry.find(bases)
        folder = (entry.tfds or "").split("/")[0]
        # VERSION/ or CONFIG/VERSION/ below the set's own folder.
        kept = (
            p
            for b in bases
            for depth in ("*", "*/*")
            for p in (b / folder).glob(f"{depth}/dataset_info.json")
        )
        prepared = next(kept, None) if folder else None
        if root is not None:
            yield f"{entry.name:12} found     {entry.title} in {root}"
        elif prepared is not None:
            yield f"{entry.name:12} found     {entry.title} in {prepared.parent} (TFDS)"
        else:
            places = " or ".join(f"{entry.folders[0]}/{m[0]}" for m in entry.markers[:1])
            yield f"{entry.name:12} not found {entry.title}: no {places} (or the like) in {', '.join(map(str, bases))}"
            yield f"{'':12}           get it from {entry.url} ({entry.licence})"


def parse_options(texts: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """KEY=VALUE texts as values of the types of the defaults.

    Raises:
      UserError: a text is malformed or its value of the wrong type; an unknown key is left to the data set.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        kind = type(defaults.get(key, ""))
        try:
            if not equals:
                raise ValueError
            options[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise UserError(
                f"--option: expected {key or 'KEY'}={kind.__name__.upper()}, found {text!r}"
            ) from None
    return options


def run(
    name: str, data_dir: str | None, options: Mapping[str, Any], decode: bool, sheet: str | None
) -> list[Report]:
    """Check one data set and print what was found.

    Returns:
      A report for each part.

    Raises:
      UserError: the data set is not there, or images of it cannot be read.
    """
    from hap2s_jax.data import datasets

    entry = registry.entry(name)
    dataset = datasets.load(name, data_dir=data_dir, validation_fraction=0.0, **options)
    print(f"{entry.title}: {dataset.train.describe(0)} and so on")
    reports = []
    for part in ("train", "validation", "test"):
        source = getattr(dataset, part)
        if source is not None:
            reports.append(check(part, source, decode=decode))
            print(*reports[-1].lines(), sep="\n")
    if dataset.query is not None and dataset.gallery is not None:
        print(f"{len(dataset.query):,} queries, {len(dataset.gallery):,} gallery images")
        if unanswered := unanswerable(dataset):
            print(f"  {unanswered:,} queries have no match in the gallery and are left out of every figure")
    print(*dataset.remarks, sep="\n") if dataset.remarks else None
    if entry.counts and not dataset.remarks:
        print("all counts are as published")
    if sheet:
        draw_sheet(dataset, sheet)
        print(f"contact sheet: {sheet}")
    if unreadable := sum(len(report.unreadable) for report in reports):
        raise UserError(
            f"{unreadable:,} images cannot be read; mend or remove them, or train with data.on_unreadable=skip"
        )
    return reports


def main() -> None:
    """The command."""
    if _NAME.value is None:
        print(*list_all(_DATA_DIR.value), sep="\n")
        return
    options = parse_options(_OPTION.value, registry.entry(_NAME.value).options)
    run(_NAME.value, _DATA_DIR.value, options, _DECODE.value, _SHEET.value)


if __name__ == "__main__":
    cli.start(main)
