"""Settings as frozen dataclasses: type, range and meaning of each are written once, in its annotation.

    @dataclasses.dataclass(frozen=True)
    class Batch(Settings):
        section = "batch"
        classes: Annotated[int, "Classes in a batch, P.", at_least(1)] = 16

Making one checks it, whether its values come from a config file, a flag or somebody else's working directory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from hap2s_jax.errors import UserError, did_you_mean, require, unknown_name


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition on a value, the words for it, and the names if it is a choice among names."""

    holds: Callable[[Any], bool]
    wanted: str
    names: tuple[Any, ...] = ()


def at_least(low: float) -> Rule:
    """A finite number from `low` on."""
    return Rule(lambda value: value >= low, f"at least {low:g} and finite")


def between(low: float, high: float) -> Rule:
    """A number from `low` to `high`, both included."""
    return Rule(lambda value: low <= value <= high, f"between {low:g} and {high:g}")


def below(low: float, high: float) -> Rule:
    """A number from `low` on and less than `high`."""
    return Rule(lambda value: low <= value < high, f"at least {low:g} and below {high:g}")


def one_of(*names: Any) -> Rule:
    """One of these names."""
    return Rule(lambda value: value in names, f"one of {', '.join(map(str, names))}", names)


@dataclasses.dataclass(frozen=True)
class Field:
    """A setting: its type, the words that explain it, the conditions on it and its default."""

    name: str
    type: Any
    meaning: str
    rules: tuple[Rule, ...]
    default: Any


@functools.cache
def fields(cls: type) -> tuple[Field, ...]:
    """The settings of a dataclass, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        kind, meaning, rules = hints[field.name], "", ()
        if typing.get_origin(kind) is typing.Annotated:
            kind, *extras = typing.get_args(kind)
            meaning = " ".join(extra for extra in extras if isinstance(extra, str))
            rules = tuple(extra for extra in extras if isinstance(extra, Rule))
        kind = dict if typing.get_origin(kind) is dict else kind
        missing = field.default is dataclasses.MISSING
        made = (
            field.default_factory() if missing and field.default_factory is not dataclasses.MISSING else None
        )
        found.append(Field(field.name, kind, meaning, rules, made if missing else field.default))
    return tuple(found)


class Settings:
    """Base of a frozen dataclass of settings: checks types and ranges when one is made.

    Raises:
      UserError: for a value of the wrong type or out of range, naming the key.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in fields(type(self)):
            _check(key(self.section, field.name), getattr(self, field.name), field)

    @classmethod
    def read(cls, values: Any) -> Self:
        """Makes one from a mapping, sections within it included.

        Raises:
          UserError: also for a key that there is not, with the nearest that there is.
        """
        name = cls.section or "the config"
        if not isinstance(values, Mapping) and not hasattr(values, "items"):
            raise UserError(f"{name} is {_said(values)}; it should be a section with keys and values")
        known = {field.name: field for field in fields(cls)}
        given = dict(values.items())
        for unknown in sorted(map(str, given.keys() - known.keys())):
            wrong = key(cls.section, unknown)
            raise UserError(f"the config has no key {_said(wrong)}{did_you_mean(unknown, known)}")
        sections = {name: f.type for name, f in known.items() if is_section(f.type)}
        return cls(
            **{
                name: sections[name].read(value) if name in sections else value
                for name, value in given.items()
            }
        )


def key(section: str, name: str) -> str:
    """The dotted name of a setting."""
    return f"{section}.{name}" if section else name


def reference(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every setting as ``(dotted name, default, meaning)``, sections before what stands in them."""
    for field in fields(cls):
        name = key(prefix, field.name)
        if is_section(field.type):
            yield from reference(field.type, name)
        else:
            choices = [", ".join(map(str, r.names)) for r in field.rules if r.names]
            meaning = field.meaning + "".join(f" One of {names}." for names in choices)
            yield name, field.default, meaning.strip()


def optional_type(field: Field) -> type | None:
    """The type of a setting that may also be None, and None for all others."""
    if isinstance(field.type, types.UnionType):
        return next(kind for kind in typing.get_args(field.type) if kind is not types.NoneType)
    return None


def is_section(kind: Any) -> bool:
    """Whether a field's type is a dataclass of further settings."""
    return isinstance(kind, type) and issubclass(kind, Settings)


def _check(name: str, value: Any, field: Field) -> None:
    if value is None and optional_type(field):
        return
    wanted = _unlike(value, optional_type(field) or field.type)
    require(wanted is None, name, _said(value), wanted or "")
    for rule in field.rules:
        if rule.names and not rule.holds(value):
            raise unknown_name(name, str(value), map(str, rule.names))
        require(rule.holds(value), name, _said(value), rule.wanted)


def _said(value: Any) -> str:
    """A value for an error message: in one line, and cut if it is long."""
    text = repr(value.to_dict() if hasattr(value, "to_dict") else value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_LONGEST = 200
_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def _unlike(value: Any, kind: Any) -> str | None:
    """The words for the type that `value` should have had; None where it has it."""
    if kind is dict or is_section(kind):
        fits = isinstance(value, kind) or (kind is dict and hasattr(value, "items"))
        return None if fits else "a section with keys and values"
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        open_ended = len(parts) == 2 and parts[1] is Ellipsis
        each = _WORDS[parts[0]].removeprefix("a ")
        wanted = f"a list of {each}s" if open_ended else f"{len(parts)} values, each {_WORDS[parts[0]]}"
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            return wanted
        if not open_ended and len(value) != len(parts):
            return wanted
        return wanted if any(_unlike(item, parts[0]) for item in value) else None
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if kind is int and fits and abs(value) >= 2**63:
            return "a whole number of at most 64 bits"
    return None if fits else _WORDS[kind]
