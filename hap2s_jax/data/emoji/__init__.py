"""The bundled data set: emoji, one class per emoji, drawn by six icon sets of five teams (the cameras).

`load()` reads what the package ships: `emoji.zip`, the drawings as 64x64 PNGs, and `emoji.csv`, a row for each
with class, split, family, camera, set and icon name. How they came to be is in
`experiments/emoji_build/build.py`; the licences of the artwork are in the project's NOTICE.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hap2s_jax.data.source import Dataset, Subset

FOLDER = Path(__file__).parent
ARCHIVE = "emoji.zip"
INDEX = "emoji.csv"
INDEX_FIELDS = ("file", "class", "split", "family", "camera", "set", "icon")
SPLITS = ("train", "validation", "test")
# Sorted: the numbers of the cameras are positions in this list.
CAMERAS = ("emojione", "google", "microsoft", "mozilla", "twitter")
# Metrics of raw pixels on the test classes, to three digits; `baseline.py` computes them again.
PIXEL_BASELINE = {
    "mAP": 0.155,
    "rank-1": 0.251,
    "rank-5": 0.412,
    "rank-10": 0.493,
    "recall@1": 0.267,
    "recall@2": 0.336,
    "recall@4": 0.408,
    "recall@8": 0.490,
    "map@r": 0.119,
    "r_precision": 0.151,
}


class EmojiSource:
    """All drawings in memory (10 MB), as the index lists them; see `hap2s_jax.data.source.Source`.

    Attributes:
      rows: the rows of the index, one dictionary per image.
      families: for every image, its family: classes that look alike, which never part in a split.
      splits: for every image, "train", "validation" or "test".
    """

    def __init__(self, folder: Path = FOLDER):
        self.name = "emoji"
        with open(folder / INDEX, encoding="utf-8", newline="") as file:
            self.rows = list(csv.DictReader(file))
        # Read whole: a handle of a zip file cannot be pickled, and threads would need a lock for it.
        with zipfile.ZipFile(folder / ARCHIVE) as archive:
            self._images = [archive.read(row["file"]) for row in self.rows]
        self.class_names = tuple(sorted({row["class"] for row in self.rows}))
        label_of = {name: label for label, name in enumerate(self.class_names)}
        self.labels = np.array([label_of[row["class"]] for row in self.rows], np.int32)
        self.cameras = np.array([CAMERAS.index(row["camera"]) for row in self.rows], np.int32)
        self.families = tuple(row["family"] for row in self.rows)
        self.splits = tuple(row["split"] for row in self.rows)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.rows)

    def read(self, index: int) -> bytes:
        """The PNG of image number `index`."""
        return self._images[index]

    def describe(self, index: int) -> str:
        """The archive and the member that hold image number `index`."""
        return f"{ARCHIVE}:{self.rows[index]['file']}"

    def indices(self, splits: Sequence[str]) -> np.ndarray:
        """Positions of the images of some splits; int64 `[n]`."""
        return np.array([i for i, split in enumerate(self.splits) if split in splits], np.int64)


def load(*, validation: bool = True) -> Dataset:
    """The emoji set, split by families of look-alikes; NumPy and the standard library only.

    Args:
      validation: whether a tenth of the training classes is set apart as `Dataset.validation`. Without, they
        join the training classes, and `Dataset.validation` is None.

    Returns:
      The data set. Every test image queries all others, both as classes ("class") and across cameras
      ("query_gallery"); the baselines hold what raw pixels reach.
    """
    everything = EmojiSource()

    def part(name: str, splits: Sequence[str]) -> Subset:
        return Subset(everything, everything.indices(splits), name=f"emoji {name}")

    return Dataset(
        name="emoji",
        train=part("train", ("train",) if validation else ("train", "validation")),
        validation=part("validation", ("validation",)) if validation else None,
        test=part("test", ("test",)),
        protocols=("class", "query_gallery"),
        baselines={"raw pixels": PIXEL_BASELINE},
    )
