"""The cells of which every study consists: one setting trained with one seed and measured, kept for good.

A study is stopped and started at will, and studies share cells (see `study.kept`). Several processes may work on one
study: a cell that another is at is passed over. Within a process cells that differ in seed or data alone share their
compiled programs.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hap2s_jax.distributed.devices import expect_no_tpu
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.atomic import holding, replacing
from hap2s_jax.run.config import Config
from hap2s_jax.training.watch import DivergedError
from study import packed
from study.kept import Kept, of_the_outcome
from study.settings import Setting, resolve
from study.training import METRICS, refuse_changes, train_cell

# What settings are chosen and compared by: the first that a data set has.
FIRST_METRICS = ("mAP", "map@r")
RESULTS, TINY_RESULTS = "experiments/results", "runs/tiny_studies"
# Stands for a data set's config where no loss is asked about.
PLAIN = Setting("hap2s_e", "hap2s_e")
__all__ = ["METRICS", "PLAIN", "Setting", "Study", "Wanted", "parser", "primary", "start"]


class OutOfTime(Exception):
    """The study's minutes are over."""


class Wanted(NamedTuple):
    """A cell that is asked for: what is trained, on which config's data and which part of them, and its file."""

    setting: Setting
    seed: int
    dataset: str
    part: str
    leaves: Mapping[str, Any]  # of the config, see `of_the_outcome`
    path: pathlib.Path


class Study:
    """Runs cells, or takes them from their files.

    Args:
      options: of `parser`.

    Attributes:
      plain: the config of a cell of HAP2S_E as it is.
      busy: names of the cells that were passed over since another process is at them.
      failed: names and errors of the cells that crashed, and of those that an earlier call has left so; this call
        does not try them again.
      trained: how many cells this call has trained.

    Raises:
      UserError: for a data set that has no config, or a `--set` that does not fit it.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.folder = pathlib.Path(options.results or (TINY_RESULTS if options.tiny else RESULTS))
        self.failed: dict[str, str] = {}
        self.busy: set[str] = set()
        self.trained = 0
        self.kept = Kept(self.folder / "cells")
        self._known: dict[str, packed.Record] = {}
        # A mistake in the command line is reported before hours of cells, and before tables are written.
        self.plain = self.config(PLAIN, 0, options.dataset)
        self._deadline = time.monotonic() + 60 * options.minutes if options.minutes else math.inf

    def run(
        self, setting: Setting, seed: int, *, dataset: str | None = None, part: str = "test"
    ) -> packed.Record | None:
        """The outcome of one cell, or None where it failed (and is to be run again) or another process is at it.

        Args:
          setting: what to train.
          seed: of the weights and the batches.
          dataset: config to train on; by default that of the options.
          part: "test" (trained on all training classes, measured on the test classes) or "search" (trained on
            one half of the training classes, measured on the other).

        Raises:
          OutOfTime: the cell is not there and no time is left for it.
        """
        chosen: str = dataset or self.options.dataset
        # A table asks for the same cells again and again: of the baseline, and of the searches.
        key = f"{dataclasses.replace(setting, label='')!r} {seed} {chosen} {part}"
        if key not in self._known and (found := self._find(setting, seed, chosen, part)) is not None:
            self._known[key] = found
        return self._known.get(key)

    def _find(self, setting: Setting, seed: int, chosen: str, part: str) -> packed.Record | None:
        leaves = of_the_outcome(self.config(setting, seed, chosen))
        begin = f"{setting.loss.replace(' ', '_')}-{part}-seed{seed}"
        path = self.kept.path(begin, chosen, part, leaves)
        if found := self.kept.find(chosen, part, leaves, path):
            return found
        return self._make(Wanted(setting, seed, chosen, part, leaves, path))

    def _make(self, wanted: Wanted) -> packed.Record | None:
        """Trains a cell that is not there, where that is this process's to do."""
        setting, seed, chosen, part, leaves, path = wanted
        crashed = path.with_suffix(".failed")
        if self.options.report_only and crashed.is_file():
            self.failed[path.name] = crashed.read_text().strip()
        if self.options.report_only or path.name in self.failed:
            return None
        if time.monotonic() > self._deadline:
            raise OutOfTime
        with holding(path.with_name(f"{path.name}.lock")) as held:
            if not held:
                self.busy.add(path.name)
                return None
            if not path.is_file():
                cell: dict[str, Any] = {
                    "dataset": chosen,
                    "set": sorted(self.options.set),
                    "tiny": self.options.tiny,
                }
                cell |= {**dataclasses.asdict(setting), "seed": seed, "part": part}
                command = shlex.join(["python", *sys.argv])
                record = {"cell": cell, "command": command, "config": leaves}
                self._finish(wanted, record)
        return self.kept.find(chosen, part, leaves, path)

    def _finish(self, wanted: Wanted, record: dict[str, Any]) -> None:
        """Trains a cell and writes its file, or remembers that it crashed."""
        setting, seed, dataset, part, _, path = wanted
        crashed = path.with_suffix(".failed")
        try:
            outcome: dict[str, Any] = self._train(setting, seed, dataset, part)
        except DivergedError as e:
            outcome = {"diverged": str(e)}
        except UserError:
            raise
        except Exception:
            self.failed[path.name] = traceback.format_exc().strip().splitlines()[-1]
            crashed.write_text(self.failed[path.name] + "\n")
            traceback.print_exc()
            print(f"FAILED {path.name}; the next call runs it again", file=sys.stderr, flush=True)
            return
        with replacing(path) as temporary:
            temporary.write_text(packed.as_text({**record, **outcome}))
        crashed.unlink(missing_ok=True)
        self.trained += 1
        shown = {k: round(v, 4) for k, v in outcome.get("metrics", {}).items()} or outcome
        keys = (f"{k} {v}" for k, v in setting.overrides.items() if k != "optimizer.loss_factor")
        what = ", ".join([setting.describe(), *keys])
        print(f"{dataset} {part} {setting.label} ({what}), seed {seed}: {shown}", flush=True)

    def _train(self, setting: Setting, seed: int, dataset: str, part: str) -> dict[str, Any]:
        if not self.options.tiny:
            refuse_changes()
        return train_cell(self.config(setting, seed, dataset), part)

    def complete(self, visit: Callable[[], Any]) -> None:
        """Calls `visit` until nothing is left of it that another process is at, or the time is over.

        What to try next may hang on a cell of another process; whatever does not is trained meanwhile.
        """
        try:
            while True:
                self.busy.clear()
                before = self.trained
                visit()
                if not self.busy:
                    return
                if self.trained == before:
                    time.sleep(1)
        except OutOfTime:
            print("out of time; the same command goes on")

    @property
    def shown_seeds(self) -> list[int]:
        """The seeds of the tables: the study's own and those asked for, so that a part of it hides no finished cell."""
        usual = [] if self.options.tiny else self.options.usual_seeds
        return sorted({*self.options.seeds, *usual})

    def config(self, setting: Setting, seed: int, dataset: str) -> Config:
        """The resolved config of a cell."""
        return resolve(self.options, setting, seed, dataset)


