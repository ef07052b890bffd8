"""What a loss accepts: the types of its arguments, and the one clear line for what it does not."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

Reduction = Literal["mean", "sum", "none"]
BlockSize = int | Literal["never"] | None
Axis = str | tuple[str, ...] | None


def check_reduction(reduction: str) -> None:
    """Raises ValueError unless `reduction` is one of "mean", "sum" and "none"."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; it should be 'mean', 'sum' or 'none'")


def check_block_size(block_size: BlockSize) -> None:
    """Raises ValueError unless `block_size` is a number of anchors, "never" or None."""
    whole = isinstance(block_size, int) and not isinstance(block_size, bool) and block_size >= 1
    if not (whole or block_size is None or block_size == "never"):
        raise ValueError(
            f"block_size is {block_size!r}; it should be a number of anchors, 'never', or None for automatic"
        )


def check_embeddings(name: str, vectors: Any, label_name: str, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Both as arrays; raises ValueError or TypeError, naming them, unless they are `[n, d]` floats and `[n]`
    integers."""
    if vectors is None or labels is None:
        raise ValueError(f"{name} and {label_name} go together; one of them is missing")
    vectors, labels = jnp.asarray(vectors), jnp.asarray(labels)
    if not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise TypeError(f"{name} are {vectors.dtype}; they should be floating point, such as float32")
    if vectors.ndim != 2:
        raise ValueError(f"{name} have shape {vectors.shape}; they should be [n, d]")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{label_name} are {labels.dtype}; they should be integers")
    if labels.shape != vectors.shape[:1]:
        raise ValueError(
            f"{name} {vectors.shape} and {label_name} {labels.shape} differ in length; "
            f"{label_name} should be [{vectors.shape[0]}]"
        )
    return vectors, labels
