"""CUHK03 (Li et al. 2014), from its .mat files or as images: the new protocol (Zhong et al. 2017) and the old one."""

from __future__ import annotations

import json
import re
import struct
import threading
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from hap2s_jax import extras
from hap2s_jax.data.readers.files import FileSource, Parts, list_images, number_identities
from hap2s_jax.data.readers.person import TRAIN, read_market
from hap2s_jax.data.regular_files import MAX_LIST, read_bytes
from hap2s_jax.data.source import Source
from hap2s_jax.errors import UserError

DETECTIONS = ("labeled", "detected")
PROTOCOLS = ("new", "old")
MAT = "cuhk-03.mat"
IMAGES = "images_"  # and the detection
_Key = tuple[int, int, int]  # camera pair, person, cell, each from 0
_NAME = re.compile(r"\d{1,9}_\d{1,9}_\d_\d{1,9}\.")
_CELLS_PER_CAMERA = 5


def read_cuhk03(root: Path, *, detection: str = "detected", protocol: str = "new", split: int = 0) -> Parts:
    """The official `cuhk-03.mat`, the images that torchreid and others take out of it, or the ready folders.

    Args:
      root: the folder with the .mat files; with `images_detected/` or `images_labeled/` (1_001_1_01.png: pair of
        cameras, person, camera, cell), where the new protocol's .mat or torchreid's splits_*.json say the parts; or of
        the new protocol with `labeled/` and `detected/`.
      detection: "detected" boxes or hand-"labeled" ones.
      protocol: "new" has 767 training and 700 test identities; "old" one of the 20 official test sets of 100
        identities, where the first camera of a pair queries the second; judged with one image of each in the
        gallery too.
      split: which of the 20 test sets, from 0 ("old" only).

    Raises:
      UserError: an argument is not one of these, or a file is missing or malformed.
    """
    if detection not in DETECTIONS:
        raise UserError(
            f"data.options.detection: must be one of {', '.join(DETECTIONS)}, found {detection!r}"
        )
    if protocol not in PROTOCOLS:
        raise UserError(f"data.options.protocol: must be one of {', '.join(PROTOCOLS)}, found {protocol!r}")
    ready = root / detection
    if protocol == "new" and (ready / TRAIN).is_dir():
        return read_market(ready, f"cuhk03 {detection}")
    folder = root / f"{IMAGES}{detection}"
    if folder.is_dir():
        cells = _Images(folder, detection)
    elif (root / MAT).is_file():
        cells = _Cells(root / MAT, detection)
    else:
        raise UserError(
            f"cuhk03: the {protocol} protocol needs {root / MAT} from the official archive, or its images in {folder}/"
        )
    if protocol == "new":
        return _new_protocol(root, detection, cells)
    return _old_protocol(cells, split)


class MatSource:
    """Images inside `cuhk-03.mat`, handed out as BMP: uncompressed pixels with a header.

    Args:
      name: what messages call the source.
      cells: the open file.
      keys: `[N]` (camera pair, person, cell), each from 0.
      identities: `[N]` integers.
      cameras: `[N]` integers from 0.
    """

    boxes = None

    def __init__(self, name: str, cells: _Cells, keys: list[_Key], identities: list[Any], cameras: list[int]):
        self.name = name
        self.labels, self.class_names = number_identities(identities)
        self.cameras = np.asarray(cameras, np.int32)
        self._cells = cells
        self._keys = keys

    def __len__(self) -> int:
        """The number of images."""
        return len(self._keys)

    def read(self, index: int) -> bytes:
        """Image number `index` as a BMP."""
        return encode_bmp(self._cells.image(*self._keys[index]))

    def describe(self, index: int) -> str:
        """The file and the cell in it."""
        pair, person, cell = self._keys[index]
        return f"{self._cells.path}:{self._cells.detection}{{{pair + 1}}}{{{person + 1},{cell + 1}}}"


class _Cells:
    """Random access to the images of `cuhk-03.mat` (MATLAB 7.3, that is HDF5)."""

    def __init__(self, path: Path, detection: str):
        h5py = extras.load("reading cuhk-03.mat", "h5py", "train")
        self.path = path
        self.detection = detection
        self._lock = threading.Lock()
        try:
            self._file: Any = h5py.File(path, "r")
            # MATLAB writes columns first: an n x 10 cell array is [10, n] here.
            self._pairs = [np.asarray(self._file[ref]) for ref in np.ravel(self._file[detection])]
        except (OSError, KeyError) as error:
            raise UserError(f"cuhk03: cannot read {path}: {error}") from None

    def occupied(self) -> list[_Key]:
        """(pair, person, cell) of every cell with an image in it, in order."""
        found = []
        for pair, cells in enumerate(self._pairs):
            for person in range(cells.shape[1]):
                found += [
                    (pair, person, cell)
                    for cell in range(cells.shape[0])
                    if len(self._file[cells[cell, person]].shape) == 3
                ]
        return found

    def source(self, part: str, keys: list[_Key], identities: list[Any], cameras: list[int]) -> Source:
        return MatSource(f"cuhk03 {self.detection} {part}", self, keys, identities, cameras)

    def image(self, pair: int, person: int, cell: int) -> np.ndarray:
        """uint8 `[height, width, 3]`."""
        with self._lock:
            return np.asarray(self._file[self._pairs[pair][cell, person]]).transpose(2, 1, 0)

    def test_set(self, number: int) -> set[tuple[int, int]]:
        """(pair, person) of the people in an official test set."""
        sets = np.ravel(self._file["testsets"])
        if not 0 <= number < len(sets):
            raise UserError(f"data.options.split: must lie in 0..{len(sets) - 1}, found {number}")
        return {(int(p) - 1, int(i) - 1) for p, i in np.asarray(self._file[sets[number]]).T}


