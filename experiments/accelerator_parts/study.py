"""Cells of the studies at GPU size: the settings that were chosen on emoji train the larger encoder."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from accuracy import ENTRIES, chosen_setting
from study.cells import Study, parser

from accelerator_parts.record import Record
from hap2s_jax.reporting.atomic import replacing

# In order of value: what stops early still compares the first of them, seed by seed.
LOSSES = (
    "batch_hard",
    "hap2s_e",
    "hap2s_p",
    "contrastive",
    "nt_xent (n-pair)",
    "softmax",
    "multi_similarity",
)
DATASET = "emoji:gpu"
# The small study's four times; the config's own 8,000 steps would leave room for a cell or two.
STEPS = 2400
ARCHIVE = "accelerator_cells.tar"
_CELL = 60.0  # seconds below which none is begun


def run(record: Record, seeds: Sequence[int]) -> None:
    """Seed by seed, all losses. Finished cells go into one archive, to be unpacked into experiments/results."""
    small = Study(parser("", "0").parse_args(["--report-only"]))
    folder = record.path.parent / "accelerator_cells"
    size = (
        ["--dataset=emoji:tiny", "--tiny"] if record.toy else [f"--dataset={DATASET}", f"--set=steps={STEPS}"]
    )
    large = Study(parser("", "0").parse_args([f"--results={folder}", *size]))
    for seed in seeds[:1] if record.toy else seeds:
        for name in LOSSES[1:2] if record.toy else LOSSES:
            with record.trying(f"{name}, seed {seed}", seconds=1.0 if record.toy else _CELL):
                # Where the search's cells are not found, the loss's defaults are what there is.
                setting = chosen_setting(small, name) or ENTRIES[name][0]
                cell = large.run(setting, seed)
                if cell is None:
                    raise RuntimeError("; ".join(large.failed.values()))
                _pack(folder, record.path.with_name(ARCHIVE))
                figures = cell.get("metrics", {"diverged": cell.get("diverged")})
                record.row(f"{name}, seed {seed}", setting=setting.describe(), **figures)


def _pack(folder: Path, archive: Path) -> None:
    """All finished cells, as they lie below experiments/results."""
    with replacing(archive) as temporary, tarfile.open(temporary, "w") as tar:
        tar.add(
            folder / "cells",
            arcname="cells",
            filter=lambda info: None if info.name.endswith(".lock") else info,
        )
