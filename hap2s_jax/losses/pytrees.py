"""Losses and weightings as pytrees whose structure says which function they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.tree_util import Partial

C = TypeVar("C", bound=type)

_told_apart: set[type] = {Partial}


def register_dataclass(cls: C) -> C:
    """As `jax.tree_util.register_dataclass`, but the structure holds the class.

    JAX's own (jaxlib 0.10.2) makes structures of two dataclasses with fields of the same names compare equal. Only
    their hashes differ, so that now and then jit finds one loss's program for another.
    """
    fields = dataclasses.fields(cls)
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    data = tuple(f.name for f in fields if not f.metadata.get("static"))

    def flatten(x: Any) -> tuple:
        return tuple(getattr(x, n) for n in data), (cls, *(getattr(x, n) for n in static))

    def flatten_with_keys(x: Any) -> tuple:
        leaves, structure = flatten(x)
        keys = (jax.tree_util.GetAttrKey(n) for n in data)
        return tuple(zip(keys, leaves, strict=True)), structure

    def unflatten(structure: tuple, leaves: Any) -> Any:
        # Not by the constructor: what JAX puts in place of numbers need not pass a class's own checks.
        made = object.__new__(cls)
        for name, value in (*zip(static, structure[1:], strict=True), *zip(data, leaves, strict=True)):
            object.__setattr__(made, name, value)
        return made

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    _told_apart.add(cls)
    return cls


def as_pytree(function: Callable) -> Callable:
    """`function` as a pytree with its parameters as leaves, and with a structure like no other function's."""
    if jax.tree_util.all_leaves([function]):
        return Partial(function)
    kind: Any = type(function)
    return function if kind in _told_apart else Partial(kind.__call__, function)