class _Images:
    """The images of a folder such as `images_detected/`."""

    def __init__(self, folder: Path, detection: str):
        self.path = folder
        self.detection = detection
        self._names = {_key(name): name for name in list_images(folder) if _NAME.match(name)}

    def occupied(self) -> list[_Key]:
        """(pair, person, cell) of every image, in order."""
        return sorted(self._names)

    def test_set(self, number: int) -> set[tuple[int, int]]:
        """(pair, person) of the people in an official test set."""
        name = f"splits_classic_{self.detection}.json"
        path = _beside(self.path.parent, name)
        if path is None:
            raise UserError(
                f"cuhk03: the old protocol needs {self.path.parent / name}, as torchreid leaves it, or {MAT}"
            )
        return {key[:2] for key in _split(path, number)["query"]}

    def source(self, part: str, keys: list[_Key], identities: list[Any], cameras: list[int]) -> Source:
        if lacking := [key for key in keys if key not in self._names]:
            pair, person, cell = lacking[0]
            raise UserError(
                f"{self.path}: lacks {len(lacking):,} of the {len(keys):,} {part} images, such as "
                f"{pair + 1}_{person + 1:03d}_{cell // _CELLS_PER_CAMERA + 1}_{cell + 1:02d}.png"
            )
        names = [f"{self.path.name}/{self._names[key]}" for key in keys]
        return FileSource(f"cuhk03 {self.detection} {part}", self.path.parent, names, identities, cameras)


def _new_protocol(root: Path, detection: str, cells: _Cells | _Images) -> Parts:
    name = f"cuhk03_new_protocol_config_{detection}.mat"
    path, listed = _beside(root, name), _beside(root, f"splits_new_{detection}.json")
    if path is not None:
        from scipy.io import loadmat

        config = loadmat(path, squeeze_me=True)
        keys = [_key(str(name)) for name in config["filelist"]]
        labels, cameras = config["labels"].astype(int), config["camId"].astype(int)
        rows = {p: np.atleast_1d(config[f"{p}_idx"]).astype(int) - 1 for p in ("train", "query", "gallery")}
        queries, tested = len(rows["query"]), np.concatenate([rows["query"], rows["gallery"]])
        train, test = (
            cells.source(part, [keys[r] for r in of], [int(labels[r]) for r in of], list(cameras[of] - 1))
            for part, of in (("train", rows["train"]), ("test", tested))
        )
    elif listed is not None:
        split = _split(listed, 0)
        queries = len(split["query"])
        train = _by_name(cells, "train", split["train"])
        test = _by_name(cells, "test", split["query"] + split["gallery"])
    else:
        raise UserError(
            f"cuhk03: the new protocol needs {root / name}, from https://github.com/zhunzhong07/person-re-ranking "
            "(evaluation/data/CUHK03)"
        )
    return Parts(train, test, np.arange(queries), np.arange(queries, len(test)))


def _by_name(cells: _Cells | _Images, part: str, keys: list[_Key]) -> Source:
    # People are numbered inside their pair of cameras only.
    identities = [f"{pair + 1}_{person + 1:04d}" for pair, person, _ in keys]
    cameras = [2 * pair + cell // _CELLS_PER_CAMERA for pair, _, cell in keys]
    return cells.source(part, keys, identities, cameras)


def _key(name: str) -> _Key:
    """Names such as 1_001_1_01.png: pair, person, camera of the pair, cell; all from 1."""
    fields = name.split(".")[0].split("_")
    return int(fields[0]) - 1, int(fields[1]) - 1, int(fields[3]) - 1


def _beside(root: Path, name: str) -> Path | None:
    """A file in the folder, or beside it, where some toolboxes expect it."""
    return next((path for path in (root / name, root.parent / name) if path.is_file()), None)


def _split(path: Path, number: int) -> dict[str, list[_Key]]:
    """One of the splits in torchreid's file, with paths of the machine that wrote it."""
    try:
        splits = [
            {
                part: [_key(PureWindowsPath(row[0]).name) for row in split[part]]
                for part in ("train", "query", "gallery")
            }
            for split in json.loads(read_bytes(path, MAX_LIST))
        ]
        splits[0]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{path}: is not a list of splits as torchreid writes it") from None
    if not 0 <= number < len(splits):
        raise UserError(f"data.options.split: must lie in 0..{len(splits) - 1}, found {number}")
    return splits[number]


def _old_protocol(cells: _Cells | _Images, split: int) -> Parts:
    held_out = cells.test_set(split)
    train, test = (
        _by_name(cells, part, [k for k in cells.occupied() if (k[:2] in held_out) == (part == "test")])
        for part in ("train", "test")
    )
    assert test.cameras is not None
    second = test.cameras % 2
    return Parts(
        train,
        test,
        np.flatnonzero(second == 0),
        np.flatnonzero(second == 1),
        protocols=("query_gallery", "single_gallery_shot"),
        is_usual=False,
    )


def encode_bmp(image: np.ndarray) -> bytes:
    """An image, uint8 `[height, width, 3]` RGB, as an uncompressed 24-bit BMP."""
    height, width, _ = image.shape
    stride = -(-3 * width // 4) * 4
    # Rows run from the bottom to the top, pixels are blue, green, red.
    rows = np.zeros((height, stride), np.uint8)
    rows[:, : 3 * width] = image[::-1, :, ::-1].reshape(height, 3 * width)
    header = struct.pack("<2sIHHI", b"BM", 54 + rows.size, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, rows.size, 2835, 2835, 0, 0)
    return header + rows.tobytes()
