"""Losses and weightings as pytrees whose structure says which function they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import DTypeLike

C = TypeVar("C", bound=type)
T = TypeVar("T")
Function = Callable[..., Any]  # a loss or a weighting of any signature

TOLD_APART: set[type] = set()


def register_dataclass(cls: C) -> C:
    """As `jax.tree_util.register_dataclass`, but the structure holds the class.

    JAX's own (jaxlib 0.10.2) makes structures of any two dataclasses with equally many leaves and equal static fields
    compare equal. Only their hashes differ, so that now and then jit finds one loss's program for another. Hence a
    further static field, whose value is the class. Remove when structures of two classes differ by themselves in
    the lowest jaxlib that pyproject.toml allows.
    """
    fields = dataclasses.fields(cls)
    static = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    kind = ("kind", type, dataclasses.field(default=cls, repr=False, kw_only=True, metadata={"static": True}))
    names = {name: getattr(cls, name) for name in ("__doc__", "__module__", "__qualname__")}
    # Type checkers do not know a class that is made at run time.
    made: Any = dataclasses.make_dataclass(cls.__name__, [kind], bases=(cls,), namespace=names, frozen=True)
    made.__init__.__kwdefaults__["kind"] = made  # not `cls`: pickle could not find it by its name
    jax.tree_util.register_dataclass(made, data, [*static, "kind"])
    TOLD_APART.add(made)
    return made


def with_numbers_in(tree: T, dtype: DTypeLike) -> T:
    """A loss with its numbers in the dtype of the distances: with 64-bit types on, a Python float is a float64."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@dataclasses.dataclass(frozen=True)
class _Call:
    """Calls its first argument, and holds the classes in that one's tree."""

    kinds: tuple[type, ...]

    def __call__(self, function: Function, *arguments: Any) -> Any:  # the function's own types
        return function(*arguments)


def as_pytree(function: Function) -> Function:
    """`function` as a pytree with its parameters as leaves, and with a structure like no other function's.

    Raises:
        TypeError: a dataclass that JAX does not know. Its fields would not be differentiated.
    """
    if type(function) in TOLD_APART:
        return function
    if jax.tree_util.all_leaves([function]):
        if dataclasses.is_dataclass(function) and dataclasses.fields(function):
            raise TypeError(
                f"{type(function).__name__} is a dataclass that JAX does not know; register it with "
                "jax.tree_util.register_dataclass, so that its fields are parameters"
            )
        return Partial(function)
    if isinstance(function, Partial) and isinstance(function.func, _Call):
        return function
    kinds = tuple(_kinds(jax.tree.structure(function)))
    if any(dataclasses.is_dataclass(kind) and kind not in TOLD_APART for kind in kinds):
        return Partial(_Call(kinds), function)
    return function


def _kinds(structure: Any) -> Iterator[type]:  # JAX's class is unknown to type checkers
    """The classes of a tree's inner nodes."""
    node = structure.node_data()
    if node is not None:
        yield node[0]
        for child in structure.children():
            yield from _kinds(child)
