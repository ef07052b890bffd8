"""Embeds a run's test images for evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hap2s_jax.data.source import Dataset
from hap2s_jax.distributed import devices
from hap2s_jax.errors import UserError, unknown_name
from hap2s_jax.evaluation.archive import Inputs
from hap2s_jax.evaluation.test_time import VIEWS
from hap2s_jax.run import config as configs
from hap2s_jax.run import facts, foreign, sets
from hap2s_jax.run.evaluator import Evaluator
from hap2s_jax.run.trainer import use_compilation_cache
from hap2s_jax.serving import loading


def from_workdir(
    workdir: str,
    step: int | None = None,
    *,
    views: Sequence[str] | None = None,
    feature: str | None = None,
    distance: str | None = None,
    data_dir: str | None = None,
    own_code: bool = False,
    strict: bool = False,
    data: Sequence[str] | None = None,
) -> Inputs:
    """Embeds the test images of a run with the checkpoint that `evaluate.weights` names, and changes nothing there.

    Args:
      workdir: of a run that may still be going on.
      step: another checkpoint than that one.
      views, feature, distance: other values than the run's own `evaluate.flip`, `evaluate.five_crops` and
        `evaluate.zooms`, `evaluate.feature`, `evaluate.distance`; () for no views.
      own_code, strict: see `hap2s_jax.load`.
      data: other data sets to test on than the run's, see `sets.target`.
      data_dir: where the run's data lie on this machine, if elsewhere than `data.data_dir` says.

    Returns:
      The embeddings of the first data set, with the others inside.

    Raises:
      UserError: there is no run, no checkpoint, or no data.
    """
    config: Any = foreign.load(workdir, data_dir=data_dir)
    with configs.written_by(workdir), config.unlocked():
        if views is not None:
            if unknown := set(views) - set(VIEWS):
                raise unknown_name("view (--views)", min(unknown), VIEWS)
            for name in VIEWS:
                config.evaluate[name] = name in views
        config.evaluate.feature = feature or config.evaluate.feature
        config.evaluate.distance = distance or config.evaluate.distance
    devices.expect_no_tpu()
    with configs.written_by(workdir):
        use_compilation_cache(config)
        devices.use_cores(config.evaluate.batch_size)
        encoder = loading.load(workdir, checkpoint=step, own_code=own_code, strict=strict)
        given: dict[str, Dataset] = {}
        if data and len({*data}) < len(data):
            raise UserError(f"--data: a data set is given twice in {', '.join(data)}")
        for text in data or ():
            name, found = sets.target(text, config.seed)
            given[text if name in given else name] = found  # market1501:HERE and market1501:THERE are two
        evaluator = Evaluator.of_run(config, encoder.module, next(iter(given.values()), None))
        if given:
            evaluator = dataclasses.replace(evaluator, dataset=_judging(given))
        else:
            facts.warn_of_changed_data(evaluator.dataset, encoder.workdir)
    variables = evaluator.parallel.replicate(encoder.variables)
    first, *others = (_embedded(each, variables, encoder.step) for each in evaluator.of_targets())
    return dataclasses.replace(first, others=tuple(others))


def _judging(given: Mapping[str, Dataset]) -> Dataset:
    targets = tuple(dataclasses.replace(dataset, name=name) for name, dataset in given.items())
    return dataclasses.replace(targets[0], targets=targets)


def _embedded(evaluator: Evaluator, variables: Any, step: int) -> Inputs:
    test = evaluator.dataset.test
    embeddings, present = evaluator.embed_source(variables, test)
    query, gallery = evaluator.query_and_gallery(test)
    return Inputs(
        embeddings,
        np.where(present, test.labels, -1),
        test.cameras,
        query,
        gallery,
        evaluator.dataset.views,
        evaluator.dataset.protocols,
        evaluator.config.evaluate.distance,
        functools.partial(evaluator.images, test),
        step,
        evaluator.dataset.name,
        remarks=evaluator.dataset.remarks,
    )
