"""The present contents of a store: images, embeddings, and the labels that follow from the log of decisions."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from hap2s_jax import extras
from hap2s_jax.catalogue import filters
from hap2s_jax.catalogue.columns import Images, more_of, pyarrow, shown_id, storable
from hap2s_jax.catalogue.tables import Tables, give_back, on_disk
from hap2s_jax.data.places import local
from hap2s_jax.errors import UserError, did_you_mean
from hap2s_jax.serving.listing import claimed_folder

# States of an image: in use; to be looked at again; of no use; taken out.
STATUSES = ("", "later", "unusable", "removed")
OWN_COLUMNS = ("id", "path", "label", "status")
_PLAIN = ("path", "camera", "time", "place")


@dataclasses.dataclass(frozen=True)
class Decision:
    """An entry of the log; `undoes` is the number of the one that it takes back, or 0."""

    number: int
    time: str
    by: str
    kind: str
    images: int
    label: str
    undoes: int


class State:
    """The images and decisions of a store as of the last `refresh`.

    An image's label follows from its first label and the log. All embeddings are in memory.

    Args:
      folder: made by `Store.create`.
      pictures: the folder that all images' paths are relative to now; by default where each lay when it was added.

    Attributes:
      ids: int64 `[n]`, made of the content of each image.
      embeddings: float32 `[n, d]`.
      labels: int32 `[n]`, numbers of `names`, whose first is "", an image without one.
      statuses: int8 `[n]`, places in STATUSES.
      changed: int64 `[n]`, the number of the last decision about each image, 0 without one.
      holding: int64 `[n]`, the number of the decision that made it what it is; another than `changed` after an undo.
      encoder: which one embedded the images, as `TrainedEncoder.describe` has it.

    Raises:
      UserError: there is no store, or it is damaged, or of a later version.
    """

    def __init__(self, folder: str | os.PathLike[str], *, pictures: str | os.PathLike[str] | None = None):
        self.tables = Tables(on_disk(folder))
        self.pictures = None if pictures is None else local(pictures)
        self._versions: tuple[str, int, int] = ("", -1, -1)
        self._images: Images | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Takes in what other processes have changed; returns whether there was anything."""
        versions = self.tables.versions()
        if versions == self._versions:
            return False
        if versions[:2] != self._versions[:2]:
            self._read_images()
        self._fold(self.tables.read_decisions(self.last))
        self._versions = versions
        return True

    def _read_images(self) -> None:
        encoder: dict[str, Any] = self.tables.state["active"]
        had = self._images if self._images and encoder == self.encoder else None
        images = self._images = self.tables.read_images(encoder["fingerprint"], had)
        if not images.kept:
            self._begin(encoder)
        elif images.kept == len(images.texts):
            return  # another process has tidied up
        self._table, self.embeddings, _ = images
        ids, first = np.unique(images.ids, return_index=True)
        if len(ids) < len(self._table):  # two processes added the same images
            first.sort()
            self._table, self.embeddings = self._table.take(first), self.embeddings[first]
        new = self._table.slice(len(self.ids))
        coded = new.column("label").combine_chunks().dictionary_encode()
        codes = np.array([self._number(name) for name in coded.dictionary.to_pylist()], np.int32)
        labels = codes[np.asarray(coded.indices)] if len(new) else np.zeros(0, np.int32)
        self.labels, self.first_labels = (
            np.concatenate([n, labels]) for n in (self.labels, self.first_labels)
        )
        self.statuses = np.concatenate([self.statuses, np.zeros(len(new), np.int8)])
        nothing = np.zeros(len(new), np.int64)
        self.changed, self.holding = (np.concatenate([n, nothing]) for n in (self.changed, self.holding))
        self.ids = np.asarray(self._table.column("id"))
        self._order = np.argsort(self.ids)
        self._columns: dict[str, Any] = {}
        give_back()
        if self.log is not None:  # decisions on them may have been read before them
            self._apply(self.log.filter(np.isin(self.log.column("image"), new.column("id"))))

    def _begin(self, encoder: dict[str, Any]) -> None:
        """The state without any image or decision."""
        self.encoder = encoder
        self.names: list[str] = [""]
        self._numbers = {"": 0}
        self.labels, self.first_labels = np.zeros(0, np.int32), np.zeros(0, np.int32)
        self.ids, self.statuses = np.zeros(0, np.int64), np.zeros(0, np.int8)
        self.changed, self.holding = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.log: Any = None
        self.last = 0

    def _fold(self, rows: Any) -> None:
        """Applies decisions; of several about one image the last counts."""
        self.log = rows if self.log is None else pyarrow().concat_tables([self.log, rows])
        if len(rows):
            self._apply(rows)
            self.last = rows.column("number")[-1].as_py()

    def _apply(self, rows: Any) -> None:
        places, found = self.places(np.asarray(rows.column("image")))
        labels = [self._number(name) for name in rows.column("label").to_pylist()]
        statuses = [STATUSES.index(s) if s in STATUSES else 0 for s in rows.column("status").to_pylist()]
        self.labels[places] = np.array(labels, np.int32)[found]
        self.statuses[places] = np.array(statuses, np.int8)[found]
        for name, values in (("number", self.changed), ("holds", self.holding)):
            values[places] = np.asarray(rows.column(name))[found]

    def _number(self, name: str | None) -> int:
        number = self._numbers.setdefault(name or "", len(self.names))
        if number == len(self.names):
            self.names.append(name or "")
        return number

    def places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of those `ids` that exist, and a mask of these ids, bool `[len(ids)]`."""
        if not len(self.ids):
            return np.zeros(0, np.int64), np.zeros(len(ids), bool)
        near = np.minimum(np.searchsorted(self.ids, ids, sorter=self._order), len(self.ids) - 1)
        rows = self._order[near]
        found = self.ids[rows] == ids
        return rows[found], found

    # Looking.

    def text(self, name: str, row: int) -> str:
        """The value of an image's column: folder, path, box, camera, time, place or more."""
        return self._table.column(name)[row].as_py() or ""

    def texts(self, name: str) -> list[str]:
        """As `text`, for all images."""
        return self._table.column(name).fill_null("").to_pylist()

    def rows(self, rows: np.ndarray) -> dict[str, list[Any]]:
        """All columns of images except embeddings: id, size in bytes, and texts."""
        return self._table.take(rows).to_pydict()

    def has(self, number: int) -> bool:
        """Whether there is an image of this id."""
        return bool(self.places(np.array([number]))[1][0])

    def folder_of(self, row: int) -> pathlib.Path | None:
        """The folder that an image's path is relative to; None if it must not be opened, see `claimed_folder`."""
        return self.pictures or claimed_folder(self.text("folder", row))

    def name_of(self, row: int) -> str:
        """The individual that an image shows, "" if undecided."""
        return self.names[self.labels[row]]

    @property
    def usable(self) -> np.ndarray:
        """Which images are neither of no use nor taken out, bool `[n]`."""
        return self.statuses < STATUSES.index("unusable")

    @property
    def known(self) -> np.ndarray:
        """Which images show an individual with a name and can be found, bool `[n]`."""
        return self.usable & (self.labels > 0)

    def individuals(self) -> dict[str, int]:
        """The number of images of each individual, by name."""
        codes, counts = np.unique(self.labels[self.known], return_counts=True)
        return dict(sorted((self.names[code], int(n)) for code, n in zip(codes, counts, strict=True)))

    def queue(self) -> np.ndarray:
        """Rows of the images that wait for a decision, those put off last."""
        waiting = np.flatnonzero(self.usable & (self.labels == 0))
        return waiting[np.argsort(self.statuses[waiting], kind="stable")]

    def rows_of(self, images: Sequence[int | str]) -> np.ndarray:
        """Rows of images that are named by id, as a number or as `shown_id` writes it, or by path."""
        rows = []
        by_path = self.rows_at([str(image) for image in images if _typed_id(image) < 0])
        for image in images:
            places = self.places(np.array([_typed_id(image)]))[0].tolist() or by_path.get(
                storable(str(image)), []
            )
            if len(places) != 1:
                several = f"{len(places)} images; name one by its id" if len(places) else "no image"
                raise UserError(
                    f"{image!r:.200} is {several} of {self.tables.folder}; `list` shows what there is"
                )
            rows.append(int(places[0]))
        return np.array(rows, np.int64)

    def rows_at(self, paths: Sequence[str]) -> dict[str, list[int]]:
        """The rows of images at `paths`, as the store spells these."""
        if not paths:
            return {}
        compute, column = extras.load("a store", "pyarrow.compute", "gallery"), self._table.column("path")
        rows = np.flatnonzero(compute.is_in(column, value_set=pyarrow().array([*map(storable, paths)])))
        found: dict[str, list[int]] = {}
        for row, value in zip(rows.tolist(), column.take(rows).to_pylist(), strict=True):
            found.setdefault(value, []).append(row)
        return found

    def where(self, text: str) -> np.ndarray:
        """Which images meet a filter (`filters.parse`), bool `[n]`; all for ""."""
        return filters.matching(filters.parse(text), self.column) if text else np.ones(len(self.ids), bool)

    def column(self, name: str) -> Any:
        """A column's texts by the name that it has in filters, an array of pyarrow `[n]`.

        Raises:
          UserError: no image has such a column.
        """
        arrow = pyarrow()
        if name == "label":
            return arrow.array(np.array(self.names, object)[self.labels], arrow.string())
        if name == "status":
            return arrow.array(np.array(STATUSES, object)[self.statuses], arrow.string())
        if name == "id":
            return arrow.array([shown_id(image) for image in self.ids.tolist()], arrow.string())
        if name in _PLAIN:
            return self._table.column(name).fill_null("")
        if not self._columns and len(self.ids):
            kept = [more_of(text) for text in self.texts("more")]
            for column in sorted({column for more in kept for column in more}):
                self._columns[column] = arrow.array([more.get(column, "") for more in kept], arrow.string())
        if name not in self._columns:
            there = [*OWN_COLUMNS, *_PLAIN[1:], *self._columns]
            raise UserError(
                f"--where: no image has a column {name!r}{did_you_mean(name, there)}; there are {', '.join(there)}"
            )
        return self._columns[name]

    def history(self, newest: int | None = None) -> list[Decision]:
        """The decisions, oldest first; with `newest`, only so many of the newest."""
        numbers = np.asarray(self.log.column("number"))
        _, first, counts = np.unique(numbers, return_index=True, return_counts=True)
        first, counts = (values[-(newest or len(values)) :] for values in (first, counts))
        rows = self.log.take(first).to_pylist() if len(first) else []
        return [
            Decision(r["number"], r["time"], r["by"], r["kind"], int(count), r["label"], r["undoes"])
            for r, count in zip(rows, counts, strict=True)
        ]


def _typed_id(image: int | str) -> int:
    """The number of an id in text form, -1 if it is not an id."""
    if isinstance(image, str):
        return int(image, 16) if len(image) == 16 and re.fullmatch("[0-7][0-9a-f]{15}", image) else -1
    return int(image)
