"""Exports a trained encoder to formats that run without this project.

    python -m hap2s_jax.export --workdir=runs/emoji --output=exported
    python -m hap2s_jax.export --workdir=runs/emoji --output=exported --formats=stablehlo,saved_model
    python -m hap2s_jax.export --workdir=runs/emoji --push=user/model

stablehlo: one file for CPU, CUDA and TPU; needs jax and flatbuffers. safetensors: the parameters for PyTorch, the trunk
under torchvision's names. saved_model: TensorFlow. onnx: onnxruntime and others. All except safetensors take any number
of images, or exactly --batch_size. Each file is loaded and run once before it counts as written.

preprocessing.json says how to prepare an image; docs/use.md shows how to run each format. jax can read a StableHLO file
for at least 180 days; then run the same command again, with a newer jax and --overwrite. It needs only the working
directory.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from hap2s_jax import cli, extras
from hap2s_jax.data.places import local_folder, place
from hap2s_jax.distributed import signals
from hap2s_jax.errors import UserError, unknown_name
from hap2s_jax.reporting import outputs
from hap2s_jax.serving import commands, exports
from hap2s_jax.serving.trained import TrainedEncoder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("export", __doc__)
    commands.add_encoder(parser)
    parser.add_argument("--output", help="the folder to write to")
    parser.add_argument(
        "--push",
        metavar="USER/MODEL",
        help="upload the encoder as hf://USER/MODEL, with the model card as README",
    )
    parser.add_switch("private", default=False, help="--push: make a new model private")
    parser.add_argument(
        "--formats", help=f"comma-separated: {', '.join(exports.FORMATS)}; by default all that can be written"
    )
    parser.add_argument(
        "--batch_size", type=int, metavar="N", help="fixed number of images per call; by default any number"
    )
    parser.add_switch("overwrite", default=False, help=outputs.OVERWRITE)
    return cli.start(_run, parser, arguments)


def _run(options: argparse.Namespace) -> None:
    extras.require("export", "use")
    from hap2s_jax.serving import hub  # not above: the command's help needs the base install only

    asked = [name.strip() for name in (options.formats or "").split(",") if name.strip()]
    for name in asked:
        if name not in exports.FORMATS:
            raise unknown_name("export format", name, exports.FORMATS)
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, but is {options.batch_size}; leave it out for any")
    if not (options.output or options.push):
        raise cli.UsageError("give --output, a folder, or --push=USER/MODEL")
    if options.output and not options.overwrite:
        for file in (place(options.output) / exports.FILES[name] for name in asked or exports.FORMATS):
            if file.exists():
                raise UserError(f"{file} exists; give --overwrite to replace it, or choose another --output")
    if options.push:
        hub.check_login(options.push)
    encoder = commands.open_encoder(options)
    if options.output:
        with local_folder(place(options.output)) as folder:
            _write(encoder, folder, asked, options)
    if options.push:
        with signals.temporary_folder() as name:
            hub.write(encoder, options.push, pathlib.Path(name))
            print(
                f"{hub.push(encoder, options.push, pathlib.Path(name), private=options.private)}: load it by this"
            )


def _write(
    encoder: TrainedEncoder, folder: pathlib.Path, asked: list[str], options: argparse.Namespace
) -> None:
    fixed = {} if options.batch_size is None else {"batch_size": options.batch_size}
    written = []

    def shown(path: pathlib.Path) -> str:
        return str(place(options.output) / path.relative_to(folder))

    for name in asked or exports.FORMATS:
        try:
            path = exports.FORMATS[name](encoder, folder, **fixed)
            written.append(path)
            until = (
                f", which jax promises to read until {exports.guaranteed_until()}"
                if name == "stablehlo"
                else ""
            )
            print(f"{shown(path)}{until}")
        except UserError as error:
            if asked:
                raise
            print(f"not written: {error}")
    print(shown(exports.write_preprocessing(encoder, folder, written=written, **fixed)))


if __name__ == "__main__":
    sys.exit(main())
