"""Losses of random batches, in every way they can be computed, against loops in float64.

Each dtype has one shape, since each costs a compilation; labels, lengths, duplicates and ignored rows are drawn.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from drill import Trial, WrongError

from drills import class_oracles, loss_oracles
from drills.loss_oracles import Case, Oracle

ORACLES = {**loss_oracles.ORACLES, **class_oracles.ORACLES}
SHAPES = {"float32": (16, 6), "float64": (16, 5), "bfloat16": (12, 4), "float16": (18, 3)}
# As a whole, on two devices, in tiles, and with a memory's keys. Compiling is most of the cost: it optimises little,
# not all are tried in every dtype, which the library converts before anything else, and few are differentiated.
PATHS = {
    "float32": ("whole", "devices", "tiles", "memory"),
    "float64": ("whole",),
    "bfloat16": ("memory", "whole"),
    "float16": ("devices",),
}
_DIFFERENTIATED = (("whole", "float32"), ("tiles", "float32"), ("whole", "float64"))
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
FURTHER, CLASSES = 7, 32  # keys of a memory; labels are below
# Relative to the lengths of the embeddings, or what else rounding is relative to. An oracle gets what a dtype holds,
# and losses are computed in float32.
TOLERANCE = {"float64": 1e-9}
COARSE = 2e-4
_IN_A_ROW = 8  # batches of a loss and dtype, so that little time has many batches

Arrays = tuple[np.ndarray, ...]


def batch(shape: tuple[int, int], random: np.random.Generator, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of a dtype, exactly as that dtype holds them, and labels of which some may be -1."""
    import ml_dtypes

    n = shape[0]
    labels = random.integers(0, int(random.integers(1, n)), n).astype(np.int32)
    x = random.normal(size=shape) * 10.0 ** random.uniform(-2, 2) + random.normal() * float(
        random.integers(0, 2)
    )
    for _ in range(int(random.integers(0, 3))):
        x[random.integers(0, n)] = x[random.integers(0, n)]
    if random.integers(0, 3) == 0:
        ignored = random.random(n) < 0.2
        labels[ignored] = -1
        x[ignored] = np.nan if random.integers(0, 2) else 0.0
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return x.astype(kind), labels


class Computed:
    """A loss by the library, each way compiled once for each dtype."""

    def __init__(self, name: str):
        from hap2s_jax import losses

        self._loss = losses.create(name, **ORACLES[name].settings)
        self._compiled: dict[tuple[str, str], Any] = {}

    def paths(self, dtype: str) -> tuple[str, ...]:
        """The ways to try with a dtype, of those that the loss knows."""
        known = ("whole", "devices", *(("tiles", "memory") if self._loss.has_blocks else ()))
        chosen = tuple(path for path in PATHS[dtype] if path in known)
        return chosen[:1] if dtype == "bfloat16" else chosen

    @functools.cache  # noqa: B019 - there is one for each loss
    def params(self, dimensions: int) -> Any:
        """The loss's own arrays for embeddings of so many dimensions, moved at random from where they begin."""
        import jax

        begin = self._loss.init_params(jax.random.key(1), CLASSES, dimensions)
        random = np.random.default_rng(dimensions)
        return jax.tree.map(lambda p: np.float32(p + 0.2 * random.normal(size=p.shape)), begin)

    def __call__(self, path: str, arrays: Arrays) -> tuple[float, np.ndarray]:
        """Value and gradient at (embeddings, labels, keys, their labels); the gradient is 0 where it is not taken."""
        import jax

        at = path, arrays[0].dtype.name
        with jax.enable_x64(at[1] == "float64"):
            if at not in self._compiled:
                function = self._function(path, arrays)
                function = jax.value_and_grad(function) if at in _DIFFERENTIATED else function
                self._compiled[at] = jax.jit(function, compiler_options=_QUICK)
            found = self._compiled[at](*arrays)
        value, gradient = found if isinstance(found, tuple) else (found, np.zeros(arrays[0].shape))
        return float(value), np.asarray(gradient, np.float64)

    def _function(self, path: str, arrays: Arrays) -> Callable[..., Any]:
        import jax

        loss, params = self._loss, self.params(arrays[0].shape[1])
        fixed = {"key": jax.random.key(2)} if loss.draws else {}

        def value(x: jax.Array, labels: jax.Array, keys: jax.Array, key_labels: jax.Array) -> Any:
            if path == "devices":
                halves = x.reshape(2, -1, x.shape[1]), labels.reshape(2, -1)
                one = functools.partial(loss, axis_name="devices", params=params, **fixed)
                of_both: Any = jax.vmap(one, axis_name="devices")(*halves)
                return of_both.mean()
            more = {
                "whole": {},
                "tiles": {"block_size": 5},
                "memory": {"keys": keys, "key_labels": key_labels},
            }
            return loss(x, labels, params=params, **fixed, **more[path])

        return value


