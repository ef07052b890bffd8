"""The finished cells of the studies: trained again, packed, checked.

    python experiments/cells.py list arcface                     # the names of cells that have this in them
    python experiments/cells.py rerun NAME                       # trains it again, old and new figures side by side
    python experiments/cells.py pack                             # what has finished since goes into the packed files
    python experiments/cells.py unpack                           # a JSON file for each cell again
    python experiments/cells.py check

A rerun trains what the cell's own config says, whatever the study would train today, and changes no file.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from flexibility import register_weightings
from study import packed
from study.cells import RESULTS, start
from study.kept import Kept
from study.training import train_cell

from hap2s_jax.errors import UserError, unknown_name
from hap2s_jax.recipes import common
from hap2s_jax.reporting.table import to_markdown
from hap2s_jax.run.config import Config


def config_of(cell: packed.Record) -> Config:
    """The config that a cell was trained with; keys that it lacks, added since, are at their defaults."""
    leaves = cell["config"]
    config = common.get_config()
    common.set_loss(config, leaves["loss.name"])
    if leaves["auxiliary.name"]:
        common.set_auxiliary(config, leaves["auxiliary.name"], weight=1.0)
    config.data.options = {k.removeprefix("data.options."): v for k, v in leaves.items() if "options." in k}
    try:
        config.update_from_flattened_dict(
            {k: tuple(v) if isinstance(v, list) else v for k, v in leaves.items()}
        )
    except KeyError as e:
        raise UserError(
            f"{e} is no config key any more; take the commit that the cell was trained with"
        ) from e
    config.evaluate.every_steps = config.checkpoint.every_steps = config.steps
    return config.lock()


def rerun(kept: Kept, name: str) -> str:
    """The table of a cell's old figures beside those of training it again.

    Raises:
      UserError: there is no such cell, or its data are not there.
    """
    found = {n: cell for folder in kept.folder.glob("[!.]*") for n, cell in packed.load(folder).items()}
    name = name.rpartition("/")[2]
    if name not in found:
        raise unknown_name("cell", name, found)
    cell = found[name]
    outcome = train_cell(config_of(cell), cell["cell"]["part"])
    old, new = cell.get("metrics", {}), outcome["metrics"]
    rows = {
        metric: {"kept": f"{old.get(metric, float('nan')):.4f}", "again": f"{new[metric]:.4f}"}
        for metric in new
    }
    rows["seconds"] = {"kept": f"{cell.get('seconds', 0):.1f}", "again": f"{outcome['seconds']:.1f}"}
    made = [(c.get("environment") or {}).get("commit") or "no commit" for c in (cell, outcome)]
    rows["commit"] = dict(zip(("kept", "again"), made, strict=True))
    return to_markdown(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("list", "rerun", "pack", "unpack", "check"))
    parser.add_argument("name", nargs="?", default="", help="of a cell, or a part of one for list")
    parser.add_argument("--results", default=RESULTS, help="where the cells lie")
    options = parser.parse_args(arguments)
    register_weightings()
    kept = Kept(pathlib.Path(options.results) / "cells")
    folders = sorted(kept.folder.glob("[!.]*"))
    if options.what == "rerun":
        print(rerun(kept, options.name))
    elif options.what == "list":
        print(*(f"{f.name}/{n}" for f in folders for n in packed.load(f) if options.name in n), sep="\n")
    elif options.what == "pack":
        print(f"{kept.pack()} cells are packed")
    elif options.what == "unpack":
        print(f"{sum(map(packed.unpack, folders))} cells have files of their own")
    else:
        wrong = [line for folder in folders for line in packed.check(folder)]
        if wrong:
            raise UserError("\n".join(wrong))
        print(f"{sum(len(packed.unpacked(f)) for f in folders)} cells are whole")


if __name__ == "__main__":
    start(main)
