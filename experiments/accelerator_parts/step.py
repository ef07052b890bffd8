"""The training step: images a second, share of the peak, memory, what the loss costs, torch on the same card."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.encoders import Ours, theirs
from bench.timing import timed

from accelerator_parts.peak import matmul_rates
from accelerator_parts.record import Goal, Record, has
from hap2s_jax import models

_SQUARE, _PERSON = (224, 224), (256, 128)
# Encoder, (height, width), images, dtype, in order of value; transformers follow as the package has them.
CASES = tuple(
    ("resnet50", size, batch, dtype)
    for dtype in ("bfloat16", "float32")
    for size in (_SQUARE, _PERSON)
    for batch in (256, 64)
)
TOY = ("resnet10", (32, 32), 8, "float32")
# Convolutions of float32 images are TF32 by default, in JAX as in torch.
PEAKS = {"bfloat16": "bfloat16", "float32": "tf32"}
_ROUNDS, _SECONDS = 20, 5.0


def run(record: Record, seeds: Sequence[int]) -> None:
    """All cases; torch.compile, which takes its time, comes after everything else."""
    del seeds
    rates = matmul_rates(record)
    transformers = [(name, _SQUARE, 256, "bfloat16") for name in models.names() if name.startswith("vit")]
    cases = (TOY,) if record.toy else (*CASES[:2], *transformers, *CASES[2:])
    for fused in (False, True):
        for case in cases if not fused or (has("torch") and not record.toy) else ():
            with record.trying(_title(case), seconds=1.0 if record.toy else 45.0 if fused else 20.0):
                _case(record, case, rates, fused)


def _title(case: tuple[str, tuple[int, int], int, str]) -> str:
    name, (height, width), batch, dtype = case
    return f"{name}, {height} x {width}, batch {batch}, {dtype}"


def _case(record: Record, case: Any, rates: dict[str, float], fused: bool) -> None:
    """One encoder at one size: a row for each contestant, all in turn."""
    name, size, batch, dtype = case
    options: dict[str, Any] = {"width": 4} if record.toy else {}
    ours = Ours(name, batch, size, dtype, "hap2s_e", **options)
    calls = {"hap2s": ours.call("train step")}
    if not fused:
        calls["no loss"] = Ours(name, batch, size, dtype, **options).call("train step")
    torch_memory = None
    if step := theirs(name, batch, size, dtype, fused=fused):
        calls["torch, compiled" if fused else "torch"] = step["train step"]
        torch_memory = _torch_peak(step["train step"])
    for call in calls.values():
        call()
    times = timed(calls, _ROUNDS, 0.1 if record.toy else _SECONDS)
    operations, gb = ours.step_needs()
    usual = {who: statistics.median(taken) for who, taken in times.items()}
    for who, seconds in usual.items():
        figures: dict[str, Any] = {"images_per_second": batch / seconds, "ms": 1e3 * seconds}
        goals: dict[str, Goal] = {}
        figures["gb"] = torch_memory if who.startswith("torch") else gb
        if PEAKS[dtype] in rates:
            figures["mfu"] = operations / seconds / rates[PEAKS[dtype]]
        for other in times:
            if who == "hap2s" and other.startswith("torch"):
                pairs = zip(times[other], times[who], strict=True)
                figures["times_torch"] = statistics.median(a / b for a, b in pairs)
                goals["times_torch"] = (">=", 1.0)
        if who == "hap2s" and "no loss" in times:
            pairs = zip(times["hap2s"], times["no loss"], strict=True)
            figures["loss_share"] = statistics.median(1 - b / a for a, b in pairs)
            goals |= {"loss_share": ("<=", 0.01)} if batch == 256 else {}
        record.row(f"{_title(case)}, {who}", goals, **figures)


def _torch_peak(step: Any) -> float | None:
    """GB that a step of torch's allocates; None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 1e9
