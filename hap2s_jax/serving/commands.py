"""The flags by which commands choose a trained encoder."""

from __future__ import annotations

import argparse

from hap2s_jax.cli import Parser
from hap2s_jax.data.places import place
from hap2s_jax.models.pretrained import HUB
from hap2s_jax.serving.trained import TrainedEncoder


def add_encoder(parser: Parser, *, required: bool = True, where: str = "") -> None:
    """The flags that name a trained encoder."""
    parser.add_argument(
        "--workdir", required=required, help=f"the working directory of a run, or hf://user/model{where}"
    )
    parser.add_argument(
        "--checkpoint", help="best, latest or a step; by default the one that the run's results are of"
    )
    parser.add_switch(
        "average",
        default=None,
        help="the moving average of the weights, or the weights themselves; by default the average where there is one",
    )
    add_own_code(parser)
    parser.add_strict()


def add_own_code(parser: Parser) -> None:
    """The flag for runs whose encoder is code of their own."""
    parser.add_switch(
        "own_code",
        default=False,
        help="import and run the code that the run's config names as its encoder; only for runs that you trust",
    )


def is_there(workdir: str, *, named: bool) -> bool:
    """Whether a run's working directory is there. One that is not `named` by the user, but by a file that anybody may
    have made, is not asked for over the network.
    """
    if named and workdir.startswith(HUB):
        return True  # whoever opens it will see
    return (named or "://" not in workdir) and place(workdir).is_dir()


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
