"""Compiles a config's programs for TPUs that you do not have, and reports their memory and estimated speed.

    python -m hap2s_jax.rehearse --config=configs/cub.py --topology=v5e:4x4
    python -m hap2s_jax.rehearse --config=configs/cub.py --topology=v5p:2x2x2 --scaling

The extra ``tpu`` installs the compiler; you need no TPU, no data and no weights. ``--scaling`` adds the loss on every
slice of that generation from 8 chips on, with the same number of images per chip.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Sequence

import jax

from hap2s_jax import cli, extras
from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError
from hap2s_jax.reporting import outputs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("rehearse", __doc__)
    parser.add_config("--config=configs/cub.py or --config=cub")
    parser.add_argument("--topology", default="v5e:4x4", help="TPU slice; a wrong name lists all")
    parser.add_switch("largest", default=True, help="find the largest batch that fits (several compilations)")
    parser.add_switch("scaling", default=False, help="compile the loss for all slices from 8 chips on")
    parser.add_argument(
        "--effort",
        type=float,
        default=-1.0,
        help="compiler effort: 0 as in training, -1 for a fraction of the time",
    )
    parser.add_argument(
        "--classes", type=int, help="number of training classes, if the registry does not know it"
    )
    parser.add_argument(
        "--json", type=outputs.Output, metavar="FILE", help="also write all figures to this file"
    )
    parser.add_switch("overwrite", default=False, help=outputs.OVERWRITE)
    return cli.start(_run, parser, arguments)


def _run(options: argparse.Namespace) -> None:
    extras.require("rehearse", "train", "tpu")
    outputs.check(options)
    from hap2s_jax.run import config_file, rehearsing

    config = config_file.read(options.config)
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # do not touch a TPU or GPU of this machine
    figures = rehearsing.rehearse(
        config,
        options.topology,
        num_classes=options.classes,
        effort=options.effort,
        largest=options.largest,
        scaling=options.scaling,
        say=functools.partial(print, flush=True),
    )
    if options.json:
        try:
            place(options.json).write_text(json.dumps(figures, indent=2) + "\n")
        except OSError as e:
            raise UserError(f"--json={options.json} cannot be written: {e.strerror}") from e


if __name__ == "__main__":
    sys.exit(main())
