"""Converts torch weights to safetensors once, so that torch is not needed afterwards.

python -m hap2s_jax.convert resnet50.pth resnet50.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hap2s_jax.errors import UserError
from hap2s_jax.models import torch_names, weight_files


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0 done, 1 a mistake said in one line (2 a wrong flag)."""
    parser = argparse.ArgumentParser(
        prog="python -m hap2s_jax.convert", description="torch weights to safetensors"
    )
    parser.add_argument("source", help="a .pth, .pt or .bin file with a ResNet's state dict (needs torch)")
    parser.add_argument("target", help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        if not options.target.endswith(".safetensors"):
            raise UserError(f"target {options.target} should end in .safetensors.")
        tensors = weight_files.read_tensors(options.source)
        if torch_names.recognise(tensors) is None:
            raise UserError(f"{options.source} holds no ResNet of torchvision, timm or transformers.")
        weight_files.check(tensors, options.source)
        weight_files.write_safetensors(tensors, options.target)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"{options.target}: {len(tensors)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
