"""Opening CSV files as people have them: dialects and encodings."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from hap2s_jax.data.regular_files import MAX_LIST, read_bytes
from hap2s_jax.errors import UserError, reason

_DELIMITERS = ",;\t|"


def open_csv(file: Path, wanted: Mapping[str, str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns, and the rows that are not blank, each with its line and padded to the header's length.

    Args:
      file: the CSV.
      wanted: our columns -> what they are called here, which tells the delimiter.
    """
    try:
        text = _decode(read_bytes(file, MAX_LIST))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error
    if separator := re.match(r"sep=(.)\r?\n", text):  # a line of spreadsheet programs
        text = text[separator.end() :]
    start = text.lstrip("\r\n \t")

    def head_by(delimiter: str) -> list[str]:
        names = next(csv.reader(io.StringIO(start[:65536], newline=""), delimiter=delimiter), [])
        return [name.strip().lower() for name in names]

    def fitting(delimiter: str) -> tuple[int, int]:
        head = head_by(delimiter)
        named = {part for name in wanted.values() for part in name.split("+") if name}
        return len(named & {*head}), len(head)

    try:
        delimiter = max(_DELIMITERS, key=fitting)  # the first of equals: a comma
        head = head_by(delimiter)
    except csv.Error as error:
        raise UserError(f"{file} is no CSV file: {error}") from None

    def rows() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        before = 1 if separator else 0
        try:
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if any(cell.strip() for cell in row[len(head) :]):
                    raise UserError(
                        f"{file}, line {before + reader.line_num}: has {len(row)} fields, and the first line names "
                        f"{len(head)}; a text with {delimiter!r} in it must be in quotes"
                    )
                yield before + reader.line_num, [*row, *[""] * (len(head) - len(row))]
        except csv.Error as error:
            raise UserError(f"{file} is no CSV file: {error}") from None

    found = rows()
    next(found, None)  # skip the header
    return head, found


def _decode(data: bytes) -> str:
    """Decodes UTF-8, with Windows-1252 for lines that are not, or UTF-16 or -32 by their marks or zeros."""
    for mark, name in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(name, "replace")
    zeros = [data[side:200:2].count(0) for side in (0, 1)]
    if max(zeros) > 20 and not min(zeros):  # letters of Western languages have a zero in every pair
        return data.decode("utf-16-be" if zeros[0] else "utf-16-le", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "".join(map(_decode_line, data.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True)))


def _decode_line(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        # Its five bytes without a letter survive as file names.
        return line.decode("cp1252", "surrogateescape")
