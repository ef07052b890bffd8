"""Trains an encoder and measures it: ``python -m hap2s_jax.main --config=configs/emoji.py``.

Flags and wiring only. The same command run again resumes where the last run stopped, and says so when there
is nothing left to do. `run` is the same from Python.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

# Before anything can load TensorFlow, whose import is noisy otherwise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from hap2s_jax import cli, cluster, parallel, report
from hap2s_jax import config as configs
from hap2s_jax.data import noise
from hap2s_jax.data.source import Source
from hap2s_jax.errors import Preempted, UserError
from hap2s_jax.job import Job, use_compilation_cache, use_devices
from hap2s_jax.reporting.metric_log import MetricLog
from hap2s_jax.reporting.progress import ProgressBar
from hap2s_jax.training.checkpoint import FOLDER, Checkpointer
from hap2s_jax.training.loop import train
from hap2s_jax.training.optimizer import create_schedule
from hap2s_jax.training.state import TrainState
from hap2s_jax.training.watch import CollapseWatch


def run(config: configs.Config, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains, or goes on training, in `workdir`, and measures the result on the test classes.

    Args:
      config: as `configs/common.py` describes it.
      workdir: where checkpoints, ``metrics.jsonl``, ``results.json`` and the pictures go.

    Returns:
      What ``results.json`` holds.

    Raises:
      UserError: for whatever the user can mend, in one line.
      Preempted: if SIGTERM came; what was done is saved.
    """
    if "://" in os.fspath(workdir):
        raise UserError(
            f"--workdir={os.fspath(workdir)} is not on a disk; mount the bucket, and give the folder"
        )
    config = cast(configs.Config, ml_collections.FrozenConfigDict(config))
    path = pathlib.Path(workdir).absolute()
    use_devices(config)
    with cluster.StopRequests() as stop:
        cluster.check_same(lambda: _facts(config))
        _open(path, config)
        cluster.check_shared(path)
        with cluster.alone(path):
            return _continue(config, path, stop)


def _continue(config: configs.Config, path: pathlib.Path, stop: cluster.StopRequests) -> dict[str, Any]:
    """Goes on where the run in `path` has stopped, if there is anything left to do."""
    use_compilation_cache(config)
    job = Job.create(config)
    with _closing(job.checkpointer(path)) as checkpointer:
        start = checkpointer.latest_step or 0
        finished = report.is_finished(path, start)
        facts = functools.cache(lambda: cluster.data_facts(job.dataset))  # reads images
        cluster.check_same(
            lambda: {
                **facts(),
                "the newest checkpoint": str(start),
                "whether it is finished": str(finished),
            }
        )
        stop.check_before(start)
        if start >= config.steps and finished:
            return report.already_finished(path, start, is_lead=job.parallel.is_lead)
        if start and (changed := cluster.changed_data(facts(), path)):
            raise UserError(
                f"{changed}; put the data back as they were, choose another --workdir, or remove {cluster.DATA_FACTS} "
                "from this one if it shall go on with them"
            )
        if 0 < start < config.steps and job.parallel.is_lead and (changed := _changed_rate(job, path, start)):
            report.say(changed)
        _claim(path, job, facts())
        return _run(job, path, checkpointer, start, stop)


def _run(
    job: Job, path: pathlib.Path, checkpointer: Checkpointer, start: int, stop: cluster.StopRequests
) -> dict[str, Any]:
    config, is_lead = job.config, job.parallel.is_lead
    began = time.perf_counter()
    state = job.initial_state()
    if start:
        if is_lead:
            report.say(f"resuming at step {start} of {config.steps}")
        state = checkpointer.restore(state, start)
    else:
        state, weights = job.with_first_weights(state)
        if config.pretrained.source:  # of which each host may have a copy of its own
            cluster.check_same(
                lambda: {"the first weights": cluster.arrays_fact(state.params, state.batch_stats)}
            )
        if is_lead:
            report.say(weights)
    state = job.parallel.replicate(state)
    with MetricLog(path, resume_step=start, tensorboard=config.log.tensorboard, enabled=is_lead) as log:
        report.announce(job, state, path)
        if start == 0 and config.evaluate.untrained:
            untrained = job.measure(*job.embeddings(state, job.dataset.test), job.dataset.test)
            log.write(0, _prefixed("test/", untrained))
        state = _train(job, state, log, checkpointer, start, stop)
        chosen = _chosen_weights(job, state, checkpointer)
        return report.finish(
            job, chosen, path, log, last_step=int(state.step), seconds=time.perf_counter() - began
        )


@contextlib.contextmanager
def _closing(checkpointer: Checkpointer) -> Iterator[Checkpointer]:
    """Waits for the last checkpoint to be whole, also after an error, which a second one must not hide."""
    try:
        yield checkpointer
    except Preempted:
        checkpointer.close()
        raise
    except BaseException:
        if jax.process_count() > 1:  # the others may be gone, and no save can be completed without them
            raise
        with contextlib.suppress(UserError):
            checkpointer.close()
        raise
    checkpointer.close()


