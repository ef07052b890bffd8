"""What a listing says beside the images themselves: its labels, and whatever is new about images that a store has."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hap2s_jax.catalogue.columns import more_of, shown_id, storable
from hap2s_jax.catalogue.store import Store
from hap2s_jax.errors import UserError

Said = tuple[int, Mapping[str, str]]  # an image's id, and its label, camera, time, place and more (JSON)


def check_labels(store: Store, labels: set[str]) -> None:
    """Checks all labels before any image is added: one wrong label refuses all."""
    folded: dict[str, str] = {}
    for label, kept in zip(sorted(labels), store.check_labels(sorted(labels)), strict=True):
        if kept != label:
            raise UserError(f"label {label!r} should be {kept!r}, as Unicode composes it")
        if (other := folded.setdefault(label.casefold(), label)) != label:
            raise UserError(f"label {label!r} exists with other capitals: {other!r}; write both alike")


def heed(store: Store, said: Sequence[Said]) -> list[str]:
    """Takes the labels of images that have neither label nor decision, and returns lines on these and on what differs.

    What the listing said when an image was added does not differ: a decision has changed it since.

    Args:
      store: up to date.
      said: about images that the listing has and the store had; others, and those taken out, are passed over.
    """
    rows, found = store.places(np.array([image for image, _ in said], np.int64))
    there = (texts for (_, texts), is_there in zip(said, found, strict=True) if is_there)
    pairs = [pair for pair in zip(rows.tolist(), there, strict=True) if store.usable[pair[0]]]
    wanted: dict[int, str] = {}
    for row, texts in pairs:
        if texts["label"] and not (store.labels[row] or store.changed[row]):
            wanted.setdefault(int(store.ids[row]), texts["label"])
    taken = store.take(wanted) if wanted else rows[:0]
    return [*_taken(store, taken), *_other_labels(store, pairs), *_other_columns(store, pairs)]


def _taken(store: Store, rows: np.ndarray) -> Iterator[str]:
    if len(rows):
        yield (
            f"{len(rows):,} known images had no label and take the one that they have here, such as "
            f"{store.text('path', rows[0])} ({store.name_of(rows[0])!r}); `undo` takes it back"
        )


def _other_labels(store: Store, pairs: Sequence[tuple[int, Mapping[str, str]]]) -> Iterator[str]:
    others = {
        row: texts["label"]
        for row, texts in pairs
        if texts["label"] not in ("", store.name_of(row), store.names[store.first_labels[row]])
    }
    if others:
        row, label = next(iter(others.items()))
        folder, image = (shlex.quote(text) for text in (str(store.tables.folder), shown_id(store.ids[row])))
        yield (
            f"{len(others):,} known images have another label here, such as {store.text('path', row)} ({label!r} here, "
            f"{store.name_of(row) or 'none'!r} in the gallery), and keep theirs; python -m hap2s_jax.gallery relabel "
            f"{folder} --image {image} --label={shlex.quote(label)} changes it"
        )


def _other_columns(store: Store, pairs: Sequence[tuple[int, Mapping[str, str]]]) -> Iterator[str]:
    kept = store.rows(np.array([row for row, _ in pairs], np.int64))
    others: dict[int, tuple[str, str, str]] = {}
    for place, (row, texts) in enumerate(pairs):
        here = {name: storable(texts[name]) for name in ("camera", "time", "place")}
        ours = {name: kept[name][place] or "" for name in here}
        if storable(texts["more"]) != (kept["more"][place] or ""):
            here |= more_of(storable(texts["more"]))
            ours |= more_of(kept["more"][place] or "")
        for name, value in here.items():
            if value and value != ours.get(name, ""):
                others.setdefault(row, (name, value, ours.get(name, "")))
    if others:
        row, (name, here_, ours_) = next(iter(others.items()))
        yield (
            f"{len(others):,} known images have other values here in columns beside the label, such as "
            f"{store.text('path', row)} ({name}: {here_!r} here, {ours_!r} in the gallery), and keep theirs"
        )