def check(name: str, loss: Computed, arrays: Arrays) -> None:
    """Raises a WrongError if any way of computing a loss gives another value than the loop."""
    oracle, (x, labels, keys, key_labels) = ORACLES[name], arrays
    dtype, exact = x.dtype.name, [np.asarray(part, np.float64) for part in (x, keys)]
    kept, further = labels >= 0, key_labels >= 0
    params = {k: np.asarray(v, np.float64) for k, v in (loss.params(x.shape[1]) or {}).items()}
    for path in loss.paths(dtype):
        value, gradient = loss(path, arrays)
        if not np.isfinite(value) or not np.isfinite(gradient).all():
            raise WrongError(
                f"{path}, {dtype}: {value}, gradient finite: {bool(np.isfinite(gradient).all())}"
            )
        if np.abs(gradient[~kept]).max(initial=0.0) > 0:
            raise WrongError(f"{path}, {dtype}: what is ignored has a gradient")
        ours = [(exact[0][kept], labels[kept])]
        ours += [(exact[1][further], key_labels[further])] if path == "memory" else []
        all_keys, all_labels = (np.concatenate(parts) for parts in zip(*ours, strict=True))
        length = max(float(np.abs(all_keys).max(initial=0.0)), 1.0) ** oracle.power
        tolerance = TOLERANCE.get(dtype, COARSE)
        case = Case(*ours[0], all_keys, all_labels, params, tolerance * length)
        low, high = bounds(oracle, case)
        slack = tolerance * max(length, abs(low), abs(high))
        if not low - slack <= value <= high + slack:
            raise WrongError(f"{path}, {dtype}: {value}, by loops {low} to {high}, of lengths up to {length}")
        if dtype == "float64" and oracle.is_slope and low == high:
            check_slope(oracle, case, gradient[kept], f"{path}: ")


def bounds(oracle: Oracle, case: Case) -> tuple[float, float]:
    """The least and the largest value of a batch."""
    value = oracle.value(case)
    return value if isinstance(value, tuple) else (value, value)


def check_slope(oracle: Oracle, case: Case, gradient: np.ndarray, where: str) -> None:
    """Compares a gradient with a difference of the loop, in a direction that keeps equal embeddings equal."""
    direction = case.x @ np.random.default_rng(3).normal(size=(case.x.shape[1],) * 2)
    found = []
    for step in (-1e-6, 0.0, 1e-6):
        moved = case.x + step * direction
        found.append(bounds(oracle, case._replace(x=moved, keys=moved)))
    slope, values = float((gradient * direction).sum()), [low for low, _ in found]
    # Where two keys change ranks, or a hinge closes, within one of the two steps, the other has the slope.
    sides = np.diff(values) / 1e-6
    differences = np.array([*sides, sides.mean()])
    size = max(float(np.abs(gradient * direction).sum()), abs(values[0]), 1.0)
    if np.abs(slope - differences).min() > 1e-4 * size and found[0][0] == found[0][1]:
        raise WrongError(f"{where}slope {slope}, by differences {differences}, of size {size}")


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Without end: every loss, dtype and way of computing it."""
    from hap2s_jax import losses

    del folder
    if missing := set(losses.names()) ^ set(ORACLES):
        raise WrongError(f"losses without an oracle, or the other way round: {sorted(missing)}")
    computed = {name: Computed(name) for name in ORACLES}
    number = 0
    while True:
        for name, (dtype, shape) in itertools.product(ORACLES, SHAPES.items()):
            for _ in range(_IN_A_ROW):
                number += 1
                random = np.random.default_rng((seed, number))
                arrays = *batch(shape, random, dtype), *batch((FURTHER, shape[1]), random, dtype)
                yield Trial(name, lambda a=(name, computed[name], arrays): check(*a), seconds=120.0)
