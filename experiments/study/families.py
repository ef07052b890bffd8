"""Which test classes look alike: intervals resample families of them, since such classes are no independent draws."""

from __future__ import annotations

import csv
import pathlib
import unicodedata

from hap2s_jax.data import emoji

# Beside the images that experiments/glyphs.py draws.
GLYPHS = pathlib.Path("data/glyphs/glyphs.csv")


def families(dataset: str) -> list[str] | None:
    """The family of each test class, in the order of the labels; None where nothing is known of the data set.

    Emoji have those of emoji.csv, by which the classes were split; characters stand with those over the same base
    letter (e, é, è).

    Args:
      dataset: config's name, with its argument.
    """
    if dataset.startswith("emoji"):
        with open(emoji.FOLDER / emoji.INDEX, encoding="utf-8", newline="") as file:
            of_class = {row["class"]: row["family"] for row in csv.DictReader(file) if row["split"] == "test"}
        return [of_class[name] for name in sorted(of_class)]
    if dataset.startswith("glyphs") and GLYPHS.is_file():
        with open(GLYPHS, encoding="utf-8", newline="") as file:
            names = sorted({row["label"] for row in csv.DictReader(file) if row["split"] != "train"})
        return [base_letter(chr(int(name.split()[0], 16))) for name in names]
    return None


def base_letter(character: str) -> str:
    """What a character is over, in lower case."""
    return unicodedata.normalize("NFKD", character)[0].casefold()
