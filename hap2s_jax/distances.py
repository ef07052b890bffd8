"""The geometry of embeddings, for losses and metrics alike: products, squares, distances, centring.

No other module multiplies embeddings, so that the precision of products is decided in one place.

A Gram matrix gives all pairs at the price of one matrix product, but |a|^2 + |b|^2 - 2ab cancels: its error is relative
to the distance from the origin, not to that of the pair. Three measures keep it small: rows are centred first, pairs
below the rounding error count as coincident, and close pairs of one class can be taken again about a point of it.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

Distance = Literal["euclidean", "squared_euclidean", "cosine", "negative_dot"]
DISTANCES: tuple[str, ...] = get_args(Distance)
# Distances are computed in `COMPUTED_IN.get(dtype, FLOAT32)`; not by promotion, which may be set to be strict.
FLOAT32 = np.dtype(np.float32)
COMPUTED_IN = {np.dtype(np.float64): np.dtype(np.float64)}

Array = TypeVar("Array", jax.Array, "np.ndarray[Any, Any]")  # of any shape and dtype

# A close pair (squared distance under this share of |a|^2 + |b|^2) is worth a second look: above it the Gram
# matrix errs by less than 1e-5 of the batch's radius in float32.
_CLOSE = 2.0**-10


class Rows(NamedTuple):
    """Embeddings made ready for distances: centred or normalised, ignored rows zeroed.

    Attributes:
        vectors: `[n, d]`.
        origins: `[n, d]`, a point near each row about which close pairs are measured again, or None.
    """

    vectors: jax.Array
    origins: jax.Array | None = None


def check_distance(distance: str, known: tuple[str, ...] = DISTANCES) -> str:
    """Returns the name of a distance; raises ValueError unless it is one of `known`."""
    if distance not in known:
        raise ValueError(f"distance is {distance!r}; it should be one of {', '.join(known)}")
    return distance


def products(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products `[n, m]` of rows `[n, d]` and `[m, d]`.

    The default precision is TF32 on NVIDIA and bfloat16 on TPU, too coarse for near duplicates.
    """
    return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)


def squares(vectors: Array) -> Array:
    """Squared lengths `[...]` of vectors `[..., d]`, of JAX or of NumPy."""
    if isinstance(vectors, np.ndarray):
        return np.einsum("...d,...d->...", vectors, vectors)  # without a second array of the same size
    return jnp.sum(vectors * vectors, axis=-1)


def scores(inner: Array, key_squares: Array) -> Array:
    """|b|^2 - 2ab `[n, m]`, from `products` and the keys' `squares` `[m]`: squared distances less |a|^2.

    They rank the same, and round less. Doubling is exact: the bits are the same wherever a compiler fuses it.
    """
    return key_squares[None, :] - 2 * inner


def gram_distances(
    a: jax.Array,
    b: jax.Array,
    *,
    cosine: bool = False,
    a_squares: jax.Array | None = None,
    b_squares: jax.Array | None = None,
) -> jax.Array:
    """max(0, |a|^2 + |b|^2 - 2ab) `[n, m]`, or 1 - ab of directions, as metrics rank by them.

    Rows `[n, d]` and `[m, d]` are centred or normalised already. `a_squares` `[n]` and `b_squares` `[m]` are their
    `squares`, where these are known.
    """
    if cosine:
        return 1 - products(a, b)
    a_squares = squares(a) if a_squares is None else a_squares
    b_squares = squares(b) if b_squares is None else b_squares
    return jnp.maximum(a_squares[:, None] + b_squares[None, :] - 2 * products(a, b), 0)


def distances_of_pairs(a: Array, b: Array, distance: str) -> Array:
    """Distances `[...]` between cleaned vectors `[..., d]` in pairs, by differences."""
    if distance in ("cosine", "negative_dot"):
        inner: Any = (a * b).sum(axis=-1)  # NumPy's or JAX's
        return 1 - inner if distance == "cosine" else -inner
    squared = squares(a - b)
    if distance == "squared_euclidean":
        return squared
    return np.sqrt(squared) if isinstance(squared, np.ndarray) else safe_sqrt(squared)


