"""The loss and its gradient: time, memory and share of the card's peak, beside the bare products and the peers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from bench.losses import PEERS, jax_function, method
from bench.timing import timed

from accelerator_parts.peak import matmul_rates
from accelerator_parts.record import Goal, Record, has

SIZES = (
    (512, 128),
    (512, 512),
    (2048, 128),
    (8192, 128),
    (8192, 512),
    (32768, 128),
    (32768, 512),
    (65536, 128),
)
LARGE = ((262_144, 128), (262_144, 512), (1_048_576, 128))
OURS = ("matmul", "hap2s", "matmul_tf32", "hap2s_tf32")
MATRICES = {
    "pml_bh": 32768,
    "pml_ms": 32768,
    "pml_nt": 32768,
    "torch": 65536,
}  # anchors up to which a peer is tried
_PML, _LEARNING = "pytorch_metric_learning", ("pml_bh", "pml_ms", "pml_nt")
_SECONDS = 4.0  # for the rounds of one size
_LEAST_GOAL = 8192  # anchors from which the goal beside the bare products holds
_GIB_GOALS = {262_144: 4.0, 1_048_576: 8.0}  # in GB


def run(record: Record, seeds: Sequence[int]) -> None:
    """All sizes, the smallest first."""
    del seeds
    rates = matmul_rates(record)
    peers = [name for name in ("torch", *_LEARNING) if has("torch") and (name == "torch" or has(_PML))]
    pace: dict[str, float] = {}
    for n, d in ((64, 8),) if record.toy else (*SIZES, *LARGE):
        with record.trying(f"{n:,} x {d}", seconds=1.0 if record.toy else 15.0):
            # A million anchors run alone: what counts there is that they fit.
            names = [*OURS, *(p for p in peers if n <= MATRICES[p])] if n <= 262_144 else ["hap2s"]
            _size(record, n, d, names, rates, pace)


def _size(
    record: Record, n: int, d: int, names: list[str], rates: dict[str, float], pace: dict[str, float]
) -> None:
    """A row for each method; `pace`, seconds for each of n * n * d, is what the next size is foretold by."""
    title, work = f"{n:,} x {d}", n * n * d
    calls: dict[str, Callable[[], Any]] = {}
    times, memory = {}, {}
    for name in names:
        with record.trying(f"{title}, {name}"):
            call, memory[name] = _prepared(name, n, d)
            foretold = pace.get(name, 0) * work
            if foretold > record.left / 2:
                figures = {"gb": memory[name], "not_run": f"would take {foretold:.0f} s"}
                record.row(f"{title}, {name}", _goals(name, n, d, figures), **figures)
                continue
            start = time.perf_counter()
            call()
            first = time.perf_counter() - start
            pace[name], memory[name] = first / work, memory[name] or _torch_gb()
            # What takes seconds is not disturbed much; the others are timed in turn once they are warm.
            if first > _SECONDS:
                times[name] = [first]
            else:
                calls[name] = call
    times |= timed(calls, 15, 0.1 if record.toy else _SECONDS)
    for name, taken in times.items():
        seconds = statistics.median(taken)
        figures: dict[str, Any] = {"n": n, "d": d, "method": name, "ms": 1e3 * seconds, "rounds": len(taken)}
        figures["gb"] = memory[name]
        coarse = "tf32" if name.endswith("_tf32") else "float32"
        if coarse in rates:  # of three products, though the tiled loss needs but two
            figures["share_of_peak"] = 3 * 2.0 * work / seconds / rates[coarse]
        for other in ("matmul", "hap2s"):
            if other in times:
                figures[f"over_{other}"] = _ratio(taken, times[other])
        record.row(f"{title}, {name}", _goals(name, n, d, figures), **figures)


def _ratio(ours: list[float], other: list[float]) -> float:
    """The median over rounds of the ratio within a round, where both ran in the same rounds."""
    if len(ours) == len(other):
        return statistics.median(a / b for a, b in zip(ours, other, strict=True))
    return statistics.median(ours) / statistics.median(other)


def _goals(name: str, n: int, d: int, figures: dict[str, Any]) -> dict[str, Goal]:
    goals: dict[str, Goal] = {}
    if name == "hap2s" and n >= _LEAST_GOAL and "over_matmul" in figures:
        goals["over_matmul"] = ("<=", 1.5)
    if name == "hap2s" and n in _GIB_GOALS and d == 128:
        goals["gb"] = ("<=", _GIB_GOALS[n])
    if name in _LEARNING and "over_hap2s" in figures:
        goals["over_hap2s"] = (">=", 3.0)
    return goals


def _prepared(name: str, n: int, d: int) -> tuple[Callable[[], Any], float | None]:
    """The call, ours compiled, and the GB that it needs, inputs and results included; of torch's None before it ran."""
    if name.startswith(PEERS):
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return method(name, n, d, torch.get_num_threads()), None
    function, given = jax_function(name, n, d)
    compiled = function.lower(*given).compile()
    needs = compiled.memory_analysis()
    used = needs.argument_size_in_bytes + needs.output_size_in_bytes + needs.temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(*given)), used / 1e9


def _torch_gb() -> float | None:
    """The most that torch has allocated since `_prepared`; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
