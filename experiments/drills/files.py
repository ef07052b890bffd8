"""Files from strangers: galleries, weights, configs and images, changed at random and read as the commands do."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from drill import Trial

Random = np.random.Generator
# Without it there are no files of its kind.
HAS_TORCH = importlib.util.find_spec("torch") is not None

_SIZES = (0, 1, -1, 3, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**64, 10**40)
_VALUES: tuple[Any, ...] = (
    *_SIZES,
    *(None, True, 1.5, -0.5, 1e9, 1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "euclid",
        "evil:Net",
        "os:system",
        "/dev/zero",
        "../..",
        "gs://evil/x",
        "\x1b[2J\n",
        "\0",
        "x" * 10_000,
    ),
    *([], {}, [[]], [64, 64], [3000, 3000], ["64", "64"], {"name": "x"}),
)
_DTYPES = (
    "<f4",
    "<f8",
    ">f4",
    "<f2",
    "|O",
    "<U5",
    "|S3",
    "<i8",
    "|b1",
    "<c8",
    "<M8[s]",
    "|V4",
    "<U0",
    "x",
    "<f4,<i4",
)


def changed_bytes(data: bytes, random: Random) -> bytes:
    """Some bytes flipped, or a stretch cut out, doubled, zeroed or replaced by a number that is too large."""
    if not data:
        return data
    spoilt = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        begin = int(random.integers(0, max(len(spoilt), 1)))
        stop = begin + int(random.integers(1, 64))
        match int(random.integers(0, 7)):
            case 0:
                for place in random.integers(0, max(len(spoilt), 1), 8):
                    spoilt[place : place + 1] = bytes([int(random.integers(0, 256))])
            case 1:
                del spoilt[begin:]
            case 2:
                del spoilt[begin:stop]
            case 3:
                spoilt[begin:begin] = spoilt[begin:stop]
            case 4:
                spoilt[begin:stop] = bytes(stop - begin)
            case 5:
                spoilt[begin : begin + 8] = (2 ** int(random.integers(8, 64)) - 1).to_bytes(8, "little")
            case _:
                spoilt += random.bytes(int(random.integers(1, 200)))
    return bytes(spoilt)


def _honest_arrays(random: Random, rows: int = 12, dim: int = 8) -> dict[str, Any]:
    return {
        "embeddings": random.normal(size=(rows, dim)).astype(np.float32),
        "paths": np.array([f"{n}.png" for n in range(rows)]),
        "labels": np.arange(rows) % 3,
        "class_names": np.array(["a", "b", "c"]),
        "model": np.array(json.dumps({"fingerprint": "x", "distance": "cosine", "step": 1, "images": "/x"})),
    }


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array))
    return file.getvalue()


def _lying_npy(random: Random) -> bytes:
    """An array whose header promises what is not there."""
    sides = [_SIZES[random.integers(0, len(_SIZES))] for _ in range(int(random.integers(0, 4)))]
    text = f"{{'descr': {str(random.choice(_DTYPES))!r}, 'fortran_order': False, 'shape': {tuple(sides)}, }}"
    header = text.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + random.bytes(64)


def _gallery_npz(random: Random) -> bytes:
    import zipfile

    arrays = {name: _npy(array) for name, array in _honest_arrays(random).items()}
    how = int(random.integers(0, 5))
    name = str(random.choice(list(arrays)))
    if how == 0:
        arrays[name] = _lying_npy(random)
    elif how == 1:
        arrays[name] = changed_bytes(arrays[name], random)
    elif how == 2:
        arrays[name] = arrays[str(random.choice(list(arrays)))]
    elif how == 3:
        del arrays[name]
    file = io.BytesIO()
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(file, "w", methods[random.integers(0, 4) if how else 0]) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue() if how < 4 else changed_bytes(file.getvalue(), random)


def _parquet(random: Random) -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet

    honest = _honest_arrays(random)
    columns: dict[str, Any] = {
        "path": honest["paths"].tolist(),
        "label": ["a"] * 12,
        "embedding": arrow.FixedSizeListArray.from_arrays(arrow.array(honest["embeddings"].ravel()), 8),
    }
    how = int(random.integers(0, 3))
    if how == 0:
        columns[str(random.choice(list(columns)))] = random.integers(0, 9, 12)
    model = honest["model"].item() if random.integers(0, 9) else "["
    file = io.BytesIO()
    parquet.write_table(arrow.table(columns).replace_schema_metadata({"hap2s_jax": model}), file)
    return file.getvalue() if how == 1 else changed_bytes(file.getvalue(), random)


def _safetensors(random: Random) -> bytes:
    header: dict[str, Any] = {"conv1.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    if random.integers(0, 2):
        key = str(random.choice(["dtype", "shape", "data_offsets"]))
        header["conv1.weight"][key] = _VALUES[random.integers(0, len(_VALUES))]
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + random.normal(size=4).astype(np.float32).tobytes()
    return data if random.integers(0, 2) else changed_bytes(data, random)


def _torch(random: Random) -> bytes:
    import torch

    file = io.BytesIO()
    tensors = {
        "conv1.weight": torch.ones(8),
        "layer1.0.bn.running_var": torch.nn.Parameter(torch.ones(2, 2).half()),
    }
    torch.save(tensors, file, _use_new_zipfile_serialization=bool(random.integers(0, 2)))
    return changed_bytes(file.getvalue(), random)


def _config(random: Random) -> bytes:
    from hap2s_jax.recipes import common

    config = json.loads(json.dumps(common.get_config().to_dict(), default=list))
    config["encoder"] |= {"name": "resnet10", "width": 8, "stem": "small64", "embedding_dim": 16}
    config["data"]["image_size"] = [32, 32]
    for _ in range(int(random.integers(1, 4))):
        section = config
        while True:
            key = str(random.choice(list(section)))
            if not isinstance(section[key], dict) or not section[key] or not random.integers(0, 8):
                break
            section = section[key]
        if random.integers(0, 5):
            section[key] = _VALUES[random.integers(0, len(_VALUES))]
        else:
            del section[key]
        if not config:
            break
    data = json.dumps(config).encode()
    return data if random.integers(0, 4) else changed_bytes(data, random)


def _image(random: Random) -> bytes:
    import cv2

    pixels = random.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    suffix = str(random.choice([".jpg", ".png", ".bmp", ".webp", ".tiff", ".gif"]))
    return changed_bytes(cv2.imencode(suffix, pixels)[1].tobytes(), random)


def _open_config(path: pathlib.Path) -> None:
    from hap2s_jax.models import own
    from hap2s_jax.run import config as configs
    from hap2s_jax.run import foreign
    from hap2s_jax.serving import loading

    with configs.written_by(path.parent):
        config: Any = foreign.load(path.parent)
        if ":" in config.encoder.name:
            own.check_consent(config.encoder.name)
        loading.described(config, path.parent)


def _open_image(path: pathlib.Path) -> None:
    from hap2s_jax.data import pixels, regular_files
    from hap2s_jax.errors import UserError

    try:
        pixels.for_evaluation(regular_files.read_bytes(path), (64, 64))
    except pixels.UnreadableImageError as error:
        raise UserError(str(error)) from error


def _readers() -> dict[str, tuple[Callable[[Random], bytes], list[Callable[[pathlib.Path], object]]]]:
    from hap2s_jax.evaluation.archive import from_npz
    from hap2s_jax.models import weight_files
    from hap2s_jax.serving import vectors

    def weights(path: pathlib.Path) -> None:
        weight_files.check(weight_files.read_tensors(path), str(path))

    readers = {
        "gallery.npz": (_gallery_npz, [vectors.read, lambda path: from_npz(str(path))]),
        "gallery.parquet": (_parquet, [vectors.read]),
        "weights.safetensors": (_safetensors, [weights]),
        "weights.pth": (_torch, [weights]),
        "config.json": (_config, [_open_config]),
        "image": (_image, [_open_image]),
    }
    if not HAS_TORCH:
        del readers["weights.pth"]
    return readers


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Without end: a file of each kind, changed at random, read by all who read such files."""
    readers = _readers()
    os.chdir(folder)  # what would be executed or written by a name alone would show there
    for kind, (make, opens) in readers.items():  # for what libraries take of memory once
        for number in range(20):
            path = folder / kind
            path.write_bytes(make(np.random.default_rng((seed, 0, number))))
            yield Trial(kind, lambda o=opens[0], p=path: o(p), folder, is_warm_up=True)
    number = 0
    while True:
        number += 1
        for kind, (make, opens) in readers.items():
            path = folder / kind
            path.write_bytes(make(np.random.default_rng((seed, 1, number))))
            for open_file in opens:
                yield Trial(kind, lambda o=open_file, p=path: o(p), folder)
