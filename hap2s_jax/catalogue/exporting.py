"""A store as files: a CSV to train on, or embeddings for `hap2s_jax.search` and others."""

from __future__ import annotations

import csv
import hashlib
import os
import pathlib
from collections import Counter

import numpy as np

from hap2s_jax.catalogue.adding import box_of
from hap2s_jax.catalogue.columns import more_of
from hap2s_jax.catalogue.state import State
from hap2s_jax.data import shares
from hap2s_jax.data.places import place
from hap2s_jax.data.readers.rows import is_unknown
from hap2s_jax.data.regular_files import below
from hap2s_jax.errors import UserError, require
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.serving import vectors
from hap2s_jax.serving.listing import Listing

_COLUMNS = ("path", "label", "camera", "time", "place")
_CORNERS = ("x1", "y1", "x2", "y2")


def export(
    store: State,
    output: str | os.PathLike[str],
    *,
    where: str = "",
    train: bool = False,
    test_fraction: float = 0.25,
) -> int:
    """Writes the images in use; returns how many.

    Args:
      store: what to write.
      output: a .csv file, with all that is kept of an image; or .npz or .parquet, as `hap2s_jax.embed` writes them.
      where: a filter, see `filters.parse`.
      train: whether the CSV is to be trained on (configs/folder.py): only images with a label, and a column `split`
        that sends each individual to training or test, the same one at every export (but two of few).
      test_fraction: the share of individuals for test.

    Raises:
      UserError: an unknown kind of file, nothing to write, too few individuals to train on, or it cannot be written.
    """
    path = place(output)
    kinds = (".csv", *vectors.SUFFIXES)
    require(path.suffix in kinds, "--output", output, f"a name that ends in one of {', '.join(kinds)}")
    require(0 < test_fraction < 1, "--test_fraction", test_fraction, "above 0 and below 1")
    rows = np.flatnonzero((store.known if train else store.usable) & store.where(where))
    if not len(rows):
        raise UserError(
            f"{store.tables.folder} holds no such image{' with a label' * train}; nothing to export"
        )
    if path.suffix == ".csv":
        _write_csv(store, rows, path, _splits(store, rows, test_fraction) if train else {})
    elif train:
        raise UserError(f"--train writes a CSV, and --output is {output}")
    else:
        _write_vectors(store, rows, path)
    return len(rows)


def _splits(store: State, rows: np.ndarray, test_fraction: float) -> dict[str, str]:
    """Which part each individual is in, by a digest of its name: no other individual moves it.

    Only where that left fewer than two in a part, or for test fewer than two that can be found, the nearest to the
    fraction make up for it.
    """
    counts = Counter(store.name_of(row) for row in rows)
    digest = {name: int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 2**48 for name in counts}
    # Training takes these for no individuals, and one image alone cannot be found by another.
    names = [name for name in sorted(counts, key=lambda name: digest[name]) if not is_unknown(name)]
    found = [name for name in names if counts[name] > 1]
    if len(found) < 2 or len(names) < 4:
        raise UserError(
            "--train needs at least four individuals, of which two, for test, have two images each; here are "
            f"{len(names):,}, of which {len(found):,} have two images: name more, or leave out --where or --train"
        )
    in_test = {*found[:2], *(name for name in names[:-2] if digest[name] < test_fraction)}
    if len(names) - len(in_test) < 2:
        in_test = {*found[:2]}
    return {name: "test" if name in in_test else "train" for name in counts}


def _write_csv(store: State, rows: np.ndarray, output: pathlib.Path, splits: dict[str, str]) -> None:
    kept = [_row(store, int(row), output.absolute().parent) for row in rows]
    for one in kept:
        one |= {"split": splits[one["label"]]} if splits else {}
    columns = dict.fromkeys([*_COLUMNS, *(name for one in kept for name in one)])
    used = [name for name in columns if any(one.get(name) for one in kept)]
    with (
        replacing(output) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, used, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)


def _row(store: State, row: int, beside: pathlib.Path) -> dict[str, str]:
    """The row of an image in a CSV in the folder `beside`."""
    folder = store.folder_of(row)
    image = (
        pathlib.Path(store.text("path", row)) if folder is None else below(folder, store.text("path", row))
    )
    found = {name: store.text(name, row) for name in _COLUMNS[2:]}
    found |= {name: value for name, value in more_of(store.text("more", row)).items() if name not in _COLUMNS}
    if (box := box_of(store.text("box", row))) is not None:
        found |= dict(zip(_CORNERS, map(str, shares.decode(box) or box.tolist()), strict=True))
    path = image.relative_to(beside) if image.is_relative_to(beside) else image
    return {"path": path.as_posix(), "label": store.name_of(row), **found}


def _write_vectors(store: State, rows: np.ndarray, output: pathlib.Path) -> None:
    files = [os.path.join(str(store.folder_of(row) or ""), store.text("path", row)) for row in rows]
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    paths = [os.path.relpath(file, root).replace(os.sep, "/") for file in files]
    names = sorted({store.name_of(row) for row in rows} - {""})
    number = {name: n for n, name in enumerate(names)} | {"": -1}
    labels = np.array([number[store.name_of(row)] for row in rows], np.int64)
    listing = Listing(pathlib.Path(root), paths, labels, tuple(names))
    none = np.zeros(0, np.int64)
    part = vectors.Part(store.embeddings[rows], np.arange(len(rows)), none, none)
    model = {**store.encoder, "images": root, "listing": listing.digest()}
    model |= {"boxes": any(store.text("box", row) for row in rows)}
    vectors.write(output, [part], listing, model)
