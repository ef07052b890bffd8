"""What a loss accepts: the types of its arguments, and the one clear line for what it does not."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

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


def check_range(name: str, value: Any, *, positive: bool = True, below: float | None = None) -> None:
    """Raises ValueError for a number that is not positive (without `positive`: negative), or not less than `below`.

    What is traced has no value yet and passes.
    """
    if not isinstance(value, int | float | np.number):
        return
    if not (value > 0 if positive else value >= 0) or (below is not None and value >= below):
        limit = "" if below is None else f" and less than {below:g}"
        raise ValueError(f"{name} is {value}; it should be {'positive' if positive else 'at least 0'}{limit}")


def check_sample_weights(sample_weights: Any, count: int) -> jax.Array | None:
    """The weights as an array without gradient, or None; raises ValueError unless they are `[count]`."""
    if sample_weights is None:
        return None
    sample_weights = jnp.asarray(sample_weights)
    if sample_weights.shape != (count,):
        raise ValueError(
            f"sample_weights are {sample_weights.shape}; they should be ({count},), one per label"
        )
    return jax.lax.stop_gradient(_whole(sample_weights))


def check_embeddings(name: str, vectors: Any, label_name: str, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Both as arrays; raises ValueError or TypeError, naming them, unless they are `[n, d]` floats and `[n]`
    integers."""
    if vectors is None or labels is None:
        raise ValueError(f"{name} and {label_name} go together; one of them is missing")
    _check_width(label_name, labels)
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
    # In a narrow or unsigned type the label that is ignored, -1, would be some class's.
    narrow = labels.dtype.itemsize < 4 or labels.dtype == jnp.int32
    labels = labels.astype(jnp.int32 if narrow else jnp.asarray(0).dtype)
    return _whole(vectors), _whole(labels)


def _whole(array: jax.Array) -> jax.Array:
    """The same on every device, where it is split over a mesh's explicit axes: they know no split sort or gather."""
    sharding = jax.typeof(array).sharding
    if all(axis is None for axis in sharding.spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def _check_width(name: str, labels: Any) -> None:
    """Raises ValueError where labels that are known already would be wrapped to another class."""
    if isinstance(labels, jax.Array):
        return
    known, widest = np.asarray(labels), jnp.iinfo(jnp.asarray(0).dtype)
    if known.dtype.kind in "iu" and known.size and (known.max() > widest.max or known.min() < widest.min):
        raise ValueError(
            f"{name} go from {known.min()} to {known.max()}, beyond {widest.dtype}; number the classes from 0 on, "
            f"as np.unique({name}, return_inverse=True)[1] does"
        )
