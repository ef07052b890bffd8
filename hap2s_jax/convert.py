"""Converts torch weights to safetensors.

    python -m hap2s_jax.convert resnet50.pth resnet50.safetensors

Afterwards, --config.pretrained.source=resnet50.safetensors loads them without torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hap2s_jax import cli, extras
from hap2s_jax.errors import UserError
from hap2s_jax.models import torch_names, vit_names, weight_files
from hap2s_jax.reporting import outputs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("convert", __doc__)
    parser.add_argument("source", help="a .pth, .pt or .bin file with a state dict (needs torch)")
    parser.add_argument("target", type=outputs.Output, help="the .safetensors file to write")
    parser.add_switch("overwrite", default=False, help=outputs.OVERWRITE)
    return cli.start(_run, parser, arguments)


def _run(options: argparse.Namespace) -> None:
    if not options.target.endswith(".safetensors"):
        raise UserError(f"target is {options.target}; it should end in .safetensors")
    outputs.check(options)
    extras.load("convert", "safetensors", "use")
    tensors = weight_files.read_tensors(options.source)
    naming = torch_names.recognise(tensors)
    if naming is None:
        raise UserError(
            f"{options.source} holds no ResNet or vision transformer of torchvision, timm or transformers."
        )
    if naming == "vit":
        tensors = vit_names.prepare(tensors)
    weight_files.check(tensors, options.source)
    weight_files.write_safetensors(tensors, options.target)
    print(f"{options.target}: {len(tensors)} tensors")


if __name__ == "__main__":
    sys.exit(main())
