"""The cells of which every study consists: one setting trained with one seed and measured, kept in one file.

A cell is finished when its file is there, so that a study is stopped and started at will and studies share cells (see
`study.kept`). Several processes may work on one study: a cell that another is at is passed over. Within a process cells
that differ in seed or data alone share their compiled programs.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hap2s_jax import formats
from hap2s_jax.data.pk import PKPlan
from hap2s_jax.data.source import Source
from hap2s_jax.data.splits import split_by_class
from hap2s_jax.data.turns import QuarterTurns
from hap2s_jax.distributed.devices import expect_no_tpu
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation import protocols
from hap2s_jax.evaluation.retrieval import rank_matches
from hap2s_jax.reporting import environment
from hap2s_jax.reporting.atomic import holding, replacing
from hap2s_jax.run.config import Config
from hap2s_jax.run.trainer import Trainer, use_compilation_cache, use_devices
from hap2s_jax.training.loop import train
from hap2s_jax.training.watch import DivergedError
from study.kept import Kept, of_the_outcome, read
from study.settings import Setting, resolve

METRICS = ("mAP", "rank-1", "recall@1", "map@r")
# What settings are chosen and compared by: the first that a data set has.
FIRST_METRICS = ("mAP", "map@r")
LEARNING_RATE_FACTORS = (0.25, 0.5, 1.0, 2.0)
# While the best rate is the lowest or the highest tried, the search goes on beyond it by factors of two, so often.
RATES_BEYOND = 2
RESULTS, TINY_RESULTS = "experiments/results", "runs/tiny_studies"
# Which half of the training classes the search validates on; one draw for all losses.
SEARCH_SPLIT = 0
# Stands for a data set's config where no loss is asked about.
PLAIN = Setting("hap2s_e", "hap2s_e")
_PROGRAMS_KEPT = 12
_PROGRAMS: collections.OrderedDict[str, tuple[Any, Any]] = collections.OrderedDict()


class OutOfTime(Exception):
    """The study's minutes are over."""


