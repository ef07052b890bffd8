"""Compiles programs for absent TPUs: the TPU compiler runs on any x86-64 Linux machine.

It needs libtpu, which the extra ``tpu`` installs, and no TPU, no data and no weights: arguments are shapes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from hap2s_jax import extras
from hap2s_jax.distributed import experimental, signals
from hap2s_jax.distributed.devices import DataParallel, expect_no_tpu
from hap2s_jax.errors import UserError, did_you_mean, reason

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs by its maker's figures (cloud.google.com/tpu/docs, read in 2026), per chip.

    Attributes:
      hbm: bytes of memory, of which the compiler keeps a little for itself.
      flops: peak bfloat16 operations a second.
      link_bandwidth: bytes a second between chips, in one direction, all links together.
      shapes: of slices that can be had.
    """

    hbm: int
    flops: float
    link_bandwidth: float
    shapes: tuple[str, ...]


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
    "16x16x16",
)
CHIPS = {
    "v5e": Chip(16 * 2**30, 197e12, 200e9, _FLAT),
    "v5p": Chip(95 * 2**30, 459e12, 600e9, _CUBIC),
    "v6e": Chip(32 * 2**30, 918e12, 400e9, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: its name (``v5e:4x4``), generation and devices, none of which need exist."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]

    @property
    def hosts(self) -> int:
        """The number of hosts, of four chips each."""
        return len({d.process_index for d in self.devices})

    @property
    def parallel(self) -> DataParallel:
        """The devices as training would use them."""
        return DataParallel(tuple(sorted(self.devices, key=lambda d: d.process_index)))


def names(generation: str | None = None) -> list[str]:
    """All topologies, or those of one generation."""
    return [f"{g}:{shape}" for g, chip in CHIPS.items() for shape in chip.shapes if generation in (None, g)]


def topology(name: str) -> Topology:
    """The slice of this name.

    Raises:
      UserError: the name is unknown (the message lists all names), or libtpu is not installed.
    """
    if name not in names():
        raise UserError(
            f"unknown topology {name!r}{did_you_mean(name, names())}; there are: {', '.join(names())}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise extras.not_installed("rehearsing (on x86-64 Linux; no TPU is needed)", "libtpu", "tpu")
    # Nothing here touches a TPU, so several processes may load the library.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    expect_no_tpu()
    try:
        devices = experimental.tpu_devices(name)
    except jax.errors.JaxRuntimeError as e:
        raise UserError(f"the TPU compiler does not start: {reason(e)}") from e
    generation = name.partition(":")[0]
    return Topology(name, CHIPS[generation], devices)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's figures for one program, per device and step.

    Attributes:
      arguments: bytes of the inputs, the state and the batch.
      temporaries: bytes of intermediate values.
      code: bytes of the program.
      flops: floating-point operations.
      bytes_accessed: bytes read and written in HBM.
      seconds: the compiler's own estimate of the time, without waiting for other devices.
      collectives: by kind, how many there are and the bytes that they pass around.
    """

    arguments: int
    temporaries: int
    code: int
    flops: float
    bytes_accessed: float
    seconds: float
    collectives: dict[str, tuple[int, int]]

    @property
    def hbm(self) -> int:
        """Bytes of HBM in all: outputs take the place of donated arguments."""
        return self.arguments + self.temporaries + self.code

    def link_seconds(self, chip: Chip, devices: int) -> float:
        """Time to move the collectives' bytes around a ring at the links' full speed."""
        # A ring sends (n - 1) / n of the whole past every device; an all-reduce does so twice.
        once = sum(size * (2 if kind == "all-reduce" else 1) for kind, (_, size) in self.collectives.items())
        return once * (devices - 1) / devices / chip.link_bandwidth


class DoesNotFitError(UserError):
    """The program needs more memory than a device has.

    Attributes:
      needed: bytes, where the compiler says.
    """

    def __init__(self, message: str, needed: float | None):
        super().__init__(message)
        self.needed = needed


def compile_for(slice_: Topology, program: Any, *arguments: PyTree, effort: float = 0.0) -> Compiled:
    """Compiles a program of `DataParallel.compile_step` or `map_program` for arguments of these shapes.

    Args:
      slice_: the devices.
      program: has ``lower``.
      *arguments: pytrees of things with shape and dtype.
      effort: from -1 (compiles quickly, runs perhaps more slowly) to 1; 0 is what training gets.

    Raises:
      DoesNotFitError: it does not fit into the memory of a device.
    """
    lone = SingleDeviceSharding(slice_.devices[0]) if len(slice_.devices) == 1 else None
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lone), arguments)
    options = {"exec_time_optimization_effort": effort} if effort else None
    try:
        with signals.quiet():
            compiled = program.lower(*shapes).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        needed, available = _memory_needed(str(e))
        says = reason(e)
        if needed is not None:
            says = f"it needs {needed / 2**30:,.2f} GiB, of which {available or 'not enough'} can be had"
        raise DoesNotFitError(
            f"does not fit into the memory of {slice_.name}'s devices: {says}", needed
        ) from e
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return Compiled(
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        cost.get("flops", math.nan),
        cost.get("bytes accessed", math.nan),
        cost.get("optimal_seconds", math.nan),
        collectives(compiled.as_text(), len(slice_.devices)),
    )


# "Used 17.2G of 15.75G hbm", "... HLO temporaries (144.00G) exceeds available HBM (15.75G)"
_NEEDED = re.compile(r"(?:Used |\()([\d.]+)([KMGT])\)? (?:of|exceeds available HBM) \(?([\d.]+[KMGT])")


def _memory_needed(error: str) -> tuple[float | None, str | None]:
    """The bytes that the compiler says it needs, and its own words for the limit."""
    match = _NEEDED.search(error)
    if match is None:
        return None, None
    return float(match[1]) * 2.0 ** {"K": 10, "M": 20, "G": 30, "T": 40}[match[2]], match[3]


_COLLECTIVE = re.compile(
    r"= (?P<shape>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def collectives(hlo: str, devices: int) -> dict[str, tuple[int, int]]:
    """For each kind of collective in a compiled program's text, its number and the bytes that it moves.

    The bytes are those of the whole: what an all-gather gives, what a reduce-scatter takes. Operations inside a loop
    count once.

    Args:
      hlo: the text.
      devices: how many take part.
    """
    total: dict[str, tuple[int, int]] = {}
    for line in hlo.splitlines():
        if match := _COLLECTIVE.search(line):
            kind, sizes = match["kind"], _bytes_of_arrays(match["shape"])
            if match["start"] and kind != "all-reduce":
                sizes = sizes[len(sizes) // 2 :]  # an asynchronous one lists its operands before its results
            size = sum(sizes) * (devices if kind == "reduce-scatter" else 1)
            count, before = total.get(kind, (0, 0))
            total[kind] = count + 1, before + size
    return total


def _bytes_of_arrays(shapes: str) -> list[int]:
    return [
        math.prod(int(d) for d in dims.split(",") if d) * max(int(bits or 8) // 8, 1)
        for _, bits, dims in _ARRAY.findall(shapes)
    ]


def largest(fits: Callable[[int], tuple[bool, float | None]], start: int, capacity: float) -> int:
    """The largest whole number that fits, found by the next one failing; 0 if 1 does not fit.

    Args:
      fits: says of a number whether it fits, and the bytes that it takes or would take, where known.
      start: the first one tried.
      capacity: bytes; only guides the search.
    """
    low, high, guess = 0, math.inf, max(start, 1)
    seen: list[tuple[int, float]] = []
    while high - low > 1:
        does, needed = fits(guess)
        if does:
            low = guess
        else:
            high = guess
        if needed is not None:
            seen = sorted([*seen, (guess, needed)], key=lambda x: abs(x[1] - capacity))[:2]
        guess = _between(low, high, _crossing(seen, capacity))
    return low


def _crossing(seen: list[tuple[int, float]], capacity: float) -> float | None:
    """The batch size at which memory, linear in the batch, would reach the capacity."""
    if len(seen) < 2 or seen[0][0] == seen[1][0] or seen[0][1] == seen[1][1]:
        return None
    (m, a), (n, b) = seen
    return m + (capacity - a) * (n - m) / (b - a)


def _between(low: int, high: float, wish: float | None) -> int:
    if math.isinf(high):
        return max(low + 1, min(int(wish), 16 * low) if wish else 4 * low)
    if wish is None:
        wish = (low + high) / 2
    return int(min(max(round(wish), low + 1), high - 1))
