"""The numbers of several systems side by side, on the terminal and in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

Rows = Mapping[str, Mapping[str, Any]]
_MISSING = "-"


def print_metrics(
    rows: Rows,
    *,
    columns: Sequence[str] | None = None,
    title: str | None = None,
    file: TextIO | None = None,
) -> None:
    """Prints one row per system and one column per metric.

    On a terminal a table with rules, split into several below one another where it is too wide; elsewhere plain aligned
    text without colours or escape codes. Fractions show three digits, integers all digits, missing values a dash.

    Args:
      rows: system ("raw pixels", "untrained", "trained") -> metric -> number (or text).
      columns: metrics to show, in this order; default: all, in order of first appearance.
      title: a line above.
      file: default is standard output.
    """
    stream: Any = file or sys.stdout
    header, body = _cells(rows, columns)
    if not stream.isatty():
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        lines = [_plain(header, widths), _plain(["-" * width for width in widths], widths)]
        lines += [_plain(line, widths) for line in body]
        print("\n".join(([title] if title else []) + lines), file=stream, flush=True)
        return

    from rich.console import Console

    console = Console(file=stream, highlight=False)
    for part, chosen in enumerate(_blocks(header, body, console.width)):
        console.print(_rich_table(header, body, chosen, title if part == 0 else None))


def to_markdown(rows: Rows, *, columns: Sequence[str] | None = None) -> str:
    """The same table in Markdown (GitHub's flavour), for a README or a report; ends with a newline."""
    header, body = _cells(rows, columns)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in (header, rule, *body)]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def _cells(rows: Rows, columns: Sequence[str] | None) -> tuple[list[str], list[list[str]]]:
    if columns is None:
        columns = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    header = ["", *columns]
    return header, [[name, *(_cell(line.get(column)) for column in columns)] for name, line in rows.items()]


def _cell(value: Any) -> str:
    if value is None:
        return _MISSING
    if isinstance(value, str):
        return value
    if float(value).is_integer() and (hasattr(value, "bit_length") or abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{float(value):.3f}" if abs(value) < 100 else f"{float(value):,.1f}"


def _plain(cells: list[str], widths: list[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join((first, *rest)).rstrip()


def _blocks(header: list[str], body: list[list[str]], width: int) -> list[list[int]]:
    """Column numbers, cut into blocks that fit `width` characters together with the first column."""
    widths = [max(map(len, column)) + 3 for column in zip(header, *body, strict=True)]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(header)):
        taken = 1 + widths[0] + sum(widths[i] for i in blocks[-1])
        if blocks[-1] and taken + widths[column] > width:
            blocks.append([])
        blocks[-1].append(column)
    return blocks


def _rich_table(header: list[str], body: list[list[str]], chosen: list[int], title: str | None) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.ROUNDED, title_justify="left", title_style="bold")
    table.add_column("")
    for column in chosen:
        table.add_column(Text(header[column]), justify="right", no_wrap=True)
    # Text, not str: rich would read "[...]" in a name as markup.
    for line in body:
        table.add_row(Text(line[0], style="bold"), *(Text(line[column]) for column in chosen))
    return table
