"""Makes the witness of a format: a tiny run, its galleries and its exports, in one .zip below 1 MB.

    python tests/witness/make.py tests/witness/format0.zip

``tests/test_formats.py`` opens every witness with today's code. `format0.zip` was made by the last version whose files
carried no number (commit c7e214f; Python 3.11.7, jax 0.10.2, flax 0.12.8, optax 0.2.8, orbax-checkpoint 0.12.8,
numpy 2.4.6, x86-64), with the command above and these functions; `format1.zip` and those after it likewise, each by
the last version of its format. When `hap2s_jax.formats.FORMAT` rises, make one more with the version before, and keep
the old ones.

What is in it: ``run/`` (a working directory without pictures and event files, stopped nowhere, with the checkpoints of
steps 3 and 6; without that of step 6 and without results.json it is a run that was cut off after step 3),
``gallery.npz`` and ``gallery.parquet`` (the test images), ``exported/`` (safetensors, StableHLO). The expected figures
are its own: run/results.json, run/metrics.jsonl and the galleries' embeddings. Its pictures are drawn anew, by whole
numbers alone, so that every machine has the same.
"""

from __future__ import annotations

import os
import pathlib
import struct
import sys
import tempfile
import zipfile
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
# part -> classes; four images each, two of either camera.
PARTS = {"train": range(8), "validation": range(8, 12), "test": range(12, 18)}
SIDE = 32
LEFT_OUT = (".png", ".hap2s_jax")


def draw(folder: pathlib.Path) -> pathlib.Path:
    """Draws the data set, stripes of a colour and a slope per class; returns its CSV file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,label,split,camera"]
    y, x = np.mgrid[:SIDE, :SIDE]
    for part, classes in PARTS.items():
        for label in classes:
            for n in range(4):
                slope = (1 + label % 5) * x + (1 + label // 5) * y + 3 * n
                texture = (x * x * (7 + n) + y * y * 11 + x * y * (5 + label)) % 61
                channels = [(slope * 8 + texture + label * step) % 256 for step in (37, 101, 173)]
                name = f"{part}-{label:02d}-{n}.bmp"
                (folder / name).write_bytes(_bmp(np.stack(channels, axis=-1).astype(np.uint8)))
                lines.append(f"{name},class {label:02d},{part},{n % 2}")
    table = folder / "images.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def _bmp(image: np.ndarray) -> bytes:
    height, width, _ = image.shape  # a width that is a multiple of 4
    header = struct.pack("<2sIHHI", b"BM", 54 + image.size, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, image.size, 2835, 2835, 0, 0)
    return header + image[::-1, :, ::-1].tobytes()


def config(table: pathlib.Path) -> Any:
    """The run's config: two losses with parameters, a moving average, views."""
    from configs import folder
    from hap2s_jax.recipes import common

    made = folder.get_config("scratch,tiny,loss=hap2s_p")
    made.name = "witness"
    made.steps = 6
    made.num_devices = 1
    made.data.data_dir = str(table)
    made.data.image_size = (SIDE, SIDE)
    made.data.num_workers = 1
    made.batch.classes, made.batch.images_per_class = 4, 2
    made.encoder.update(width=2, stem="small32", pooling="gem", embedding_dim=16, bnneck=True)
    common.set_auxiliary(made, "softmax", weight=0.5)
    made.ema_decay = 0.5
    made.evaluate.update(every_steps=3, flip=True, batch_size=32, weights="last")
    made.checkpoint.every_steps = 3
    made.log.update(every_steps=1, tensorboard=False)
    return made


def _make(output: pathlib.Path, folder: pathlib.Path) -> None:
    from hap2s_jax import embed, export, main

    table = draw(folder / "images")
    main.run(config(table), folder / "run")
    listed = folder / "images" / "test.csv"
    rows = table.read_text().splitlines()
    listed.write_text(
        "\n".join(["path,label,split,camera", *(row for row in rows if ",test," in row)]) + "\n"
    )
    for name in ("gallery.npz", "gallery.parquet"):
        arguments = [f"--workdir={folder / 'run'}", f"--images={listed}", f"--output={folder / name}"]
        assert embed.main(arguments) == 0
    arguments = [f"--workdir={folder / 'run'}", f"--output={folder / 'exported'}"]
    assert export.main([*arguments, "--formats=safetensors,stablehlo"]) == 0
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and inside.parts[0] != "images" and path.suffix not in LEFT_OUT:
                archive.write(path, inside.as_posix())


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Exports name the files whose code they are of; without their folders.
    os.environ.setdefault("JAX_HLO_SOURCE_FILE_CANONICALIZATION_REGEX", ".*/")
    sys.path[:0] = [str(ROOT)]
    with tempfile.TemporaryDirectory() as folder:
        _make(pathlib.Path(sys.argv[1]), pathlib.Path(folder))
