"""Filters such as ``camera = 'north' and time > '2026-05-01'``, read into conditions that are then looked up.

The text never becomes an expression of another language: a condition is an existing column, one of six operators, and
a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from hap2s_jax import extras
from hap2s_jax.errors import UserError

_OPERATORS = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
_NUMBER = r"^[-+]?\d+(\.\d*)?([eE][-+]?\d+)?$"
_CONDITION = re.compile(
    r"""\s*(?: "(?P<quoted>[^"]+)" | (?P<column>[^\W\d]\w*) )
        \s*(?P<operator>!=|<=|>=|=|<|>)\s*
        (?: '(?P<text>(?:[^']|'')*)' | (?P<number>[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?![\w.]) )
        \s*(?P<end>and\b|$)""",
    re.VERBOSE | re.IGNORECASE,
)


class Condition(NamedTuple):
    """One comparison: of texts where `value` is one, of numbers where it is a number."""

    column: str
    operator: str
    value: str | float


def parse(text: str) -> list[Condition]:
    """Reads conditions joined by `and`.

    Texts are in single quotes, where two quotes mean one, and are compared letter by letter, as dates in the form
    2026-05-01 want it; numbers have no quotes. A column whose name is not a word is in double quotes.

    Raises:
      UserError: it is no such text.
    """
    found, place = [], 0
    while place < len(text) or not found:
        match = _CONDITION.match(text, place)
        if match is None or (match["end"] and not text[match.end() :].strip()):
            raise UserError(
                f"--where: {text[place:].strip() or text!r} should be conditions such as camera = 'north' and time > "
                "'2026-05-01', with one of =, !=, <, <=, >, >=, texts in single quotes, and a column whose name is no "
                "word in double ones"
            )
        value = match["text"].replace("''", "'") if match["text"] is not None else float(match["number"])
        found.append(Condition(match["quoted"] or match["column"], match["operator"], value))
        place = match.end()
    return found


def matching(conditions: Iterable[Condition], column_of: Callable[[str], Any]) -> np.ndarray:
    """Which rows meet all conditions, bool `[n]`.

    Args:
      conditions: at least one.
      column_of: a column's texts by its name, an array of pyarrow `[n]`; "" where a row has none.
    """
    compute = extras.load("--where", "pyarrow.compute", "gallery")
    masks = []
    for condition in conditions:
        texts = column_of(condition.column)
        if isinstance(condition.value, str):
            compared = getattr(compute, _OPERATORS[condition.operator])(texts, condition.value)
        else:
            is_number = compute.match_substring_regex(texts, _NUMBER)
            numbers = compute.cast(compute.if_else(is_number, texts, None), "float64")
            compared = getattr(compute, _OPERATORS[condition.operator])(numbers, condition.value)
        masks.append(np.asarray(compute.fill_null(compared, False)))
    return np.logical_and.reduce(masks)
