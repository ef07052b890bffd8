"""Checks of users' arguments, and the preparation that all distances share."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hap2s_jax.data.matches import one_camera
from hap2s_jax.distances import check_distance, squares

JUNK = -1
Device: TypeAlias = Any  # to type checkers, jax.Device is a variable
DISTANCES = ("euclidean", "squared_euclidean", "cosine")
_CENTRE_SAMPLE = 1024
_ROWS_AT_ONCE = 128
_CACHE = 32 * 2**20  # bytes


def check_embeddings(embeddings: ArrayLike, name: str = "embeddings") -> np.ndarray:
    """Returns `embeddings` as a finite float array `[n, d]`, or raises a one-line ValueError or TypeError.

    float32 stays as it is, float64 too; narrower floats become float32. Integers are accepted (their
    distances are exact in float32 as long as they stay below 2**24).
    """
    array = np.asarray(embeddings)
    if array.ndim != 2:
        raise ValueError(f"{name} must be a matrix [n, d], but has shape {array.shape}.")
    if array.shape[0] == 0 or array.shape[1] == 0:
        raise ValueError(f"{name} is empty: shape {array.shape}.")
    if not (array.dtype.kind in "iu" or jnp.issubdtype(array.dtype, jnp.floating)):
        raise TypeError(f"{name} must hold real numbers, but has dtype {array.dtype}.")
    if array.dtype.type not in (np.float32, np.float64):
        array = array.astype(np.float32)
    # Minimum and maximum show any NaN or infinity, without a second array of the same size.
    high, low = array.max(), array.min()
    if not (np.isfinite(high) and np.isfinite(low)):
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise ValueError(
            f"{name} holds NaN or infinity in {bad.size} of {array.shape[0]} rows "
            f"(the first is row {bad[0]}), but metrics need finite embeddings."
        )
    if array.dtype == np.float64:  # distances may still be float32
        held, reach = np.dtype(jax.dtypes.canonicalize_dtype(array.dtype)), float(max(high, -low))
        most = 1e154 if held == np.float64 else 3e38
        if reach > most or 0 < reach < 1 / most:
            raise ValueError(
                f"{name} reach {reach:.3g}, whose distances {held} cannot hold; scale them to about 1."
            )
    return array


def check_integers(values: ArrayLike, count: int, name: str) -> np.ndarray:
    """Returns `values` as int64 `[count]`, or raises a one-line ValueError or TypeError."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(
            f"{name} must be one integer per embedding, shape [{count}], but has shape {array.shape}."
        )
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be integers, found {array.dtype}; number them: np.unique({name}, return_inverse=True)[1]"
        )
    if array.shape[0] != count:
        raise ValueError(f"{name} has {array.shape[0]} entries for {count} embeddings; the two must match.")
    return array.astype(np.int64)


def check_rows(rows: ArrayLike, count: int, name: str) -> np.ndarray:
    """Returns `rows`, a choice of rows out of `count` (indices, or a boolean mask), as int64 indices."""
    array = np.asarray(rows)
    if array.ndim != 1:
        raise ValueError(f"{name} must be a list of row numbers, but has shape {array.shape}.")
    if array.dtype == np.bool_:
        if array.shape[0] != count:
            raise ValueError(f"{name} is a mask of {array.shape[0]} entries for {count} embeddings.")
        array = np.flatnonzero(array)
    if array.size == 0:
        raise ValueError(f"{name} is empty: there is nothing to evaluate.")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integer row numbers or a boolean mask, but has dtype {array.dtype}.")
    if array.min() < 0 or array.max() >= count:
        raise ValueError(
            f"{name} names row {array.min() if array.min() < 0 else array.max()}, "
            f"but the embeddings have rows 0 to {count - 1}."
        )
    if np.unique(array).size != array.size:
        raise ValueError(f"{name} names a row twice.")
    return array.astype(np.int64)


def check_members(query: ArrayLike | None, gallery: ArrayLike | None, count: int) -> np.ndarray:
    """The rows in either of two choices, ascending; None stands for all rows."""
    used = np.zeros(count, bool)
    for rows, name in ((query, "query"), (gallery, "gallery")):
        used[np.arange(count) if rows is None else check_rows(rows, count, name)] = True
    return np.flatnonzero(used)


def check_ranks(ks: Sequence[int], size: int) -> tuple[int, ...]:
    """Returns the ranks `ks`, or raises ValueError: each must lie between 1 and the gallery's size."""
    if not np.iterable(ks):
        raise ValueError(f"ranks are {ks!r}; they should be a list, such as ({ks!r},).")
    for k in ks:
        # A caller may pass anything.
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"a rank k must be a whole number of at least 1, but is {k!r}.")
        if k > size:
            raise ValueError(
                f"a rank k of {k} was asked for, but the gallery holds {size} images; ask for less."
            )
    return tuple(int(k) for k in ks)


