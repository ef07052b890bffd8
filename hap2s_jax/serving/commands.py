"""What the commands that use a trained encoder share: which one, and what becomes of mistakes."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable

from hap2s_jax.errors import UserError
from hap2s_jax.serving.trained import TrainedEncoder


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_encoder(parser: argparse.ArgumentParser, *, required: bool = True, where: str = "") -> None:
    """The flags that name a trained encoder."""
    parser.add_argument("--workdir", required=required, help=f"the working directory of a run{where}")
    parser.add_argument(
        "--checkpoint", help="best, latest or a step; by default the one that the run's results are of"
    )
    parser.add_argument(
        "--average",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the moving average of the weights, or the weights themselves; by default the average where there is one",
    )
    add_own_code(parser)


def add_own_code(parser: argparse.ArgumentParser) -> None:
    """The flag for runs whose encoder is code of their own."""
    parser.add_argument(
        "--own_code",
        action="store_true",
        help="import and run the code that the run's config names as its encoder; only for runs that you trust",
    )


def open_encoder(options: argparse.Namespace, workdir: str | None = None) -> TrainedEncoder:
    """The encoder that the flags name; programs compiled for it are kept between commands."""
    from hap2s_jax.distributed import devices
    from hap2s_jax.run.trainer import use_compilation_cache
    from hap2s_jax.serving.loading import load

    devices.expect_no_tpu()
    devices.use_cores(getattr(options, "batch_size", None) or 64)
    encoder = load(
        workdir or options.workdir,
        checkpoint=options.checkpoint,
        average=options.average,
        own_code=options.own_code,
    )
    use_compilation_cache(encoder.config)
    return encoder


def guarded(
    run: Callable[[argparse.Namespace], None],
    options: argparse.Namespace,
    *,
    interrupted: str = "interrupted",
) -> int:
    """Runs a command; what the user can mend becomes one line and exit code 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"error: {interrupted}", file=sys.stderr)
        return 130
    return 0
