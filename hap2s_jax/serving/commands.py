"""The flags by which commands choose a trained encoder."""

from __future__ import annotations

import argparse

from hap2s_jax.cli import Parser
from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError
from hap2s_jax.models.pretrained import HUB
from hap2s_jax.serving.trained import TrainedEncoder


def add_encoder(parser: Parser, *, required: bool = True, where: str = "") -> None:
    """The flags that name a trained encoder."""
    parser.add_argument(
        "--workdir", required=required, help=f"the working directory of a run, or hf://user/model{where}"
    )
    parser.add_argument(
        "--checkpoint", help="best, latest or a step; by default the one that the run's results report"
    )
    parser.add_switch(
        "average",
        default=None,
        help="use the moving average of the weights, or the weights themselves; by default the average if there is one",
    )
    parser.add_switch(
        "own_code",
        default=False,
        help="import and run the code that the run's config names as its encoder; only for runs that you trust",
    )
    parser.add_strict()


def workdir_of(options: argparse.Namespace, what: str, ours: str) -> str:
    """The working directory of the encoder's run: that of the flags, or `ours`, which the file `what` names.

    A place that only a file names, which anybody may have made, is never opened over the network.

    Raises:
      UserError: it is not there, or not to be asked for.
    """
    workdir = str(options.workdir or ours)
    if options.workdir is None and "://" in workdir:
        raise UserError(
            f"{what} is of the run in {workdir}, which is on no disk, and opened only where you name it; give --workdir"
        )
    if not workdir.startswith(HUB) and not place(workdir).is_dir():
        raise UserError(f"{what} is of the run in {workdir}, which does not exist; give --workdir")
    return workdir


def open_encoder(options: argparse.Namespace, workdir: str | None = None) -> TrainedEncoder:
    """The encoder that the flags name; programs compiled for it are kept between commands."""
    from hap2s_jax.distributed import devices
    from hap2s_jax.run.trainer import use_compilation_cache
    from hap2s_jax.serving.loading import load

    devices.use_cores(getattr(options, "batch_size", None) or 64)
    encoder = load(
        workdir or options.workdir,
        checkpoint=options.checkpoint,
        average=options.average,
        own_code=options.own_code,
        strict=options.strict,
    )
    use_compilation_cache(encoder.config)
    return encoder