class Problem(NamedTuple):
    """A retrieval problem: checked, and without junk.

    Attributes:
      embeddings: `[n, d]`.
      labels: `[n]`, classes from 0 on.
      cameras: `[n]`; without the camera rule every image has its own. Keys of a query's class by its camera, itself
        among them, are no answers to it.
      query: rows that ask.
      gallery: rows that are asked for.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    cameras: np.ndarray
    query: np.ndarray
    gallery: np.ndarray

    def by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The gallery sorted by class, large classes first, and each query's class in it: rows, starts and sizes.

        A query without a class in the gallery starts at its end.
        """
        of_class = np.bincount(self.labels[self.gallery], minlength=int(self.labels.max()) + 1)
        ranked = np.lexsort((np.arange(len(of_class)), -of_class))
        starts = np.empty_like(of_class)
        starts[ranked] = np.cumsum(of_class[ranked]) - of_class[ranked]
        rows = self.gallery[np.argsort(starts[self.labels[self.gallery]], kind="stable")]
        return rows, starts[self.labels[self.query]], of_class[self.labels[self.query]]


def check_problem(
    embeddings: ArrayLike,
    labels: ArrayLike,
    cameras: ArrayLike | None,
    query: ArrayLike | None,
    gallery: ArrayLike | None,
) -> Problem:
    """Checks the arguments of all retrieval, and takes junk out; raises a one-line ValueError or TypeError."""
    array = check_embeddings(embeddings)
    count = array.shape[0]
    label = check_integers(labels, count, "labels")
    camera = np.arange(count)
    if cameras is not None:
        camera = check_integers(cameras, count, "cameras")
        # Unknown cameras differ from all others; with a single camera no image could be excluded.
        unknown = (camera < 0) | one_camera(cameras, label)
        camera = np.unique(np.where(unknown, -1 - np.arange(count), camera), return_inverse=True)[1]
    asked = np.arange(count) if query is None else check_rows(query, count, "query")
    kept = np.arange(count) if gallery is None else check_rows(gallery, count, "gallery")
    asked, kept = asked[label[asked] != JUNK], kept[label[kept] != JUNK]
    for rows, name in ((asked, "query"), (kept, "gallery")):
        if rows.size == 0:
            raise ValueError(f"{name} is empty: all its labels are {JUNK} (junk).")
    # Both may be any 64-bit number (a hash, a person's id); a device holds 32 bits.
    return Problem(array, np.unique(label, return_inverse=True)[1], camera, asked, kept)


@dataclass(frozen=True)
class Space:
    """The coordinates that distances are taken in: `(x - centre) * scale`, or `x / |x|`.

    Euclidean distances do not depend on the origin, but `|a|^2 + |b|^2 - 2ab` in float32 does, so the origin
    moves into the cloud. Any point inside it serves: the mean of a sample, rounded to a power-of-two grid as
    coarse as the cloud allows, so that small integer embeddings stay exact (and their ties with them). The
    scale is a power of two, and other than 1 only where float32 squares would overflow or vanish.
    """

    cosine: bool
    centre: np.ndarray
    scale: float
    dtype: np.dtype

    def __call__(self, embeddings: np.ndarray, rows: np.ndarray, count: int | None = None) -> np.ndarray:
        """Maps the chosen `rows` of `embeddings [n, d]` to `[count, d]` (zeros after the last row).

        float32, or float64 for float64 embeddings under `jax_enable_x64`. In an array aligned as XLA likes
        it, so that a CPU device takes it over without a copy.
        """
        shape = (len(rows) if count is None else count), embeddings.shape[1]
        size = shape[0] * shape[1] * self.dtype.itemsize
        memory = np.empty(size + 64, np.uint8)
        out = memory[-memory.ctypes.data % 64 :][:size].view(self.dtype).reshape(shape)
        out[len(rows) :] = 0
        # A few rows at a time stay in the processor's cache between the operations.
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            part = embeddings[rows[begin : begin + _ROWS_AT_ONCE]]
            if self.cosine:
                norms = np.sqrt(squares(part.astype(np.float64)))[:, None]
                # A zero vector has no direction; it stays zero, at similarity 0 to everything.
                part = part / np.where(norms == 0, 1, norms)
            else:
                part -= self.centre
                if self.scale != 1:
                    part *= self.scale
            out[begin : begin + len(part)] = part
        return out


def space(embeddings: np.ndarray, distance: str) -> Space:
    """Returns the coordinates in which `embeddings [n, d]` (already checked) are compared."""
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(embeddings.dtype))
    if check_distance(distance, DISTANCES) == "cosine":
        return Space(True, np.zeros(()), 1.0, dtype)
    sample = embeddings[:: -(-embeddings.shape[0] // _CENTRE_SAMPLE)].astype(np.float64)
    mean = sample.mean(axis=0)
    largest = float(np.abs(sample).max())
    spread = float(np.sqrt(np.mean((sample - mean) ** 2)))
    # A spread of rounding size (a collapsed batch) would ask for a grid finer than the numbers themselves.
    grid = 2.0 ** np.floor(np.log2(max(spread, largest * 1e-7, 1e-300)))
    centre = (np.round(mean / grid) * grid).astype(embeddings.dtype)
    exponent = int(np.clip(np.frexp(largest)[1], -120, 120))  # 0 for 0
    scale = float(2.0**-exponent) if abs(exponent) > 40 else 1.0
    return Space(False, centre, scale, dtype)


@functools.cache
def cached_cells() -> int:
    """Float32 distances that fit into half of the processor's last cache; at most 16 MiB of them, or if it is unknown.

    A virtual machine is shown the cache of a whole socket, which others use too: with blocks for all 300 MiB of a Xeon,
    neighbours take 1.2 to 1.4 times as long.
    """
    sizes = [0]
    for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) * 1024)
    return min(max(sizes) or _CACHE, _CACHE) // 8
