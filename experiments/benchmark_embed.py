"""Images per second of `hap2s_jax.embed` beside the bare forward pass of the same encoder on the same machine.

    python experiments/benchmark_embed.py
    python experiments/benchmark_embed.py --encoder=resnet50 --size=224 --images=256 --batch=32

JPEG photos of coarse and fine texture are written to a temporary folder and embedded by the command's own function:
listing, reading, decoding, resizing, embedding, writing the .npz file. The bare pass embeds as many images that lie on
the devices already. Both are compiled before the clock starts and take turns; the ratio is the median over rounds.
Under two minutes on two cores with the defaults; goal: a ratio of at least 0.85.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hap2s_jax import embed, models
from hap2s_jax.distributed.devices import AXIS, DataParallel, use_cores
from hap2s_jax.reporting import environment
from hap2s_jax.run.evaluator import embedding_function
from hap2s_jax.serving.trained import TrainedEncoder


def main() -> None:
    """Prints a Markdown table, and with --json writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=128, help="side of the encoder's input in pixels")
    parser.add_argument("--photo", type=int, default=320, help="longer side of the photos in pixels")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    use_cores(options.batch)
    encoder = _encoder(options.encoder, options.size, options.batch)
    with tempfile.TemporaryDirectory() as folder:
        photos = pathlib.Path(folder) / "photos"
        _write_photos(photos, options.images, options.photo)
        figures = _measure(encoder, photos, options)
    print(
        "| encoder | input | photos | bare forward, img/s | embed, img/s | ratio |\n|---|---|---|---|---|---|"
    )
    print(
        f"| {options.encoder} | {options.size} | {options.photo} | {figures['forward']:.1f} | {figures['embed']:.1f} | "
        f"{figures['ratio']:.3f} |"
    )
    print(environment.summary())
    if options.json:
        record = {"figures": figures, "options": vars(options), "environment": environment.describe()}
        pathlib.Path(options.json).write_text(json.dumps(record, indent=2) + "\n")


def _encoder(name: str, size: int, batch: int) -> TrainedEncoder:
    """One with drawn weights: how fast it is does not depend on them."""
    import ml_collections

    config: Any = ml_collections.ConfigDict(
        {
            "data": {"image_size": (size, size)},
            "evaluate": {
                "batch_size": batch,
                "enlarge": 1.0,
                "keep_aspect": False,
                "distance": "euclidean",
                "feature": "retrieval",
                "flip": False,
                "five_crops": False,
                "crop": 0.875,
            },
        }
    )
    module = models.create(name)
    variables = models.initialize(module, jax.random.key(0), np.zeros((1, size, size, 3), np.uint8))
    return TrainedEncoder(config, 0, False, module, jax.tree.map(np.asarray, variables), pathlib.Path("none"))


def _write_photos(folder: pathlib.Path, count: int, side: int) -> None:
    import cv2

    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        # Coarse and fine texture together, so that a file has about a photo's number of bytes.
        coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
        image = cv2.resize(coarse, (side, side * 3 // 4), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image += rng.integers(-12, 13, image.shape, np.int16)
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), np.clip(image, 0, 255).astype(np.uint8))


def _measure(encoder: TrainedEncoder, photos: pathlib.Path, options: argparse.Namespace) -> dict[str, float]:
    count, batch = options.images, options.batch
    parallel = DataParallel(tuple(jax.local_devices()))
    bare = parallel.compile_map(embedding_function(encoder.module, encoder.config.evaluate))
    placed = parallel.replicate(encoder.variables)
    rows = NamedSharding(Mesh(np.asarray(parallel.local_devices), (AXIS,)), PartitionSpec(AXIS))
    pixels = jax.device_put(np.zeros((batch, *encoder.image_size, 3), np.uint8), rows)

    def forward() -> None:
        jax.block_until_ready([bare(placed, pixels) for _ in range(-(-count // batch))])

    def whole() -> None:
        embed.embed_images(
            encoder, photos, photos.parent / "out.npz", overwrite=True, show_progress=False, batch_size=batch
        )

    rates: dict[str, list[float]] = {"forward": [], "embed": []}
    for turn in range(options.rounds + 1):
        for name, work in (("forward", forward), ("embed", whole)):
            start = time.perf_counter()
            work()
            if turn:  # the first compiles
                rates[name].append(count / (time.perf_counter() - start))
    ratio = statistics.median(b / a for a, b in zip(rates["forward"], rates["embed"], strict=True))
    return {**{name: statistics.median(found) for name, found in rates.items()}, "ratio": ratio}


if __name__ == "__main__":
    main()
