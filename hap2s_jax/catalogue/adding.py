"""Adds images to a store: new ones, and all of them again for another encoder."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hap2s_jax.catalogue.columns import TEXTS, image_id, storable
from hap2s_jax.catalogue.known import check_labels, heed
from hap2s_jax.catalogue.state import OWN_COLUMNS, STATUSES
from hap2s_jax.catalogue.store import Store
from hap2s_jax.data.pixels import UnreadableImageError
from hap2s_jax.data.places import local
from hap2s_jax.data.regular_files import below, read_bytes
from hap2s_jax.errors import UserError, reason
from hap2s_jax.reporting.environment import usable_cores
from hap2s_jax.reporting.progress import ProgressBar
from hap2s_jax.serving import vectors
from hap2s_jax.serving.listing import Listing, claimed_folder, list_images
from hap2s_jax.serving.trained import TrainedEncoder

# Images of one transaction: an interruption loses fewer than this.
AT_ONCE = 2048
_COLUMNS = ("camera", "time", "place")


class Added(NamedTuple):
    """The result of adding: how many images are new, how many were there, and (path, reason) of those left out."""

    new: int
    known: int
    left_out: list[tuple[str, str]]


class _Image(NamedTuple):
    """An image that may be added: its place, its size in bytes when it was listed, its box and its texts."""

    folder: str
    path: str
    size: int
    box: str
    texts: dict[str, str]
    vector: np.ndarray | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """The identity of an image before it is read."""
        return self.folder, self.path, self.box


def add(
    store: Store,
    images: str | os.PathLike[str],
    encoder: TrainedEncoder | None = None,
    *,
    columns: str = "",
    batch_size: int | None = None,
    at_once: int = AT_ONCE,
    show_progress: bool = True,
    tell: Callable[[str], object] | None = None,
) -> Added:
    """Adds the images that the store does not have, by path and by content; interrupted and run again, it goes on.

    Args:
      store: where to. Images that it has take a label that is new, see `known.heed`.
      images: a folder or CSV file (`listing.list_images`), whose columns label, camera, time, place and any others are
        kept; or an .npz or .parquet file of `hap2s_jax.embed`, whose images are not embedded again.
      encoder: the one that the store is of; None for a file of embeddings.
      columns: what the columns of a CSV file are called.
      batch_size: see `TrainedEncoder.stream`.
      at_once: images of one transaction.
      show_progress: whether to draw a bar on standard error.
      tell: is given lines for the user, such as files that are no images, and what is new about known ones.

    Raises:
      UserError: no images; embeddings of another encoder; a label that cannot be, or exists with other capitals.
    """
    store.refresh()
    found, given = _opened(images, columns, store, encoder)
    if tell is not None:
        for remark in found.remarks:
            tell(remark)
    listed = [*_listed(found, given)]
    check_labels(store, {image.texts["label"] for image in listed} - {""})
    known = _known_keys(store, {image.path for image in listed})
    asked: list[_Image] = []
    left_out: list[tuple[str, str]] = []
    there: list[tuple[int, _Image]] = []
    for image in listed:
        size, number = known.get(image.key, (None, 0))
        if size is None:
            asked.append(image)
        elif size != image.size:
            left_out.append((image.path, "has changed since it was added; remove it first to add it anew"))
        else:
            there.append((number, image))
    before = len(store.ids)
    with ProgressBar(len(asked), 0, "adding", images_per_step=1, enabled=show_progress) as bar:
        for begin in range(0, len(asked), at_once):
            part = asked[begin : begin + at_once]
            fresh, failed, doubled = _read(store, part)
            there += doubled
            left_out += failed
            ids, vectors_, rows, failed = _embedded(fresh, encoder, batch_size)
            left_out += failed
            there += _append(store, ids, vectors_, rows)
            bar.update(begin + len(part))
    store.tables.tidy()
    store.refresh()
    for line in heed(store, [(number, image.texts) for number, image in there]):
        if tell is not None:
            tell(line)
    return Added(len(store.ids) - before, len(there), left_out)


def _opened(
    images: str | os.PathLike[str], columns: str, store: Store, encoder: TrainedEncoder | None
) -> tuple[Listing, np.ndarray | None]:
    """The images, and their embeddings where they are there already."""
    path = local(images)
    if path.suffix in vectors.SUFFIXES and path.is_file():
        gallery = vectors.read(path)
        check_encoder(store, gallery.model)
        if gallery.model.get("boxes"):
            raise UserError(f"--images: {path} is of boxes in images; add the CSV file that has the boxes")
        root = claimed_folder(str(gallery.model.get("images")))
        if root is None:
            raise UserError(f"--images: {path} claims a folder that is not opened; add its images instead")
        names = tuple(gallery.class_names.tolist())
        return Listing(root, gallery.paths.tolist(), gallery.labels, names), gallery.embeddings
    if encoder is None:
        raise UserError(f"--images: {images} needs the encoder to embed it")
    check_encoder(store, encoder.describe())
    found = list_images(path, columns)
    taken = {*OWN_COLUMNS, "folder", "size", "box", "more", "embedding"}
    others = {(f"own {name}" if name in taken else name): texts for name, texts in found.others.items()}
    renamed = tuple(f"the column {name} is kept as 'own {name}'" for name in sorted({*found.others} & taken))
    return dataclasses.replace(found, others=others, remarks=(*found.remarks, *renamed)), None


def _listed(found: Listing, given: np.ndarray | None) -> Iterator[_Image]:
    for row, (name, label) in enumerate(zip(found.paths, found.labels, strict=True)):
        texts = {column: values[row] for column, values in found.others.items() if values[row]}
        kept = {column: texts.pop(column, "") for column in _COLUMNS}
        kept |= {"label": found.class_names[label] if label >= 0 else ""}
        kept |= {"more": json.dumps(texts, ensure_ascii=False) if texts else ""}
        box = "" if found.boxes is None else ",".join(map(str, found.boxes[row].tolist()))
        folder, name = _place(found.root, name)
        size = -1
        with contextlib.suppress(OSError, ValueError):
            size = os.stat(os.path.join(folder, name)).st_size
        yield _Image(folder, name, size, box, kept, None if given is None else given[row])


def _place(root: pathlib.Path, name: str) -> tuple[str, str]:
    """A folder and the file's path in it: `root`, or the file's own folder if a path or link leads out of `root`."""
    with contextlib.suppress(OSError, ValueError):
        real, top = os.path.realpath(root / name), os.path.realpath(root)
        if not real.startswith(os.path.join(top, "")):
            return os.path.split(real)
    return str(root), name


def check_encoder(store: Store, made_by: Mapping[str, Any]) -> None:
    """Raises a UserError unless `made_by`, as `TrainedEncoder.describe` has it, is the encoder that the store is of."""
    ours = store.encoder
    if ours["fingerprint"] != made_by.get("fingerprint"):
        raise UserError(
            f"{store.tables.folder} is of step {ours.get('step')} of {ours.get('workdir')}, and these are vectors of "
            f"step {made_by.get('step')} of {made_by.get('workdir')}: weights, pre-processing or distance differ; "
            "move the store with `gallery re_embed`, or give the --workdir and --checkpoint that it was made with"
        )


def _known_keys(store: Store, paths: set[str]) -> dict[tuple[str, str, str], tuple[int, int]]:
    """The size in bytes and the id of the images at these paths, by `_Image.key`."""
    found = [row for rows in store.rows_at(sorted(paths)).values() for row in rows]
    kept = [row for row in found if STATUSES[store.statuses[row]] != "removed"]
    columns = store.rows(np.array(kept, np.int64))
    keys = zip(columns["folder"], columns["path"], columns["box"], strict=True)
    return dict(zip(keys, zip(columns["size"], columns["id"], strict=True), strict=True))


def _content(image: _Image) -> int:
    """The id of an image, by its bytes and box; errors are those of `read_bytes`."""
    digest = hashlib.sha256(read_bytes(below(image.folder, image.path)))
    if image.box:
        digest.update(f"\0{image.box}".encode())
    return image_id(digest.digest())


def _read(
    store: Store, images: Sequence[_Image]
) -> tuple[list[tuple[int, _Image]], list[tuple[str, str]], list[tuple[int, _Image]]]:
    """(id, image) of those with new content, (path, reason) of the unreadable, (id, image) of known content."""

    def content(image: _Image) -> int | Exception:
        try:
            return _content(image)
        except OSError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        ids = list(pool.map(content, images))
    failed = [(i.path, reason(n)) for n, i in zip(ids, images, strict=True) if isinstance(n, Exception)]
    fresh: dict[int, _Image] = {}
    doubled = []
    for number, image in zip(ids, images, strict=True):
        if isinstance(number, Exception):
            continue
        if store.has(number) or fresh.setdefault(number, image) is not image:
            doubled.append((number, image))
    return [*fresh.items()], failed, doubled


def _embedded(
    fresh: Sequence[tuple[int, _Image]], encoder: TrainedEncoder | None, batch_size: int | None
) -> tuple[np.ndarray, np.ndarray, list[_Image], list[tuple[str, str]]]:
    """Ids, embeddings and images of those that can be decoded, and (path, reason) of the others."""
    images = [image for _, image in fresh]
    if encoder is None:
        embeddings = np.array([image.vector for image in images], np.float32)
        failures: list[Exception | None] = [None] * len(images)
    else:
        embeddings, failures = embed(encoder, [(i.folder, i.path, i.box) for i in images], batch_size)
    fine = np.array([failure is None for failure in failures], bool)
    failed = [(i.path, reason(f)) for i, f in zip(images, failures, strict=True) if f is not None]
    ids = np.array([number for number, _ in fresh], np.int64)
    return ids[fine], embeddings[fine], [i for i, ok in zip(images, fine, strict=True) if ok], failed


def embed(
    encoder: TrainedEncoder,
    places: Sequence[tuple[str, str, str]],
    batch_size: int | None = None,
    contents: Mapping[tuple[str, str, str], int] | None = None,
) -> tuple[np.ndarray, list[Exception | None]]:
    """Embeds images given as (folder, path, box): float32 `[n, d]`, and for each image why it failed.

    `contents` are the ids that the images should have.
    """

    def read(place: tuple[str, str, str]) -> np.ndarray:
        folder, path, box = place
        image = below(folder, path)
        if contents is not None and _content(_Image(folder, path, 0, box, {})) != contents[place]:
            raise UnreadableImageError("it has changed since it was added")
        return encoder.preprocess(image, box=box_of(box))

    parts, failures = [np.zeros((0, encoder.dim), np.float32)], []
    for batch in encoder.stream(places, batch_size=batch_size, read=read):
        parts.append(batch.embeddings)
        failures += batch.failures
    return np.concatenate(parts), failures


def box_of(text: str) -> np.ndarray | None:
    """left, top, right and bottom as a store keeps them; None for a whole image.

    Raises:
      UnreadableImageError: they are none.
    """
    try:
        box = np.array([int(side) for side in text.split(",")], np.int32) if text else None
        if box is not None and box.shape != (4,):
            raise ValueError
        return box
    except (ValueError, OverflowError):
        raise UnreadableImageError(f"its box is {text!r:.60}") from None


def _append(
    store: Store, ids: np.ndarray, embeddings: np.ndarray, images: Sequence[_Image]
) -> list[tuple[int, _Image]]:
    """Writes the images in one transaction; returns (id, image) of those that another process has added meanwhile."""
    with store.tables.writing():
        fingerprint = store.encoder["fingerprint"]
        store.refresh()
        if store.encoder["fingerprint"] != fingerprint:
            raise UserError(
                f"{store.tables.folder} was moved to another encoder meanwhile; add again with it"
            )
        new = [n for n, number in enumerate(ids.tolist()) if not store.has(number)]
        if new:
            rows = {"id": ids[new], "size": [images[n].size for n in new]}
            for name in TEXTS:
                values = [getattr(images[n], name, None) or images[n].texts.get(name, "") for n in new]
                rows[name] = [*map(storable, values)]
            store.tables.add_images(fingerprint, rows, embeddings[new])
            store.refresh()
    return [(int(ids[n]), images[n]) for n in {*range(len(ids))} - {*new}]
