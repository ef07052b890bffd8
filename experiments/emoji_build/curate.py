"""Steps 3 to 5 of the emoji build: which drawings and classes stay, and on which side of the split.

Every rule works on plain arrays and names, so that each can be tested without the icon packages. Differences
are mean absolute differences in grey levels (0 to 255) over all pixels and channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.emoji_build.names import CAMERA_OF_SET
from hap2s_jax.data.emoji import SPLITS

CONFUSABLE_BELOW = 2.0
SAME_DRAWING_BELOW = 10.0
LEAST_IMAGES = 4
LEAST_CAMERAS = 3


@dataclass(frozen=True)
class Drawing:
    """One icon of one set, with the class it belongs to.

    Attributes:
      set_name, icon: where it comes from.
      code: the emoji's code points, of which the class may hold several (man, woman, person).
      class_name: the class.
      pixels: uint8 `[64, 64, 3]`.
    """

    set_name: str
    icon: str
    code: str
    class_name: str
    pixels: np.ndarray

    @property
    def camera(self) -> str:
        """The team that drew it."""
        return CAMERA_OF_SET[self.set_name]


def differences(pixels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean absolute differences in grey levels; uint8 `[h, w, 3]` against `[m, h, w, 3]` -> float64 `[m]`."""
    return np.abs(others.astype(np.int16) - pixels.astype(np.int16)).mean((1, 2, 3))


def near_pairs(pixels: np.ndarray, below: float) -> list[tuple[int, int, float]]:
    """All pairs i < j of images `[n, h, w, 3]` that differ by less than `below`, and their differences.

    The means over blocks of 8x8 pixels never differ by more than the pixels do, so they rule out most pairs
    at little cost, and none wrongly.
    """
    count, height, width, channels = pixels.shape
    blocks = pixels.reshape(count, height // 8, 8, width // 8, 8, channels).mean((2, 4), dtype=np.float64)
    pairs = []
    for i in range(count):
        bounds = np.abs(blocks[i + 1 :] - blocks[i]).mean((1, 2, 3))
        candidates = i + 1 + np.flatnonzero(bounds < below)
        for j, difference in zip(candidates, differences(pixels[i], pixels[candidates]), strict=True):
            if difference < below:
                pairs.append((i, int(j), float(difference)))
    return pairs


def apply_exceptions(drawings: Iterable[Drawing], rows: Sequence[Mapping[str, str]]) -> list[Drawing]:
    """Apply the reviewed exceptions: drawings and classes to drop, classes to merge.

    Raises:
      ValueError: an exception matches nothing any more, or its kind is unknown.
    """
    drop_drawing, drop_class, merge = set(), set(), {}
    for row in rows:
        if row["kind"] == "drop_drawing":
            drop_drawing.add((row["set"], row["name"]))
        elif row["kind"] == "drop_class":
            drop_class.add(row["name"])
        elif row["kind"] == "merge_class":
            merge[row["name"]] = row["target"]
        else:
            raise ValueError(f"exceptions.csv: unknown kind {row['kind']!r}")
    unused = drop_drawing | drop_class | set(merge)
    kept = []
    for drawing in drawings:
        unused -= {(drawing.set_name, drawing.icon), drawing.class_name}
        if (drawing.set_name, drawing.icon) in drop_drawing or drawing.class_name in drop_class:
            continue
        kept.append(replace(drawing, class_name=merge.get(drawing.class_name, drawing.class_name)))
    if unused:
        raise ValueError(f"exceptions.csv: these match no drawing and no class: {sorted(map(str, unused))}")
    return kept


def confusable_pairs(
    drawings: Sequence[Drawing], below: float = CONFUSABLE_BELOW
) -> list[tuple[int, int, float]]:
    """Pairs of drawings of one set, in different classes, that differ by less than `below` grey levels."""
    by_set: dict[str, list[int]] = defaultdict(list)
    for i, drawing in enumerate(drawings):
        by_set[drawing.set_name].append(i)
    pairs = []
    for members in by_set.values():
        for row, column, difference in near_pairs(np.stack([drawings[i].pixels for i in members]), below):
            i, j = members[row], members[column]
            if drawings[i].class_name != drawings[j].class_name:
                pairs.append((i, j, difference))
    return pairs


def drop_confusable(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Drop both drawings of every confusable pair: nobody could say which class either belongs to."""
    confused = {i for pair in confusable_pairs(drawings) for i in pair[:2]}
    return [drawing for i, drawing in enumerate(drawings) if i not in confused]


def first_choices(drawings: Iterable[Drawing], class_code: str) -> list[Drawing]:
    """One drawing of each set for a class, in the order of the sets.

    The set's own drawing of the class (`class_code`) comes before its variants by gender. With all variants,
    half the matches would ask for a man's drawing to find a woman's.
    """
    choices: dict[str, Drawing] = {}
    for drawing in sorted(drawings, key=lambda d: (d.code != class_code, d.code, d.icon)):
        choices.setdefault(drawing.set_name, drawing)
    return [choices[name] for name in CAMERA_OF_SET if name in choices]


def distinct_drawings(drawings: Iterable[Drawing], below: float = SAME_DRAWING_BELOW) -> list[Drawing]:
    """Keep the drawings that differ by `below` grey levels or more from all that were kept before them."""
    kept: list[Drawing] = []
    for drawing in drawings:
        if all(differences(drawing.pixels, other.pixels[None])[0] >= below for other in kept):
            kept.append(drawing)
    return kept


def large_enough(drawings: Sequence[Drawing]) -> bool:
    """Whether a class has enough drawings, from enough cameras, to be a class of this set."""
    return len(drawings) >= LEAST_IMAGES and len({d.camera for d in drawings}) >= LEAST_CAMERAS


def curate(drawings: Iterable[Drawing], code_of_class: Mapping[str, str]) -> list[Drawing]:
    """Apply the rules above to all classes; the result is sorted by class and set."""
    by_class: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        by_class[drawing.class_name].append(drawing)
    chosen = [d for name, members in by_class.items() for d in first_choices(members, code_of_class[name])]
    by_class.clear()
    for drawing in drop_confusable(chosen):
        by_class[drawing.class_name].append(drawing)
    kept = []
    for name in sorted(by_class):
        members = distinct_drawings(by_class[name])
        if large_enough(members):
            kept += members
    return kept


def assign_splits(
    classes: Iterable[str], families: Sequence[Mapping[str, str]], splits: Sequence[Mapping[str, str]]
) -> dict[str, tuple[str, str]]:
    """The family and the side of every class, from the reviewed tables.

    Args:
      classes: the classes that stay.
      families: rows of class and family.
      splits: rows of family and split.

    Raises:
      ValueError: a class has no family, a family no side, or a side no such name.
    """
    family_of = {row["class"]: row["family"] for row in families}
    split_of = {row["family"]: row["split"] for row in splits}
    classes = sorted(set(classes))
    lost = [name for name in classes if name not in family_of]
    if lost:
        raise ValueError(f"families.csv: no family for {lost}")
    lost = sorted({family_of[name] for name in classes} - set(split_of))
    if lost:
        raise ValueError(f"splits.csv: no side for {lost}")
    unknown = sorted(set(split_of.values()) - set(SPLITS))
    if unknown:
        raise ValueError(f"splits.csv: unknown sides {unknown}")
    return {name: (family_of[name], split_of[family_of[name]]) for name in classes}
