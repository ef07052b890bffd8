"""Writes a trained encoder in forms that run without this project.

    python -m hap2s_jax.export --workdir=runs/emoji --output=exported
    python -m hap2s_jax.export --workdir=runs/emoji --output=exported --formats=stablehlo,saved_model

stablehlo: one file for cpu, cuda and tpu, any batch size, that needs jax and
flatbuffers. safetensors: the parameters, the trunk
under torchvision's names, for PyTorch. saved_model: TensorFlow.
How to run each stands in docs/use.md; preprocessing.json, beside them, says what to do to an image first.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from hap2s_jax.errors import UserError, unknown_name
from hap2s_jax.serving import commands, exports


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = commands.parser("hap2s_jax.export", __doc__)
    commands.add_encoder(parser)
    parser.add_argument("--output", required=True, help="the folder to write to")
    parser.add_argument(
        "--formats", help=f"comma-separated: {', '.join(exports.FORMATS)}; by default all that can be had"
    )
    return commands.guarded(_run, parser.parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    asked = [name.strip() for name in (options.formats or "").split(",") if name.strip()]
    for name in asked:
        if name not in exports.FORMATS:
            raise unknown_name("export format", name, exports.FORMATS)
    encoder = commands.open_encoder(options)
    folder = pathlib.Path(options.output)
    print(exports.write_preprocessing(encoder, folder))
    for name in asked or exports.FORMATS:
        try:
            print(exports.FORMATS[name](encoder, folder))
        except UserError as error:
            if asked:
                raise
            print(f"not written: {error}")


if __name__ == "__main__":
    sys.exit(main())
