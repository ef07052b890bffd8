"""A run from start to end: build, restore or start, train, measure, report.

`run` is the way through it, once, in that order; each step is a function of one module.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import ml_collections
import numpy as np

from hap2s_jax import extras
from hap2s_jax.data.places import place
from hap2s_jax.distributed import processes, signals
from hap2s_jax.errors import Preempted, Unreachable, UserError
from hap2s_jax.reporting import trackers
from hap2s_jax.reporting.metric_log import MetricLog
from hap2s_jax.reporting.profile import traced
from hap2s_jax.reporting.progress import ProgressBar
from hap2s_jax.run import config as configs
from hap2s_jax.run import facts, folder, initial_weights, report
from hap2s_jax.run.settle import settle
from hap2s_jax.run.trainer import Trainer, Update, use_compilation_cache, use_devices
from hap2s_jax.training import digests
from hap2s_jax.training.checkpoint import FOLDER, Checkpointer
from hap2s_jax.training.loop import train
from hap2s_jax.training.state import TrainState
from hap2s_jax.training.watch import CollapseWatch


def run(config: configs.Config, workdir: str | os.PathLike[str], *, strict: bool = False) -> dict[str, Any]:
    """Trains or resumes training in a working directory, and measures the result on the test classes.

    Args:
      config: as `hap2s_jax/run/schema.py` describes it.
      workdir: where checkpoints, ``metrics.jsonl``, ``results.json`` and the pictures go.
      strict: whether a damaged checkpoint is an error; otherwise it is set aside with a warning, and the run goes on
        from the newest whole one.

    Returns:
      What ``results.json`` holds.

    Raises:
      UserError: for any mistake the user can correct, in one line.
      Preempted: if SIGTERM came; everything done so far is saved.
      Unreachable: the workdir is in a bucket that does not answer; the last checkpoint stays.
    """
    frozen: Any = ml_collections.FrozenConfigDict(config)  # a copy, references and placeholders resolved
    settled: configs.Config = ml_collections.ConfigDict(frozen)
    workdir = place(workdir)
    notes = settle(settled, workdir)
    config = cast(configs.Config, ml_collections.FrozenConfigDict(settled))
    extras.require("config.log", *(name for name in ("wandb", "mlflow") if config.log[name]))
    initial_weights.check_source(config.pretrained.source, workdir)
    use_devices(config)
    with processes.StopRequests() as stop:
        processes.check_same(lambda: facts.of_config(config))
        with folder.entered(workdir, config) as path:
            use_compilation_cache(config)
            checks = digests.Checks(path.absolute() / FOLDER, strict=strict).begin_newest()
            trainer = Trainer.create(config)
            with _closing(trainer.checkpointer(path, checks)) as checkpointer:
                start = checkpointer.latest_step or 0
                data_facts = functools.cache(lambda: facts.data_facts(trainer.dataset))  # reads images
                finished = report.is_finished(path, start)
                processes.check_same(lambda: {**data_facts(), **facts.of_progress(start, finished)})
                stop.check_before(start)
                if start >= config.steps and finished:
                    return report.already_finished(path, start, is_lead=trainer.parallel.is_lead)
                if start:
                    folder.check_data(data_facts(), path)
                goes_on = 0 < start < config.steps and trainer.parallel.is_lead
                if goes_on and (changed := folder.changed_rate(trainer, path, start)):
                    report.say(changed)
                folder.claim(path, trainer, data_facts())
                if trainer.parallel.is_lead:
                    for note in notes:
                        report.say(note)
                return _train_and_report(trainer, path, checkpointer, start, stop)


def _train_and_report(
    trainer: Trainer, path: pathlib.Path, checkpointer: Checkpointer, start: int, stop: processes.StopRequests
) -> dict[str, Any]:
    config, is_lead = trainer.config, trainer.parallel.is_lead
    began = time.perf_counter()
    state, frozen = _first_state(trainer, checkpointer, start)
    with MetricLog(path, resume_step=start, tensorboard=config.log.tensorboard, enabled=is_lead) as log:
        log.add(trackers.opened(config.to_dict(), path, resumed=start > 0) if is_lead else ())
        report.announce(trainer, state, path)
        if frozen is not None:
            # Several processes learn of a signal only while they train.
            trainer = trainer.on_features(frozen, path, lambda: jax.process_count() == 1 and stop(start))
        if start == 0 and config.evaluate.untrained:
            test = trainer.dataset.test
            log.write(0, trainer.measure(*trainer.embeddings(state, test), test), part="test")
            if config.pretrained.source:
                log.write(0, trainer.measure_trunk(state), part="as_it_comes")
        update = trainer.update
        if config.log.profile_steps and is_lead:
            first, last = config.log.profile_steps
            update = traced(update, (first, min(last, config.steps)), start, path)
        state = _train(trainer, state, update, log, checkpointer, start, stop)
        chosen = _chosen_weights(trainer, state, checkpointer)
        return report.finish(
            trainer, chosen, path, log, last_step=int(state.step), seconds=time.perf_counter() - began
        )


def _first_state(trainer: Trainer, checkpointer: Checkpointer, start: int) -> tuple[TrainState, Any]:
    """The first state, on the devices, and the variables of a frozen trunk (None without one).

    The state is that of the checkpoint of step `start`, or has the first weights if `start` is 0.
    """
    state, is_lead = trainer.initial_state(), trainer.parallel.is_lead
    if start:
        if is_lead:
            report.say(f"resuming at step {start} of {trainer.config.steps}")
        restored = trainer.parallel.replicate(checkpointer.restore(state, start))
        return restored, checkpointer.restore_frozen() if trainer.learner.is_frozen else None
    state, frozen, weights = trainer.with_initial_weights(state)
    if trainer.config.pretrained.source:  # each host may have its own copy
        processes.check_same(
            lambda: {"the first weights": facts.arrays_fact(state.params, state.batch_stats, frozen)}
        )
    if is_lead:
        report.say(weights)
    if frozen is not None:
        checkpointer.save_frozen(frozen)
    return trainer.parallel.replicate(state), frozen


def _train(
    trainer: Trainer,
    state: TrainState,
    update: Update,
    log: MetricLog,
    checkpointer: Checkpointer,
    start: int,
    stop: processes.StopRequests,
) -> TrainState:
    config, validation, is_lead = trainer.config, trainer.dataset.validation, trainer.parallel.is_lead
    watch = CollapseWatch()
    with ProgressBar(
        config.steps, start, "training", images_per_step=trainer.learner.batch_size, enabled=is_lead
    ) as bar:

        def save(state: TrainState, metrics: dict[str, float] | None) -> None:
            log.flush()  # before saving: a resumed run cuts only lines after the checkpoint
            checkpointer.save(state, metrics)

        def write(step: int, part: str, metrics: dict[str, float]) -> None:
            if part == "train":
                metrics["images_per_second"] = trainer.learner.batch_size / metrics.pop("seconds_per_step")
                metrics["learning_rate"] = float(np.asarray(trainer.learner.schedule(step - 1)))
                for warning in watch.check(step, metrics):
                    bar.write(f"warning: {warning}")
            elif part == "validation":
                bar.write(f"step {step}: " + _summary(metrics, config.checkpoint.best_metric))
            log.write(step, metrics, part=part)

        def evaluate(state: TrainState) -> dict[str, float]:
            assert validation is not None
            with bar.paused():
                return trainer.evaluate(state, validation)

        return train(
            state,
            trainer.train_batches(start),
            update=update,
            total_steps=config.steps,
            log_every=config.log.every_steps,
            evaluate_every=config.evaluate.every_steps,
            save_every=config.checkpoint.every_steps,
            log=write,
            evaluate=None if validation is None else evaluate,
            save=save,
            progress=lambda step, metrics: bar.update(step, loss=metrics["loss"]),
            wait_each_step=trainer.parallel.must_wait,
            stop=stop,
        )


def _summary(metrics: Mapping[str, float], best_metric: str) -> str:
    """An evaluation of the validation classes in a line: the metric that chooses checkpoints, and the usual ones."""
    names = [n for n in dict.fromkeys((best_metric, "mAP", "rank-1", "recall@1")) if n in metrics]
    return "validation " + ", ".join(f"{name} {metrics[name]:.3f}" for name in names)


def _chosen_weights(trainer: Trainer, last: TrainState, checkpointer: Checkpointer) -> TrainState:
    """The state that is measured on the test classes."""

    def best() -> int | None:
        step = checkpointer.evaluated_step(trainer.config.evaluate.weights)
        return None if step == int(last.step) else step

    chosen = checkpointer.restore_whole(best, last)
    return last if chosen is None else trainer.parallel.replicate(chosen[1])


@contextlib.contextmanager
def _closing(checkpointer: Checkpointer) -> Iterator[Checkpointer]:
    """Waits until the last checkpoint is complete, after an error too; a second error must not hide the first."""
    try:
        yield checkpointer
    except Preempted:
        checkpointer.close()
        raise
    except Unreachable:
        raise
    except BaseException:
        signals.notice()  # closing may take long
        if jax.process_count() > 1:  # no save can be completed if other processes are gone
            raise
        with contextlib.suppress(UserError):
            checkpointer.close()
        raise
    checkpointer.close()
