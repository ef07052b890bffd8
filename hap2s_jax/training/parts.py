"""Parts of the parameters that are trained differently, chosen by patterns of their paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import optax

from hap2s_jax.errors import UserError

PyTree = Any

# Patterns of the parameters that may have a learning rate of their own.
TRUNK = r"encoder/(?:.*/)?trunk"
LOSS = r"loss"


def scaled(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters that a pattern matches."""

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        del params
        for pattern, factor in factors.items():
            chosen = matches(updates, [pattern])
            updates = jax.tree.map(lambda u, is_chosen, f=factor: u * f if is_chosen else u, updates, chosen)
        return updates

    return optax.stateless(scale)


def matches(params: PyTree, patterns: Iterable[str]) -> PyTree:
    """Marks the parameters whose path ("encoder/head/embedding/kernel") starts with or equals a match of `patterns`.

    Raises:
      UserError: a pattern is not a regular expression, or matches nothing.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names = ["/".join(name_of(key) for key in path) for path, _ in leaves]
    chosen = [False] * len(names)
    for pattern in patterns:
        try:
            expression = re.compile(rf"(?:{pattern})(?:/.*)?")
        except re.error as e:
            raise UserError(f"{pattern!r} is not a regular expression of parameters: {e}") from e
        found = [expression.fullmatch(name) is not None for name in names]
        if not any(found):
            some = ", ".join(names[:: max(1, len(names) // 4)][:5])
            raise UserError(f"{pattern!r} matches no parameter or group of parameters; there are {some}")
        chosen = [a or b for a, b in zip(chosen, found, strict=True)]
    return jax.tree.unflatten(structure, chosen)


def name_of(key: Any) -> str:
    """The name of one entry of a parameter's path."""
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
