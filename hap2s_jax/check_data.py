"""Checks data sets: which ones you have, whether they are complete, and whether your own images are ready for training.

    python -m hap2s_jax.check_data                                            # lists all data sets and where they are
    python -m hap2s_jax.check_data --name=market1501 --data_dir=DIR           # checks one, and decodes every image
    python -m hap2s_jax.check_data --name=folder --data_dir=FOLDER --sheet=sheet.png
    python -m hap2s_jax.check_data --name=folder --data_dir=photos.csv --option=columns=label=person --duplicates
    python -m hap2s_jax.check_data --name=cuhk03 --option=detection=labeled --decode=false

For your own images it says what to fix, and the command to train with. Exit code 1: some images cannot be read.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hap2s_jax import cli, extras
from hap2s_jax.data import advice, duplicates, matches, presence, registry
from hap2s_jax.data.headers import UnreadableImageError
from hap2s_jax.data.inspection import Report, View, check
from hap2s_jax.data.source import Dataset
from hap2s_jax.data.splits import validation_classes
from hap2s_jax.errors import UserError
from hap2s_jax.reporting import outputs

_MANY = 1_000_000
_SHEET_CLASSES, _SHEET_IMAGES = 8, 8


def draw_sheet(dataset: Dataset, path: str, view: View) -> None:
    """A contact sheet of training images as the encoder sees them: a row for each of a few classes, spread over all."""
    from hap2s_jax.reporting.pictures import contact_sheet

    source, images, captions = dataset.train, [], []
    counts = np.bincount(source.labels)
    # Classes with enough images fill their rows.
    classes = np.flatnonzero(counts >= min(_SHEET_IMAGES, int(np.median(counts))))
    for c in classes[np.unique(np.linspace(0, len(classes) - 1, _SHEET_CLASSES).astype(int))]:
        for index in np.flatnonzero(source.labels == c)[:_SHEET_IMAGES]:
            try:
                images.append(view.image(source, int(index)))
            except (OSError, UnreadableImageError):
                images.append(np.zeros((*view.size, 3), np.uint8))
            camera = -1 if source.cameras is None else int(source.cameras[index])
            captions.append(source.class_names[c] + (f" camera {camera}" if camera >= 0 else ""))
    contact_sheet(images, captions, path, columns=_SHEET_IMAGES, title=f"{dataset.name}, training images")


def list_all(data_dir: str | None) -> Iterator[str]:
    """A line or two for every data set: found or not, where it is looked for and where to get it."""
    bases = registry.search_directories(data_dir)
    for entry in registry.ENTRIES.values():
        if entry.read is None:
            yield f"{entry.name:12} found     {entry.title}, {entry.url}"
            continue
        if not entry.markers:
            where = "FOLDER, or --option=path=OWNER/NAME" if "path" in entry.options else "FOLDER_OR_CSV"
            yield f"{entry.name:12}           {entry.title}: --name={entry.name} --data_dir={where}"
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
            if entry.url:  # not the user's own
                yield f"{'':12}           get it from {entry.url} ({entry.licence})"


def view_of(entry: registry.Entry) -> View:
    """The part of an image that the encoder sees by the shipped config of a data set."""
    if entry.name == "emoji":
        return View((64, 64), 1.0, False)
    return View() if "class" in entry.protocols or entry.name == "inshop" else View((256, 128), 1.125, False)


def run(
    name: str,
    data_dir: str | None,
    options: Mapping[str, Any],
    decode: bool,
    sheet: str | None,
    list_duplicates: bool = False,
) -> list[Report]:
    """Check one data set and print what was found; for your own images also a verdict.

    Returns:
      A report for each part.

    Raises:
      UserError: the data set is not there, or images of it cannot be read.
    """
    from hap2s_jax.data import datasets

    entry = registry.entry(name)
    view = view_of(entry)
    dataset = datasets.load(name, data_dir=data_dir, validation_fraction=0.0, **options)
    print(f"{entry.title}: {dataset.train.describe(0)} and so on")
    reports = []
    for part in ("train", "validation", "test"):
        source = getattr(dataset, part)
        if source is not None:
            reports.append(check(part, source, view, decode=decode))
            print(*reports[-1].lines(), sep="\n")
    if dataset.query is not None and dataset.gallery is not None:
        print(f"{len(dataset.query):,} queries, {len(dataset.gallery):,} gallery images")
    remarks = dataset.remarks
    if not entry.is_own:  # own data sets say it in their remarks
        rows = {"query": dataset.query, "gallery": dataset.gallery, "protocols": dataset.protocols}
        remarks += matches.describe(dataset.test.labels, dataset.test.cameras, **rows)
    print(*remarks, sep="\n") if remarks else None
    if entry.counts and not dataset.remarks:
        print("all counts are as published")
    if sheet:
        draw_sheet(dataset, sheet, view)
        print(f"contact sheet: {sheet}")
    if entry.is_own:
        found = duplicates.find(dataset, None if list_duplicates else duplicates.QUICK_BYTES)
        lines = [*found.lines(_MANY if list_duplicates else 1)]
        if lines or list_duplicates:
            print(*(lines or ["no image stands twice"]), sep="\n")
        if entry.name == "folder":
            print(*verdict(dataset, reports, found, data_dir or "", options), sep="\n")
    if unreadable := sum(len(report.unreadable) for report in reports):
        way = "" if too_few(dataset, reports) else ", or train with data.on_unreadable=skip"
        raise UserError(f"{unreadable:,} images cannot be read; fix or remove them{way}")
    return reports


def too_few(dataset: Dataset, reports: Sequence[Report]) -> str:
    """Which part has too few images that can be read; "" if none."""
    try:
        for report in reports:
            rows = (dataset.query, dataset.gallery) if report.part == "test" else ()
            presence.check(getattr(dataset, report.part), *rows, can_read=report.readable.__getitem__)
    except UserError as error:
        return str(error)
    return ""


def verdict(
    dataset: Dataset,
    reports: Sequence[Report],
    found: duplicates.Duplicates,
    data_dir: str,
    options: Mapping[str, Any],
) -> Iterator[str]:
    """A verdict on your own images: ready or not, what to fix, and the command."""
    unreadable = sum(len(report.unreadable) for report in reports)
    mend = [*dataset.remarks, *found.lines()]
    if lack := too_few(dataset, reports):
        yield f"verdict: this cannot be trained on: {lack}"
        yield from (f"  - {line}" for line in mend)
        return
    if unreadable:
        mend.insert(
            0, f"{unreadable:,} images that cannot be read (or leave them out, as the command below does)"
        )
    yield f"verdict: {'ready to train' if not mend else 'this can be trained on, but first check'}"
    yield from (f"  - {line}" for line in mend)
    classes = registry.num_classes(dataset.train)
    if dataset.validation is None:
        share = advice.validation_fraction(classes)
        classes -= len(validation_classes(classes, share, 0))
    command = [
        "python -m hap2s_jax.main --config=configs/folder.py",
        f"data.data_dir={shlex.quote(data_dir)}",
    ]
    command += [f"data.options.{key}={shlex.quote(str(value))}" for key, value in options.items()]
    command += [f"batch.classes={advice.batch_classes(classes)}", "batch.images_per_class=4"]
    command += ["data.on_unreadable=skip"] if unreadable else []
    yield "the command (without a GPU start with --config=configs/folder.py:dinov2, which trains a small head alone):"
    yield "  " + " ".join([command[0], *(f"--config.{item}" for item in command[1:])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("check_data", __doc__)
    parser.add_argument("--name", help="data set to check; by default all are listed")
    parser.add_data_set()
    parser.add_switch("decode", default=True, help="decode every image, to find damaged ones")
    parser.add_switch("duplicates", default=False, help="list duplicates among your own images")
    parser.add_argument(
        "--sheet",
        type=outputs.Output,
        metavar="FILE",
        help="draw a contact sheet as a PNG file, one class per row",
    )
    parser.add_switch("overwrite", default=False, help=outputs.OVERWRITE)
    return cli.start(_run, parser, arguments)


def _run(options: argparse.Namespace) -> None:
    if options.name is None:
        print(*list_all(options.data_dir), sep="\n")
        return
    extras.require("check_data", "train")
    outputs.check(options)
    settings = registry.parse_options(options.option, registry.entry(options.name).options)
    run(options.name, options.data_dir, settings, options.decode, options.sheet, options.duplicates)


if __name__ == "__main__":
    sys.exit(main())
