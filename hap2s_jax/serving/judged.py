"""A run's embeddings of test images, to be judged."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from hap2s_jax.distributed import devices
from hap2s_jax.errors import unknown_name
from hap2s_jax.evaluation.archive import Inputs
from hap2s_jax.evaluation.test_time import VIEWS
from hap2s_jax.run import config as configs
from hap2s_jax.run import facts, foreign
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
) -> Inputs:
    """Embeds the test images of a run with the checkpoint that `evaluate.weights` names, and changes nothing there.

    Args:
      workdir: of a run that may still be going on.
      step: another checkpoint than that one.
      views, feature, distance: other values than the run's own `evaluate.flip`, `evaluate.five_crops` and
        `evaluate.zooms`, `evaluate.feature`, `evaluate.distance`; () for no views.
      own_code, strict: see `hap2s_jax.load`.
      data_dir: where the run's data lie on this machine, if elsewhere than `data.data_dir` says.

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
        evaluator = Evaluator.of_run(config, encoder.module)
        facts.warn_of_changed_data(evaluator.dataset, encoder.workdir)
    test = evaluator.dataset.test
    embeddings, present = evaluator.embed_source(evaluator.parallel.replicate(encoder.variables), test)
    query, gallery = evaluator.query_and_gallery(test)
    labels = np.where(present, test.labels, -1)
    return Inputs(
        embeddings,
        labels,
        test.cameras,
        query,
        gallery,
        evaluator.dataset.views,
        evaluator.dataset.protocols,
        config.evaluate.distance,
        functools.partial(evaluator.images, test),
        encoder.step,
    )
