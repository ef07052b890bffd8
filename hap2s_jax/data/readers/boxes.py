"""The boxes of a table: in the conventions that people have, checked, and given as corners."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hap2s_jax.data import shares
from hap2s_jax.errors import UserError

_LETTERS = r"(^|[^a-z])"
_ACROSS = rf"{_LETTERS}(c?x|w|left|right|width)|x([^a-z]|$)"
_DOWN = rf"{_LETTERS}(c?y|h|top|bottom|height|upper|lower)|y([^a-z]|$)"
_CENTRE = rf"{_LETTERS}(c[xy]|[xy]c|[xy]?_?(cent(er|re)|mid))"


class Boxes:
    """Boxes as they are read, row by row.

    Args:
      file: what messages call the table.
      names: the columns of a box in lower case: four corners, or a corner (or the centre) with width and height, which
        their names tell; or one column that holds x, y, width and height.

    Raises:
      UserError: the names are not in the order across, down, across, down.
    """

    def __init__(self, file: Path | str, names: Sequence[str]):
        self._file, self._names = file, "+".join(names)
        self._one = len(names) == 1
        self._has_size = self._one or all(
            re.search(rf"{_LETTERS}({word})$", name)
            for word, name in zip(("w|width", "h|height"), names[2:], strict=True)
        )
        self._is_centre = not self._one and self._has_size and all(re.search(_CENTRE, n) for n in names[:2])
        for name, direction, other in zip(names, (_ACROSS, _DOWN) * 2, (_DOWN, _ACROSS) * 2, strict=False):
            if not self._one and re.search(other, name) and not re.search(direction, name):
                raise UserError(
                    f"columns: box={self._names} should name left, top, right and bottom, or x, y, width and height, "
                    f"in this order; {name} is out of it"
                )
        self._rows: list[Sequence[float]] = []
        self._largest = 0.0

    def add(self, line: int, cells: Sequence[str]) -> None:
        """The box of one row; four empty cells are no box, and the image is taken whole.

        Raises:
          UserError: the cells are not four numbers.
        """
        if not any(cell.strip() for cell in cells):
            self._rows.append([np.nan] * 4)
            return
        if self._one:
            cells = re.findall(r"[^\s,;\[\]()]+", cells[0])
        try:
            # Spreadsheets of many countries write 10,5 for 10.5.
            numbers = [float(re.sub(r"^([^.,]*),([^.,]*)$", r"\1.\2", cell)) for cell in cells]
            left, top, third, fourth = numbers
            if self._is_centre:
                left, top = left - third / 2, top - fourth / 2
            corners = (
                (left, top, left + third, top + fourth) if self._has_size else (left, top, third, fourth)
            )
            if not all(-(2**31) <= round(corner) < 2**31 for corner in corners):
                raise OverflowError
        except (ValueError, OverflowError):
            raise UserError(
                f"{self._file}, line {line}: the box ({self._names}) must be four numbers of at most 32 bits, found "
                f"{' '.join(cells)}"
            ) from None
        self._largest = max(self._largest, *map(abs, numbers))
        self._rows.append(corners)

    def array(self, lines: Sequence[int]) -> tuple[np.ndarray, tuple[str, ...]]:
        """int32 `[n, 4]` left, top, right, bottom, the last two exclusive, all 0 for whole images; and remarks.

        Where no number of any box exceeds 1, all are shares of their images; see `shares`.

        Args:
          lines: `[n]` the lines of the rows.

        Raises:
          UserError: boxes are empty or turned round.
        """
        corners = np.array(self._rows, np.float64)
        whole = np.isnan(corners[:, 0])
        are_shares = self._largest <= 1 and not whole.all()
        corners = np.clip(corners, 0, 1) if are_shares else np.round(corners)
        if (empty := np.flatnonzero(np.any(corners[:, 2:] <= corners[:, :2], axis=1))).size:
            box = ", ".join(f"{side:.10g}" for side in corners[empty[0]])
            raise UserError(
                f"{self._file}: {len(empty):,} of {len(corners):,} boxes are empty or turned round, such as line "
                f"{lines[empty[0]]}: left, top, right, bottom {box}; where they are x, y, width and height, name the "
                "columns: columns=box=x+y+w+h (in a config, data.options.columns)"
            )
        remarks = []
        if are_shares:
            remarks.append("no number of a box exceeds 1, so boxes are taken as shares of their images")
        if whole.any():
            remarks.append(f"{whole.sum():,} of {len(whole):,} images have no box and are taken whole")
        boxes = np.zeros(corners.shape, np.int32)
        boxes[~whole] = shares.encode(corners[~whole]) if are_shares else corners[~whole]
        return boxes, tuple(remarks)