class Study:
    """Runs cells, or takes them from their files.

    Args:
      options: of `parser`.

    Attributes:
      plain: the config of a cell of HAP2S_E as it is.
      busy: names of the cells that were passed over since another process is at them.
      failed: names and errors of the cells that crashed, and of those that an earlier call has left so; this call
        does not try them again.

    Raises:
      UserError: for a data set that has no config, or a `--set` that does not fit it.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.folder = pathlib.Path(options.results or (TINY_RESULTS if options.tiny else RESULTS))
        self.failed: dict[str, str] = {}
        self.busy: set[str] = set()
        self._kept = Kept(self.folder / "cells")
        # A mistake in the command line is reported before hours of cells, and before tables are written.
        self.plain = self.config(PLAIN, 0, options.dataset)
        self._deadline = time.monotonic() + 60 * options.minutes if options.minutes else math.inf

    def run(
        self, setting: Setting, seed: int, *, dataset: str | None = None, part: str = "test"
    ) -> dict | None:
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
        cell: dict[str, Any] = {"dataset": chosen, "set": sorted(self.options.set), "tiny": self.options.tiny}
        cell |= {**dataclasses.asdict(setting), "seed": seed, "part": part}
        leaves = of_the_outcome(self.config(setting, seed, chosen))
        begin = f"{setting.loss.replace(' ', '_')}-{part}-seed{seed}"
        path = self._kept.path(begin, chosen, part, leaves)
        name = path.name
        if path.is_file():
            return read(path)
        crashed = path.with_suffix(".failed")
        if self.options.report_only and crashed.is_file():
            self.failed[name] = crashed.read_text().strip()
        if self.options.report_only or name in self.failed:
            return None
        if time.monotonic() > self._deadline:
            raise OutOfTime
        with holding(path.with_name(f"{path.name}.lock")) as held:
            if not held:
                self.busy.add(name)
                return None
            if not path.is_file():
                self._finish(path, setting, seed, chosen, part, {"cell": cell, "config": leaves})
        return read(path) if path.is_file() else None

    def _finish(
        self, path: pathlib.Path, setting: Setting, seed: int, dataset: str, part: str, record: dict[str, Any]
    ) -> None:
        """Trains a cell and writes its file, or remembers that it crashed."""
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
            temporary.write_text(json.dumps(formats.stamped({**record, **outcome}), default=list) + "\n")
        crashed.unlink(missing_ok=True)
        shown = {k: round(v, 4) for k, v in outcome.get("metrics", {}).items()} or outcome
        what = ", ".join([setting.describe(), *(f"{k} {v}" for k, v in setting.overrides.items())])
        print(f"{dataset} {part} {setting.label} ({what}), seed {seed}: {shown}", flush=True)

    @property
    def shown_seeds(self) -> list[int]:
        """The seeds of the tables: the study's own and those asked for, so that a part of it hides no finished cell."""
        usual = [] if self.options.tiny else self.options.usual_seeds
        return sorted({*self.options.seeds, *usual})

    def config(self, setting: Setting, seed: int, dataset: str) -> Config:
        """The resolved config of a cell."""
        return resolve(self.options, setting, seed, dataset)

    def _train(self, setting: Setting, seed: int, dataset: str, part: str) -> dict:
        began = time.perf_counter()
        config = self.config(setting, seed, dataset)
        use_devices(config)
        use_compilation_cache(config)
        job = self._with_programs(Trainer.create(config))
        measured = job.dataset.test
        if part == "search":
            trained, measured = search_parts(job.dataset.train)
            shares = len(job.parallel.devices) * config.batch.pieces
            plan = PKPlan(
                trained.labels,
                classes_per_batch=classes_that_fit(config.batch, trained.labels, shares),
                images_per_class=config.batch.images_per_class,
                seed=seed,
            )
            job = dataclasses.replace(job, dataset=dataclasses.replace(job.dataset, train=trained), plan=plan)
        last: dict[str, float] = {}
        state = train(
            job.parallel.replicate(job.with_initial_weights(job.initial_state())[0]),
            job.train_batches(0),
            update=job.update,
            total_steps=config.steps,
            log_every=max(config.steps // 10, 1),
            evaluate_every=config.steps,
            save_every=config.steps,
            log=lambda step, part, metrics: last.update(metrics),
            evaluate=None,
            save=lambda state, metrics: None,
            wait_each_step=job.parallel.must_wait,
        )
        assert measured is not None
        by_class = measure(job, *job.embeddings(state, measured), measured)
        facts = environment.describe()
        return {
            "metrics": {name: float(np.sum(v["sums"]) / np.sum(v["counts"])) for name, v in by_class.items()},
            "training": {k: last[k] for k in ("loss", "active_fraction") if k in last},
            "seconds": round(time.perf_counter() - began, 1),
            "environment": {k: facts[k] for k in ("commit", "packages", "devices", "cpu", "cpus")},
            # The search needs no more than its figures.
            **({"by_class": by_class} if part == "test" else {}),
        }

    def _with_programs(self, job: Trainer) -> Trainer:
        """The job with the compiled functions of an earlier one that differs in seed and data alone."""
        same = {k: v for k, v in job.config.to_dict().items() if k not in ("data", "seed", "name")}
        key = json.dumps(same, sort_keys=True, default=list)
        update, embed = _PROGRAMS.pop(key, (job.update, job.embed))
        _PROGRAMS[key] = (update, embed)
        while len(_PROGRAMS) > _PROGRAMS_KEPT:
            _PROGRAMS.popitem(last=False)
        return dataclasses.replace(job, update=update, embed=embed)


def search_parts(train: Source) -> tuple[Source, Source]:
    """Two halves of the training classes, one to train on in the search and one to measure on.

    Where the training set holds turned copies, only the half that is trained on does: a copy of a measured class
    must not be trained on, and the test has no turned images either.
    """
    turned = isinstance(train, QuarterTurns)
    trained, measured = split_by_class(train.source if turned else train, 0.5, SEARCH_SPLIT)
    assert measured is not None
    return QuarterTurns(trained) if turned else trained, measured


def classes_that_fit(batch: Config, labels: np.ndarray, shares: int) -> int:
    """P of the search: the config's, or as many as half of the classes allow and `shares` equal parts of a batch.

    Args:
      batch: `config.batch`.
      labels: `[N]` of the images to train on.
      shares: devices times pieces.
    """
    most = min(batch.classes, len(np.unique(labels[labels >= 0])))
    fitting = (p for p in range(most, 0, -1) if p * batch.images_per_class % shares == 0)
    return next(fitting, batch.classes)


def measure(
    job: Trainer, embeddings: np.ndarray, present: np.ndarray, source: Source
) -> dict[str, dict[str, list]]:
    """Figures by class: name -> ``sums`` and ``counts`` over the class's queries, in the order of the labels."""
    labels = np.where(present, source.labels, -1)
    distance = job.config.evaluate.distance
    values: dict[str, dict[str, list]] = {}

    def add(rows: np.ndarray, figures: Mapping[str, np.ndarray]) -> None:
        for name in METRICS:
            if name in figures:
                known = ~np.isnan(figures[name])
                size = len(source.class_names)
                sums = np.bincount(labels[rows[known]], figures[name][known], size)
                counts = np.bincount(labels[rows[known]], minlength=size)
                values[name] = {"sums": np.round(sums, 4).tolist(), "counts": counts.tolist()}

    if "query_gallery" in job.dataset.protocols:
        query, gallery = job.query_and_gallery(source)
        found = rank_matches(
            embeddings, labels, cameras=source.cameras, query=query, gallery=gallery, distance=distance
        )
        add(found.query, protocols.query_gallery_values(found))
    if "class" in job.dataset.protocols:
        found = rank_matches(embeddings, labels, distance=distance)
        add(found.query, protocols.class_values(found))
    return values


def primary(outcome: Mapping[str, Any]) -> float:
    """The figure that settings are chosen by: cross-camera mAP where there is one, else MAP@R; -inf if diverged."""
    metrics = outcome.get("metrics", {})
    return next((metrics[name] for name in FIRST_METRICS if name in metrics), -math.inf)


def search(study: Study, base: Setting, alternatives: Iterable[Mapping[str, Any]]) -> Setting | None:
    """The best of the learning rates, then of some hyperparameters at that rate, on held-out training classes.

    Where the best rate lies at the edge of the grid, the search goes on beyond it.

    Args:
      study: runs the cells, all with seed 0.
      base: the loss with its defaults.
      alternatives: hyperparameters to try in turn; every loss has equally many.

    Returns:
      The setting, or None where a cell failed.
    """
    rates = [1.0] if study.options.tiny else list(LEARNING_RATE_FACTORS)
    for _ in range(1 if study.options.tiny else 1 + RATES_BEYOND):
        best = _best(study, [base.but(rate=base.rate * factor) for factor in rates])
        if best is None:
            return None
        if best.rate == base.rate * rates[0]:
            rates.insert(0, rates[0] / 2)
        elif best.rate == base.rate * rates[-1]:
            rates.append(rates[-1] * 2)
        else:
            break
    tried = [best.but(hyperparameters=changes) for changes in alternatives]
    return _best(study, [best, *(tried[:1] if study.options.tiny else tried)])


def _best(study: Study, settings: list[Setting]) -> Setting | None:
    while True:
        study.busy.clear()
        outcomes = [study.run(setting, 0, part="search") for setting in settings]
        if not study.busy:
            break
        time.sleep(1)  # What to try next hangs on what other processes are at.
    if any(outcome is None for outcome in outcomes):
        return None
    scores = [primary(outcome) for outcome in outcomes if outcome is not None]
    return settings[int(np.argmax(scores))]


def parser(description: str, seeds: str) -> argparse.ArgumentParser:
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