def primary(outcome: Mapping[str, Any]) -> float:
    """The figure that settings are chosen by: cross-camera mAP where there is one, else MAP@R; -inf if diverged."""
    metrics = outcome.get("metrics", {})
    return next((metrics[name] for name in FIRST_METRICS if name in metrics), -math.inf)


def parser(description: str | None, seeds: str) -> argparse.ArgumentParser:
    """The options of every study."""
    made = argparse.ArgumentParser(description=description)
    made.set_defaults(usual_seeds=_integers(seeds))
    made.add_argument(
        "--dataset", default="emoji", help="a config's name, with its argument: emoji, emoji:gpu, cub"
    )
    made.add_argument("--seeds", type=_integers, default=seeds, help="seeds, comma-separated")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config key")
    made.add_argument("--minutes", type=float, default=0.0, help="begin no cell after these; 0 for no limit")
    made.add_argument(
        "--report-only", action="store_true", help="write the tables from the cells that are there"
    )
    made.add_argument(
        "--results", help=f"where cells and tables go; by default {RESULTS}, with --tiny {TINY_RESULTS}"
    )
    made.add_argument("--tiny", action="store_true", help="seconds a cell: only shows that it runs")
    return made


def _integers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers such as 0,1,2 are wanted, not {text!r}") from None


def start(main: Callable[[], None]) -> None:
    """Calls `main`; what a user can mend is one line."""
    expect_no_tpu()
    try:
        main()
    except UserError as e:
        raise SystemExit(f"error: {e}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on with the cell that was running") from None