def _train(
    job: Job,
    state: TrainState,
    log: MetricLog,
    checkpointer: Checkpointer,
    start: int,
    stop: cluster.StopRequests,
) -> TrainState:
    config, validation = job.config, job.dataset.validation
    watch = CollapseWatch()
    with ProgressBar(
        config.steps, start, "training", images_per_step=job.batch_size, enabled=job.parallel.is_lead
    ) as bar:

        def write(step: int, metrics: dict[str, float]) -> None:
            if "loss" in metrics:
                metrics["images_per_second"] = job.batch_size / metrics.pop("seconds_per_step")
                metrics["learning_rate"] = float(np.asarray(job.schedule(step - 1)))
                log.write(step, _prefixed("train/", metrics))
                for warning in watch.check(step, metrics):
                    bar.write(f"warning: {warning}")
            else:
                log.write(step, _prefixed("validation/", metrics))

        def evaluate_on(source: Source) -> Callable[[TrainState], dict[str, float]]:
            def evaluate(state: TrainState) -> dict[str, float]:
                with bar.paused():
                    return job.evaluate(state, source)

            return evaluate

        return train(
            state,
            job.train_batches(start),
            update=job.update,
            total_steps=config.steps,
            log_every=config.log.every_steps,
            evaluate_every=config.evaluate.every_steps,
            save_every=config.checkpoint.every_steps,
            log=write,
            evaluate=None if validation is None else evaluate_on(validation),
            save=checkpointer.save,
            progress=lambda step, metrics: bar.update(step, loss=metrics["loss"]),
            wait_each_step=job.parallel.must_wait,
            stop=stop,
        )


def _chosen_weights(job: Job, last: TrainState, checkpointer: Checkpointer) -> TrainState:
    """The state whose figures on the test classes are reported."""
    best = checkpointer.best_step if job.config.evaluate.weights == "best" else None
    if best is None or best == int(last.step):
        return last
    return job.parallel.replicate(checkpointer.restore(last, best))


def _facts(config: configs.Config) -> dict[str, str]:
    """What must be the same on all processes before any data is read."""
    return {
        **{
            f"config.{k}": repr(v) for k, v in configs.flatten(config).items() if k not in configs.OF_ONE_HOST
        },
        **cluster.code_facts(),
    }


def _open(workdir: pathlib.Path, config: configs.Config) -> None:
    """Makes the working directory, or checks that what is in it is this config's."""
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    # A config without a checkpoint is of a run that never got anywhere: nothing is lost by replacing it.
    if any((workdir / FOLDER).glob("[0-9]*")):
        configs.check_resumable(config, workdir)


def _changed_rate(job: Job, workdir: pathlib.Path, start: int) -> str | None:
    """What other `steps` than before make of the next update's learning rate, None if nothing."""
    old: Any = configs.load(workdir)
    settings = {"learning_rate": old.optimizer.learning_rate, **old.schedule}
    schedules = (create_schedule(steps=old.steps, **settings), job.schedule)
    before, now = (float(np.asarray(schedule(start))) for schedule in schedules)
    if old.steps == job.config.steps or math.isclose(before, now, rel_tol=1e-3):
        return None
    return (
        f"note: the learning rate goes on at {now:.3g}, where it stood at {before:.3g}, since a schedule stretches "
        f"over all steps (that of the loss too), and these were {old.steps} before"
    )


def _claim(workdir: pathlib.Path, job: Job, data_facts: dict[str, str]) -> None:
    """Writes the config, once it has turned out to be a valid one, its data's fingerprints, and what noise it made."""
    if jax.process_index() == 0:
        with _writing(workdir):
            configs.save(job.config, workdir)
            cluster.save_data_facts(data_facts, workdir)
            if job.noise is not None:
                job.noise.save(workdir / noise.FILE_NAME)


@contextlib.contextmanager
def _writing(workdir: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(f"workdir {workdir} cannot be written: {e.strerror}; choose another --workdir") from e


def _prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in metrics.items()}


def _define_flags() -> None:
    """Not at import: whoever imports `run` has flags of their own."""
    config_flags.DEFINE_config_file("config", None, "File of the experiment, as configs/emoji.py.")
    flags.DEFINE_string("workdir", None, "Where results go; runs/<config.name> by default.")
    flags.DEFINE_bool("distributed", False, "Join the other processes of a pod or cluster.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where it cannot be detected.")
    flags.DEFINE_integer("num_processes", None, "Number of processes, where it cannot be detected.")
    flags.DEFINE_integer("process_id", None, "This process's number, where it cannot be detected.")
    flags.DEFINE_integer("join_timeout", 300, "Seconds in which all processes must have joined.")
    flags.DEFINE_integer(
        "peer_timeout", 60, "Seconds without a sign of life after which a process, and the job, is given up."
    )


def _main() -> None:
    given = flags.FLAGS
    if given.config is None:
        cli.fail("which experiment? give --config=FILE, as --config=configs/emoji.py", code=2)
    workdir = given.workdir or pathlib.Path("runs") / given.config.name
    if not (given.distributed or given.coordinator):
        for name in ("num_processes", "process_id"):
            if given[name].value is not None:
                cli.fail(
                    f"--{name} is of no use alone; give --coordinator=HOST:PORT (or --distributed) too",
                    code=2,
                )
        run(given.config, workdir)
        return
    parallel.initialize_processes(
        given.coordinator,
        given.num_processes,
        given.process_id,
        join_timeout=given.join_timeout,
        peer_timeout=given.peer_timeout,
    )
    with cluster.leaving_at_once():
        run(given.config, workdir)


if __name__ == "__main__":
    _define_flags()
    cli.start(_main)