def distances_between(a: ArrayLike, b: ArrayLike, distance: str = "euclidean") -> np.ndarray:
    """As `distances_of_pairs`, in float64 on the host, of any vectors; zero vectors have cosine distance 1."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if check_distance(distance) == "cosine":
        first, second = directions(first), directions(second)
    return distances_of_pairs(first, second, distance)


def directions(vectors: np.ndarray) -> np.ndarray:
    """As `unit`, on the host and without gradients: vectors `[..., d]` with length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def check_embeddings(
    name: str, vectors: ArrayLike | None, label_name: str, labels: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """Returns both as arrays; raises an error with the names unless these are `[n, d]` floats and `[n]` integers."""
    if vectors is None or labels is None:
        raise ValueError(f"{name} and {label_name} go together; one of them is missing")
    widest = jnp.iinfo(jnp.asarray(0).dtype)
    remedy = f"number the classes from 0 on, as np.unique({label_name}, return_inverse=True)[1] does"
    vectors = vectors if isinstance(vectors, jax.Array) else np.asarray(vectors)
    labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise TypeError(f"{name} are {vectors.dtype}; they should be floating point, such as float32")
    if vectors.ndim != 2:
        raise ValueError(f"{name} have shape {vectors.shape}; they should be [n, d]")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{label_name} are {labels.dtype}; they should be integers: {remedy}")
    # Known values must not wrap around to another class, or become infinite, when they are converted.
    if isinstance(labels, np.ndarray) and labels.size:
        low, high = labels.min(), labels.max()
        if not widest.min <= low <= high <= widest.max:
            raise ValueError(f"{label_name} go from {low} to {high}, beyond {widest.dtype}; {remedy}")
    if vectors.dtype == np.float64 and isinstance(vectors, np.ndarray) and vectors.size:
        reach = np.max(np.abs(vectors), initial=0, where=np.isfinite(vectors))
        held = jax.dtypes.canonicalize_dtype(vectors.dtype)
        if reach > (1e154 if held == np.float64 else 1e19):
            raise ValueError(f"{name} reach {reach:.3g}, whose square no {held} holds; scale them down")
    vectors, labels = jnp.asarray(vectors), jnp.asarray(labels)
    if labels.shape != vectors.shape[:1]:
        raise ValueError(
            f"{name} {vectors.shape} and {label_name} {labels.shape} differ in length; "
            f"{label_name} should be [{vectors.shape[0]}]"
        )
    # In a narrow or unsigned type the ignored label, -1, would be the label of a class.
    narrow = labels.dtype.itemsize < 4 or labels.dtype == jnp.int32
    return whole(vectors), whole(labels.astype(jnp.int32 if narrow else widest.dtype))


def whole(array: jax.Array) -> jax.Array:
    """Replicates an array that is split over explicit axes of a mesh: JAX cannot sort or gather over these."""
    sharding = jax.typeof(array).sharding
    if not any(sharding.spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root with value 0 and gradient 0 (not infinity) where `x` is 0 or less; NaN stays NaN."""
    none = x <= 0
    return jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, x)))


def mean_of(values: jax.Array, mask: jax.Array, axis: int = -1) -> jax.Array:
    """Mean over the masked entries of an axis, 0 where there are none."""
    count = jnp.sum(mask, axis=axis)
    total = jnp.sum(jnp.where(mask, values, 0), axis=axis)
    return total / jnp.maximum(count, 1).astype(total.dtype)


def unit(vectors: jax.Array, axis: int = -1) -> jax.Array:
    """The vectors along an axis with length 1; zero vectors stay zero."""
    length = safe_sqrt(jnp.sum(vectors * vectors, axis=axis, keepdims=True))
    # An infinite length would silently make the vector 0.
    return vectors / jnp.where(length > 0, jnp.where(length < jnp.inf, length, jnp.nan), 1)


def clean_rows(vectors: jax.Array, valid: jax.Array, distance: str, centre: jax.Array | None) -> jax.Array:
    """Rows `[n, d]` ready for `pair_distances`; ignored ones are zero and pass no gradient, NaN or not.

    Distances do not depend on the centre `[d]`, so neither do their gradients, and it carries none.
    """
    vectors = jnp.where(valid[:, None], vectors, 0)
    if distance == "cosine":
        return unit(vectors)
    if distance == "negative_dot" or centre is None:
        return vectors
    return jnp.where(valid[:, None], vectors - lax.stop_gradient(centre)[None, :], 0)


def pair_distances(
    rows: Rows, keys: Rows, distance: str = "euclidean", candidates: jax.Array | None = None
) -> jax.Array:
    """Distances `[n, m]` between cleaned rows `[n, d]` and keys `[m, d]`.

    Args:
        rows: the anchors, from `clean_rows`.
        keys: the keys, from `clean_rows` with the same centre.
        distance: "euclidean", "squared_euclidean", "cosine" (1 - similarity) or "negative_dot" (minus the product).
        candidates: bool `[n, m]`, pairs to be measured again about their origins if close. Needs `origins`, the same of
            both ends of such a pair.
    """
    if distance in ("cosine", "negative_dot"):
        inner = products(rows.vectors, keys.vectors)
        return 1 - inner if distance == "cosine" else -inner
    squared, scale = _squared(rows.vectors, keys.vectors)
    if candidates is not None and rows.origins is not None and keys.origins is not None:
        near_rows, near_keys = rows.vectors - rows.origins, keys.vectors - keys.origins
        close = candidates & (squared < _CLOSE * scale)
        squared = lax.cond(
            jnp.any(close),
            lambda: jnp.where(close, _squared(near_rows, near_keys)[0], squared),
            lambda: squared,
        )
    return squared if distance == "squared_euclidean" else safe_sqrt(squared)


def _squared(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared distances `[n, m]`, exactly 0 for coincident pairs, and their scale |a|^2 + |b|^2.

    NaN and overflow must not count as coincident. Rounding alone can leave eps max(4, root of d) of
    the scale as the squared distance of equal rows, twice what was measured for XLA's CPU product from 8 to 2,048
    dimensions.
    """
    scale = squares(a)[:, None] + squares(b)[None, :]
    squared = scale - 2 * products(a, b)
    coincident = squared <= float(jnp.finfo(a.dtype).eps) * max(4.0, math.sqrt(a.shape[-1])) * scale
    return jnp.where(coincident, 0, squared), lax.stop_gradient(scale)


def pairwise_distances(
    embeddings: ArrayLike,
    keys: ArrayLike | None = None,
    *,
    distance: Distance = "euclidean",
    valid: ArrayLike | None = None,
    key_valid: ArrayLike | None = None,
) -> jax.Array:
    """Distances `[n, m]` between all embeddings `[n, d]` and all keys `[m, d]` (themselves when not given).

    Computed in float32 (float64 for float64 input) at the highest matrix precision. Coincident pairs have
    distance 0 and gradient 0. Squared distances are right to about 1e-7 of the squared radius of the batch times
    the root of d; pairs nearer than rounding can tell (a thousandth of the radius up to 16 dimensions, a
    six-hundredth at 128) count as coincident.

    Args:
        embeddings: `[n, d]`, floating point.
        keys: `[m, d]`, or None for the embeddings themselves.
        distance: "euclidean", "squared_euclidean", "cosine" or "negative_dot".
        valid: bool `[n]`; rows that are not valid may hold NaN and are taken as zero.
        key_valid: bool `[m]`, likewise for the keys.

    Raises:
        ValueError: unknown `distance`.
        TypeError: integer embeddings.
    """
    check_distance(distance)
    embeddings = whole(jnp.asarray(embeddings))
    if not jnp.issubdtype(embeddings.dtype, jnp.floating):
        raise TypeError(f"embeddings are {embeddings.dtype}; they should be floating point")
    dtype = COMPUTED_IN.get(embeddings.dtype, FLOAT32)
    rows = embeddings.astype(dtype)
    valid = jnp.ones(rows.shape[0], bool) if valid is None else whole(jnp.asarray(valid))
    centre = mean_of(rows, valid[:, None], axis=0)
    cleaned = clean_rows(rows, valid, distance, centre)
    if keys is None:
        return pair_distances(Rows(cleaned), Rows(cleaned), distance)
    key_rows = whole(jnp.asarray(keys)).astype(dtype)
    key_valid = jnp.ones(key_rows.shape[0], bool) if key_valid is None else whole(jnp.asarray(key_valid))
    return pair_distances(Rows(cleaned), Rows(clean_rows(key_rows, key_valid, distance, centre)), distance)
