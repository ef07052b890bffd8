"""Retrieval at the benchmarks' sizes, beside the bare product and torch's topk on the same card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from bench.evaluation import CASES, times

from accelerator_parts.record import Record

# Title: case, its options, seconds that it needs at least. In order of value.
SIZES: dict[str, tuple[str, dict[str, int], float]] = {
    "Market-1501, 2048-d": ("market", {"dim": 2048}, 15.0),
    "SOP, 128-d": ("sop", {"dim": 128}, 15.0),
    "a million, 128-d": ("million", {"dim": 128}, 20.0),
    "SOP, 512-d": ("sop", {"dim": 512}, 15.0),
    "re-ranking, Market-1501": ("rerank", {"dim": 2048, "images": 23100, "queries": 3368}, 20.0),
    "re-ranking, MSMT17": ("rerank", {"dim": 2048, "images": 93820, "queries": 11659}, 60.0),
}
_TOY = {"dim": 16, "shrink": 500, "images": 90, "queries": 20}
_BUDGET = 5.0  # seconds after which a contestant is not run again


def run(record: Record, seeds: Sequence[int]) -> None:
    """All sizes."""
    del seeds
    for title, (case, options, seconds) in SIZES.items():
        with record.trying(title, seconds=1.0 if record.toy else seconds):
            chosen: dict[str, Any] = {"shrink": 1} | options | (_TOY if record.toy else {})
            contestants = CASES[case](argparse.Namespace(**chosen))
            # What runs on the processor alone says nothing about the card.
            contestants = {
                name: f for name, f in contestants.items() if not name.startswith(("faiss", "pytorch"))
            }
            for row in times(contestants, rounds=1 if record.toy else 3, budget=_BUDGET):
                name = row.pop("contestant")
                record.row(
                    f"{title}, {name}",
                    **{key.replace(",", "").replace(" ", "_"): value for key, value in row.items()},
                )
