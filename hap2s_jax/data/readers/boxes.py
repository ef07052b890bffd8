"""The boxes of a table: in the conventions that people have, checked, and given as corners."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
        self._rows: list[list[int]] = []
        self._empty: list[int] = []
        self._largest = 0.0
        self._whole = 0

    def add(self, line: int, cells: Sequence[str]) -> None:
        """The box of one row; four empty cells are no box, and the image is taken whole.

        Raises:
          UserError: the cells are not four numbers.
        """
        if not any(cell.strip() for cell in cells):
            self._rows.append([0, 0, 0, 0])
            self._whole += 1
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
        self._rows.append(box := [round(corner) for corner in corners])
        if box[2] <= box[0] or box[3] <= box[1]:
            self._empty.append(line)

    def array(self, lines: Sequence[int]) -> tuple[np.ndarray, tuple[str, ...]]:
        """int32 `[n, 4]` left, top, right, bottom, the last two exclusive, all 0 for whole images; and remarks.

        Args:
          lines: `[n]` the lines of the rows.

        Raises:
          UserError: boxes are empty, turned round, or not in pixels.
        """
        count = len(self._rows)
        if self._whole < count and self._largest <= 1:
            raise UserError(
                f"{self._file}: no box reaches beyond 1, as if they were shares of the image; they should be in pixels"
            )
        if self._empty:
            box = self._rows[list(lines).index(self._empty[0])]
            raise UserError(
                f"{self._file}: {len(self._empty):,} of {count:,} boxes are empty or turned round, such as line "
                f"{self._empty[0]}: left, top, right, bottom {', '.join(map(str, box))}; where they are x, y, width "
                "and height, name the columns: columns=box=x+y+w+h (in a config, data.options.columns)"
            )
        remark = f"{self._whole:,} of {count:,} images have no box and are taken whole"
        return np.array(self._rows, np.int32), (remark,) if self._whole else ()
