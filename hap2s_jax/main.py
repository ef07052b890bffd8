"""Trains an encoder and tests it.

    python -m hap2s_jax.main --config=configs/emoji.py
    python -m hap2s_jax.main --config=emoji:tiny --workdir=runs/tiny --config.steps=20

Run the same command again to resume. Configs that come with the package are found by name, in any folder. From
Python, call `hap2s_jax.main.run`.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from hap2s_jax import cli, extras
from hap2s_jax.distributed import devices, processes


def run(config: Any, workdir: str | os.PathLike[str], *, strict: bool = False) -> dict[str, Any]:
    """Trains or resumes training in a working directory, and measures the result: `hap2s_jax.run.run.run`.

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
    """
    extras.require("hap2s_jax.main.run", "train")
    # Imported late: --help must work without the packages that training needs.
    from hap2s_jax.run.run import run as from_start_to_end

    return from_start_to_end(config, workdir, strict=strict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("main", __doc__)
    parser.add_config("--config=configs/emoji.py:tiny or --config=emoji")
    parser.add_argument("--workdir", help="folder for results; default runs/<config.name>")
    parser.add_switch("list_configs", default=False, help="list the configs that come with the package")
    parser.add_strict()
    parser.add_switch("distributed", default=False, help="join the other processes of a pod or cluster")
    parser.add_argument("--coordinator", help="host:port of process 0, if it cannot be detected")
    parser.add_argument("--num_processes", type=int, help="number of processes, if it cannot be detected")
    parser.add_argument("--process_id", type=int, help="number of this process, if it cannot be detected")
    parser.add_argument(
        "--join_timeout", type=int, default=300, help="seconds to wait for all processes to join"
    )
    parser.add_argument(
        "--peer_timeout",
        type=int,
        default=60,
        help="seconds without a sign of life after which a process counts as dead and the job ends",
    )
    return cli.start(
        _run,
        parser,
        arguments,
        interrupted="interrupted; the same command goes on from the last checkpoint",
    )


def _run(options: argparse.Namespace) -> None:
    extras.require("main", "train")
    from hap2s_jax.run import config_file

    if options.list_configs:
        print(*config_file.listing(), sep="\n")
        return
    config = config_file.read(options.config)
    _quieten()
    workdir = options.workdir or pathlib.Path("runs") / config.name
    if not (options.distributed or options.coordinator):
        for name in ("num_processes", "process_id"):
            if getattr(options, name) is not None:
                raise cli.UsageError(
                    f"--{name} has no effect alone; give --coordinator=HOST:PORT (or --distributed) too"
                )
        run(config, workdir, strict=options.strict)
        return
    devices.initialize_processes(
        options.coordinator,
        options.num_processes,
        options.process_id,
        join_timeout=options.join_timeout,
        peer_timeout=options.peer_timeout,
    )
    with processes.leaving_at_once():
        run(config, workdir, strict=options.strict)


def _quieten() -> None:
    from absl import logging as absl_logging

    # orbax logs whole tracebacks of failures that are reported here in one line.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("hap2s_jax").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
