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
_AS_CSV = "save its table as CSV (File > Save as)"
_FOLDER = "give the folder of images, or a CSV that names them"
# What people give in the place of a CSV, by its first bytes.
_STRANGE = (
    (b"\xd0\xcf\x11\xe0", f"an Excel workbook, or another Office document; {_AS_CSV}"),
    (b"%PDF", f"a PDF; copy its table to a spreadsheet program, and {_AS_CSV}"),
    (b"PAR1", "a Parquet file; give its folder with data.name=hf, or save it as CSV"),
    *(
        (mark, "a compressed file; unpack it")
        for mark in (b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    ),
    *(
        (mark, f"an image; {_FOLDER}")
        for mark in (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")
    ),
)
# Documents are zip archives; by what only they have in them, such as a member in the folder xl.
_ZIPPED = (
    (rb"PK\x01\x02.{42}xl/", f"an Excel workbook; {_AS_CSV}"),
    (rb"mimetypeapplication/vnd\.oasis\.opendocument", f"an OpenDocument file; {_AS_CSV}"),
    (rb"Index/Document\.iwa", f"an Apple Numbers document; {_AS_CSV}"),
    (rb"\[Content_Types\]\.xml", f"an Office document; {_AS_CSV}"),
    (b"", f"a zip archive; unpack it, and {_FOLDER}"),
)
# Bytes that no text has, and how many of them make a file none: some damaged texts hold a few.
_CONTROL = bytes({*range(32)} - {*b"\t\n\f\r\x1a\x1b"})
_LOOKED_AT, _FEW = 4096, 8


def open_csv(file: Path, wanted: Mapping[str, str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns, and the rows that are not blank, each with its line and padded to the header's length.

    Args:
      file: the CSV.
      wanted: our columns -> what they are called here, which tells the delimiter.

    Raises:
      UserError: the file cannot be read or is no CSV; or, while iterating, a row is malformed.
    """
    text = read_text(file)
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
        raw: list[str] = []  # the lines of a row
        lines = (raw.append(line) or line for line in io.StringIO(text, newline=""))
        reader = csv.reader(lines, delimiter=delimiter)
        before = 1 if separator else 0
        try:
            for row in reader:
                if _is_open(raw, delimiter):
                    raise csv.Error
                raw.clear()
                if not any(cell.strip() for cell in row):
                    continue
                if any(cell.strip() for cell in row[len(head) :]):
                    raise UserError(
                        f"{file}, line {before + reader.line_num}: has {len(row)} fields, and the first line names "
                        f"{len(head)}; a text with {delimiter!r} in it must be in quotes"
                    )
                yield before + reader.line_num, [*row, *[""] * (len(head) - len(row))]
        except csv.Error as error:
            line = before + reader.line_num - len(raw) + 1
            if _is_open(raw, delimiter):
                raise UserError(f"{file}, line {line}: a quote is not closed") from None
            raise UserError(f"{file} is no CSV file: {error}") from None

    found = rows()
    next(found, None)  # skip the header
    return head, found


def read_text(file: Path | str) -> str:
    """The text of a table that people have saved, in one of the usual encodings.

    Raises:
      UserError: the file cannot be read, or is no text: says what it is, and what to give instead.
    """
    try:
        data = read_bytes(file, MAX_LIST)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error
    if strange := _strange(data):
        raise UserError(f"{file} is {strange}")
    return _decode(data)


def _strange(data: bytes) -> str:
    """What a file is that is no text, and what to do; "" for texts."""
    if data[:4] == b"PK\3\4":
        return next(said for mark, said in _ZIPPED if re.search(mark, data, re.DOTALL))
    if found := next((said for mark, said in _STRANGE if data.startswith(mark)), ""):
        return found
    start = data[:_LOOKED_AT]
    if _wide(data) or len(start) - len(start.translate(None, _CONTROL)) <= _FEW:
        return ""
    is_image = data[:2] == b"BM" or data[4:8] in (b"ftyp", b"jP  ")
    return f"an image; {_FOLDER}" if is_image else "no text, and so no CSV file; give a table saved as CSV"


def _is_open(raw: list[str], delimiter: str) -> bool:
    """Whether a quote in the lines of a row is not closed, or closed by the next one somewhere below.

    An even number of quotes in one line is read as it comes, such as in "cut" off. Other rows must keep to the rules: a
    reader that is not strict would swallow rows.
    """
    if not any('"' in line for line in raw):
        return False
    try:
        return not [*csv.reader(raw, delimiter=delimiter, strict=True)]
    except csv.Error as error:
        return len(raw) > 1 or raw[0].count('"') % 2 == 1 or "end of data" in str(error)


def _wide(data: bytes) -> str:
    """The encoding of a text in units of two or four bytes, by its marks or zeros; "" for others."""
    for mark, name in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return name
    zeros = [data[side:200:2].count(0) for side in (0, 1)]
    if max(zeros) > 20 and not min(zeros):  # letters of Western languages have a zero in every pair
        return "utf-16-be" if zeros[0] else "utf-16-le"
    return ""


def _decode(data: bytes) -> str:
    """Decodes UTF-8, with Windows-1252 for lines that are not, or UTF-16 or -32 by their marks or zeros."""
    if wide := _wide(data):
        return data.decode(wide, "replace")
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
