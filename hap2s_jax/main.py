"""Trains an encoder and measures it: ``python -m hap2s_jax.main --config=configs/emoji.py``.

Flags and wiring only. The same command run again resumes where the last run stopped, and says so when there
is nothing left to do. `run` is the same from Python.
"""

from __future__ import annotations

import os
import pathlib

# Before anything can load TensorFlow, whose import is noisy otherwise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import flags
from ml_collections import config_flags

from hap2s_jax import cli
from hap2s_jax.distributed import devices, processes
from hap2s_jax.run.run import run as run


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
    devices.initialize_processes(
        given.coordinator,
        given.num_processes,
        given.process_id,
        join_timeout=given.join_timeout,
        peer_timeout=given.peer_timeout,
    )
    with processes.leaving_at_once():
        run(given.config, workdir)


if __name__ == "__main__":
    _define_flags()
    cli.start(_main)
