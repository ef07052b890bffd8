"""A growing gallery: decisions about images of known and new individuals."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import unicodedata
from collections.abc import Container, Iterator, Mapping, Sequence

import numpy as np

from hap2s_jax.catalogue.state import STATUSES, State
from hap2s_jax.catalogue.tables import Tables, on_disk
from hap2s_jax.errors import UserError, did_you_mean, require
from hap2s_jax.serving.trained import TrainedEncoder

_LONGEST = 200
_TIDY_EVERY = 64


class Store(State):
    """A store of images, embedded by one encoder, and of decisions about them; see `State` for what it holds.

    Every decision is one transaction, checked against the newest state while no other process may write.
    """

    @classmethod
    def create(cls, folder: str | os.PathLike[str], encoder: TrainedEncoder) -> Store:
        """A new and empty store for what `encoder` embeds.

        Raises:
          UserError: the folder exists already, or cannot be written.
        """
        Tables.create(on_disk(folder), encoder.describe(), encoder.dim)
        return cls(folder)

    def check_labels(self, labels: Sequence[str], *, exists: bool | None = None) -> list[str]:
        """Checks labels; returns them as they will be kept.

        Args:
          labels: of somebody who knows.
          exists: whether there must be such individuals, or must not; None for either.

        Raises:
          UserError: one cannot be a label, or exists with other capitals, or there is one, or none.
        """
        names = self.individuals()
        folded = {name.casefold(): name for name in names}
        return [self._check_label(label, names, folded, exists) for label in labels]

    def _check_label(
        self, label: str, names: Container[str], folded: Mapping[str, str], exists: bool | None
    ) -> str:
        label = unicodedata.normalize("NFC", label.strip())
        fine = 0 < len(label) <= _LONGEST and label.isprintable()
        require(fine, "label", repr(label[:_LONGEST]), f"1 to {_LONGEST} letters that are printed")
        if label in names:
            if exists is False:
                raise UserError(f"there is an individual {label!r} already; choose another name")
            return label
        if alike := folded.get(label.casefold()):
            raise UserError(
                f"label {label!r} exists with other capitals: {alike!r}; write it so, or another one"
            )
        if exists:
            raise UserError(f"there is no individual {label!r}{did_you_mean(label, [*folded.values()])}")
        return label

    def same(self, images: Sequence[int | str], label: str, *, by: str = "", seen: int | None = None) -> int:
        """Says that images show a known individual; arguments and result as in `relabel`."""
        return self._decide("same", images, label, by=by, seen=seen, exists=True)

    def new(
        self, images: Sequence[int | str], label: str = "", *, by: str = "", seen: int | None = None
    ) -> int:
        """Records that images show a new individual, which gets a number if no label is given."""
        return self._decide("new", images, label, by=by, seen=seen, exists=False)

    def relabel(
        self, images: Sequence[int | str], label: str, *, by: str = "", seen: int | None = None
    ) -> int:
        """Gives images a label, known or new.

        Args:
          images: ids or paths.
          label: the individual.
          by: who decides.
          seen: the number of the newest decision that they have seen; None where that does not matter.

        Returns:
          The number of the decision.

        Raises:
          UserError: there is no such image; the label is not allowed; an image has a decision newer than `seen`.
        """
        return self._decide("relabel", images, label, by=by, seen=seen)

    def mark(self, images: Sequence[int | str], status: str, *, by: str = "", seen: int | None = None) -> int:
        """Puts images off ("later"), or says that they are "unusable" or "removed"; their labels stay."""
        require(status in STATUSES[1:], "status", repr(status), f"one of {', '.join(STATUSES[1:])}")
        return self._decide(status, images, None, status=status, by=by, seen=seen)

    def merge(self, labels: Sequence[str], into: str, *, by: str = "") -> int:
        """Merges several individuals into one."""
        with self._held():
            (into,) = self.check_labels([into])
            codes = [self._numbers[label] for label in self.check_labels(labels, exists=True)]
            rows = np.flatnonzero(np.isin(self.labels, codes) & (self.labels != self._numbers.get(into, -1)))
            return self._append("merge", rows, into, None, by)

    def split(self, images: Sequence[int | str], label: str = "", *, by: str = "") -> int:
        """Makes a new individual of some images of another; it gets a number if no label is given."""
        with self._held():
            rows = self.rows_of(images)
            whole = np.flatnonzero(self.known & (self.labels == self.labels[rows[0]])) if len(rows) else rows
            if not set(rows.tolist()) < set(whole.tolist()):
                raise UserError("split takes some of the images of one individual, not all, and of no other")
            return self._append("split", rows, self._unused(label), "", by)

    def take(self, labels: Mapping[int, str]) -> np.ndarray:
        """Gives images the labels that a listing has for them, in one decision, where they have no label and nobody has
        decided about them.

        Returns:
          The rows of these images, int64 `[r]`.
        """
        with self._held():
            rows, found = self.places(np.array([*labels], np.int64))
            free = (self.labels[rows] == 0) & (self.changed[rows] == 0) & self.usable[rows]
            if free.any():
                names = np.array([*labels.values()], object)[found][free]
                self._append("listed", rows[free], self.check_labels(names.tolist()), "", "")
            return rows[free]

    def undo(self, number: int | None = None, *, by: str = "") -> tuple[int, int]:
        """Takes a decision back, by an entry of the opposite decision.

        Later decisions about the same images stay. To undo an undo, decide again.

        Args:
          number: of the decision; by default the newest one that has not been undone or overtaken.
          by: who undoes. Their own newest decision is meant where no number is given, unless it is "".

        Returns:
          The number of the entry, and how many images had been decided about later.

        Raises:
          UserError: there is nothing to undo.
        """
        with self._held():
            if number is None:
                mine = [entry for entry in self.history() if entry.kind != "undo" and by in ("", entry.by)]
                held = set(self.holding.tolist())
                number = max((entry.number for entry in mine if entry.number in held), default=0)
                if not number:
                    raise UserError("undo: nothing is left to undo")
            touched = np.asarray(self.log.column("image"))[np.asarray(self.log.column("number")) == number]
            require(len(touched) > 0, "undo", number, "the number of a decision; `history` lists them")
            places, _ = self.places(touched)
            rows = places[self.holding[places] == number]
            require(len(rows) > 0, "undo", number, "a decision that no later one has replaced or undone")
            before = [self._before(row, number) for row in rows]
            labels, statuses, holds = map(list, zip(*before, strict=True))
            done = self._append("undo", rows, labels, statuses, by, undoes=number, holds=holds)
            return done, len(places) - len(rows)

    def _before(self, row: int, number: int) -> tuple[str, str, int]:
        """Label and status of an image before a decision, and the decision that had made it so."""
        numbers, images = (np.asarray(self.log.column(name)) for name in ("number", "image"))
        earlier = np.flatnonzero((images == self.ids[row]) & (numbers < number))
        if not len(earlier):
            return self.names[self.first_labels[row]], "", 0
        label, status, holds = (
            self.log.column(name)[int(earlier[-1])].as_py() for name in ("label", "status", "holds")
        )
        return label, status, holds

    def _decide(
        self,
        kind: str,
        images: Sequence[int | str],
        label: str | None,
        *,
        by: str,
        status: str = "",
        seen: int | None = None,
        exists: bool | None = None,
    ) -> int:
        with self._held():
            rows = self.rows_of(images)
            if seen is not None and len(late := rows[self.changed[rows] > seen]):
                other = next(d for d in self.history() if d.number == self.changed[late[0]])
                raise UserError(
                    f"{self.text('path', int(late[0]))} was decided meanwhile: {other.kind} {other.label} by "
                    f"{other.by or 'somebody'}; look at it again"
                )
            if label is not None:
                label = (
                    self._unused(label) if exists is False else self.check_labels([label], exists=exists)[0]
                )
            return self._append(kind, rows, label, status, by)

    def _unused(self, label: str) -> str:
        """The label for a new individual: as given, or the next number."""
        if label.strip():
            return self.check_labels([label], exists=False)[0]
        numbers = [int(name[11:]) for name in self.names if re.fullmatch(r"individual-\d{4,9}", name)]
        return f"individual-{max(numbers, default=0) + 1:04d}"

    def _append(
        self,
        kind: str,
        rows: np.ndarray,
        label: str | Sequence[str] | None,
        status: str | Sequence[str] | None,
        by: str,
        *,
        undoes: int = 0,
        holds: Sequence[int] | None = None,
    ) -> int:
        """Writes an entry of the log; None leaves labels or statuses unchanged."""
        if not len(rows):
            raise UserError(f"{kind}: no image is named, or none fits; `list` shows them")
        require(len(by) <= _LONGEST and (by.isprintable()), "by", repr(by[:_LONGEST]), "a short name")
        number, count = self.last + 1, len(rows)
        as_they_are = [self.names[n] for n in self.labels[rows]], [STATUSES[n] for n in self.statuses[rows]]
        labels, statuses = (
            old if value is None else [value] * count if isinstance(value, str) else list(value)
            for value, old in zip((label, status), as_they_are, strict=True)
        )
        self.tables.add_decision(
            {
                "number": [number] * count,
                "time": [datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")] * count,
                "by": [by] * count,
                "kind": [kind] * count,
                "image": self.ids[rows],
                "label": labels,
                "status": statuses,
                "undoes": [undoes] * count,
                "holds": [number] * count if holds is None else list(holds),
            }
        )
        self.refresh()
        if number % _TIDY_EVERY == 0:
            self.tables.tidy()
        return number

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The newest state, while no other process may write."""
        with self.tables.writing():
            self.refresh()
            yield
