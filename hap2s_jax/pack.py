"""Packs a data set into a few large files, for buckets and for disks that are slow with small files.

    python -m hap2s_jax.pack --name=folder --data_dir=photos --output=packed/photos
    python -m hap2s_jax.pack --name=folder --data_dir=photos.csv --output=gs://BUCKET/photos --longest_side=512
    python -m hap2s_jax.pack --name=market1501 --data_dir=DIR --output=gs://BUCKET/market1501

Then give any config --config.data.data_dir=OUTPUT: batches are the same bit for bit. TensorFlow Datasets can read the
folder too: tfds.builder_from_directory(OUTPUT). After an interruption, run the same command again to continue.

Missing and empty files are refused. Damaged images are packed as they are, and data.on_unreadable decides about them in
training, as for loose files; check_data finds them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hap2s_jax import cli, extras
from hap2s_jax.data import registry
from hap2s_jax.errors import UserError

BOXES = ("kept", "applied")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("pack", __doc__)
    parser.add_argument(
        "--name", default="folder", help="a data set that check_data lists; by default your own images"
    )
    parser.add_data_set()
    parser.add_argument(
        "--output", metavar="PLACE", help="a new folder, here or in a bucket (gs://BUCKET/FOLDER)"
    )
    parser.add_argument(
        "--longest_side",
        type=int,
        metavar="PIXELS",
        help="permanently resize larger images to this; by default images keep their bytes",
    )
    parser.add_argument(
        "--boxes", choices=BOXES, default="kept", help="applied: permanently crop images to their boxes"
    )
    return cli.start(_run, parser, arguments)


def _run(options: argparse.Namespace) -> None:
    for name in ("data_dir", "output"):
        if not getattr(options, name):
            raise UserError(f"--{name} is missing; --help says what it should be")
    if options.longest_side is not None and options.longest_side < 1:
        raise UserError(f"--longest_side is {options.longest_side}; it should be at least 1 pixel")
    extras.require("pack", "train")
    from hap2s_jax.data import datasets, resized
    from hap2s_jax.data.packed import PackedSource
    from hap2s_jax.data.tf import packing

    entry = registry.entry(options.name)
    if entry.read is None:
        raise UserError(f"--name: {entry.name} comes with the package and needs no packing")
    chosen = registry.parse_options(options.option, entry.options)
    parts = datasets.find_parts(entry, options.data_dir, chosen)
    if isinstance(parts.train, PackedSource):
        raise UserError(f"--data_dir: {options.data_dir} is already packed; copy it as it is")
    change = resized.change(options.longest_side, options.boxes == "applied")
    print(packing.pack(parts, entry.name, {**entry.options, **chosen}, options.output, change))
    print(f"  --config.data.name={entry.name} --config.data.data_dir={options.output}")


if __name__ == "__main__":
    sys.exit(main())
