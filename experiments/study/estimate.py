"""What a study has still to train, by walking through it without training anything."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hap2s_jax.errors import UserError
from study import packed
from study.cells import Study, Wanted


class Estimate(Study):
    """A study that makes up the outcomes of the cells that it lacks, and counts them.

    Which rates and values a search goes on with hangs on outcomes, so that the real number of cells is somewhat
    different. Seconds are those of finished cells of the same encoder, by the step, medians, on one core.
    """

    def _make(self, wanted: Wanted) -> packed.Record:
        self.trained += 1
        self._seconds += wanted.leaves["steps"] * self._pace
        figure = float(np.random.default_rng(self.trained).uniform())
        return {"metrics": {"mAP": figure, "map@r": figure}}

    def of(self, parts: Mapping[str, Callable[[Study, Sequence[int]], Any]]) -> str:
        """A line for each part, in their order, with what it needs beside what the ones before it have trained."""
        cells = [c for folder in self.kept.folder.glob("*") for c in packed.load(folder).values()]
        paces = [
            cell["seconds"] / cell["config"]["steps"]
            for cell in cells
            if "seconds" in cell
            and cell["config"]["steps"] >= 600
            and cell["config"]["encoder.name"] == self.plain.encoder.name
        ]
        if not paces:
            raise UserError("no cell of this encoder has finished, so that there is no pace; train one first")
        self._pace = statistics.median(paces)
        lines, total = [], 0.0
        for name, part in parts.items():
            before, self._seconds = self.trained, 0.0
            part(self, self.options.seeds)
            total += self._seconds
            lines.append(
                f"{name:10} {self.trained - before:4} cells, {self._seconds / 3600:5.1f} hours of a core"
            )
        lines.append(f"{'together':10} {self.trained:4} cells, {total / 3600:5.1f} hours of a core")
        return "\n".join([*lines, f"at {self._pace:.3f} s a step, the median of {len(paces)} cells"])
