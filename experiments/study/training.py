"""Trains and measures one cell."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from hap2s_jax.data.pk import PKPlan
from hap2s_jax.data.source import Dataset, Source
from hap2s_jax.data.splits import split_by_class
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation import protocols
from hap2s_jax.evaluation.retrieval import rank_matches
from hap2s_jax.reporting import environment
from hap2s_jax.run.config import Config
from hap2s_jax.run.evaluator import load_dataset, with_noise
from hap2s_jax.run.trainer import Trainer, use_compilation_cache, use_devices
from hap2s_jax.training.loop import train

METRICS = ("mAP", "rank-1", "recall@1", "map@r")
# Which half of the training classes the search validates on; one draw for all losses.
SEARCH_SPLIT = 0
_ROOT = pathlib.Path(__file__).parents[2]
# What a cell's figures depend on; tables and pages may change while cells are trained.
_CODE = ("hap2s_jax", "configs", "experiments", ":(exclude)experiments/results", ":(exclude)*.md")
_PROGRAMS_KEPT = 12
_PROGRAMS: collections.OrderedDict[str, tuple[Any, Any]] = collections.OrderedDict()


def train_cell(config: Config, part: str) -> dict[str, Any]:
    """Trains a cell and measures it.

    Args:
      config: of the cell.
      part: "test" or "search", see `cells.Study.run`.

    Returns:
      What a cell's file has beside its setting and config.
    """
    began = time.perf_counter()
    use_devices(config)
    use_compilation_cache(config)
    job = _with_programs(Trainer.create(config))
    measured = job.dataset.test
    if part == "search":
        job, measured = _for_search(job)
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
    facts["commit"] = facts["commit"] and facts["commit"].removesuffix("+changes")
    return {
        "metrics": {name: float(np.sum(v["sums"]) / np.sum(v["counts"])) for name, v in by_class.items()},
        "training": {k: last[k] for k in ("loss", "active_fraction") if k in last},
        "seconds": round(time.perf_counter() - began, 1),
        "environment": {k: facts[k] for k in ("commit", "packages", "devices", "cpu", "cpus")},
        # The search needs no more than its figures.
        **({"by_class": by_class} if part == "test" else {}),
    }


def refuse_changes() -> None:
    """Ends where the code differs from its commit: a cell says by its commit what it was trained with.

    Raises:
      UserError: naming what has changed.
    """
    try:
        command = [
            "git",
            "--no-optional-locks",
            "-C",
            str(_ROOT),
            "status",
            "--porcelain",
            "--untracked-files=all",
            "--",
            *_CODE,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return  # no repository: the cell says that it has no commit
    if changed := [line[3:] for line in done.stdout.splitlines()]:
        raise UserError(
            f"{', '.join(changed[:3])} differ from the commit ({len(changed)} in all); commit first, so that a cell's "
            "commit says what it was trained with, or try it with --tiny"
        )


def halves(config: Config, clean: Dataset) -> tuple[Dataset, Source]:
    """One half of a data set's training classes to train on, and the other to measure on.

    Turned copies and noise are of the half that is trained on alone: a copy of a measured class must not be trained
    on, and the test is clean too.
    """
    trained, measured = split_by_class(clean.train, 0.5, SEARCH_SPLIT)
    assert measured is not None
    return with_noise(config, dataclasses.replace(clean, train=trained))[0], measured


def _for_search(job: Trainer) -> tuple[Trainer, Source]:
    """The job with one half of the training classes to train on, and the other half."""
    config = job.config
    dataset, measured = halves(config, load_dataset(config))
    shares = len(job.parallel.devices) * config.batch.pieces
    plan = PKPlan(
        np.asarray(dataset.train.labels),
        classes_per_batch=classes_that_fit(config.batch, np.asarray(dataset.train.labels), shares),
        images_per_class=config.batch.images_per_class,
        seed=config.seed,
    )
    return dataclasses.replace(job, dataset=dataset, plan=plan), measured


def _with_programs(job: Trainer) -> Trainer:
    """The job with the compiled functions of an earlier one that differs in seed and data alone."""
    same = {k: v for k, v in job.config.to_dict().items() if k not in ("data", "seed", "name")}
    key = json.dumps(same, sort_keys=True, default=list)
    update, embed = _PROGRAMS.pop(key, (job.update, job.embed))
    _PROGRAMS[key] = (update, embed)
    while len(_PROGRAMS) > _PROGRAMS_KEPT:
        _PROGRAMS.popitem(last=False)
    return dataclasses.replace(job, update=update, embed=embed)


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
) -> dict[str, dict[str, list[Any]]]:
    """Figures by class: name -> ``sums`` and ``counts`` over the class's queries, in the order of the labels."""
    labels = np.where(present, source.labels, -1)
    distance = job.config.evaluate.distance
    values: dict[str, dict[str, list[Any]]] = {}

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
