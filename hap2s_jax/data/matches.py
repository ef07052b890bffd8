"""Finds the queries that can be answered at all, from labels and cameras, before anything is embedded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

ONE_CAMERA = "all test images are of one camera, so they are judged without the camera rule"
_JUNK = -1
_WITHOUT_CAMERAS = ("class", "in_shop", "closed_set")
_COUNTED = ("open_set", "verification")  # these report themselves what they leave out


def one_camera(cameras: ArrayLike | None, labels: ArrayLike) -> bool:
    """Whether one known camera took all images (junk aside): then the camera rule would leave none."""
    if cameras is None:
        return False
    seen = np.asarray(cameras)[np.asarray(labels) != _JUNK]
    return bool(seen.size > 0 and seen.min() >= 0 and seen.min() == seen.max())


def without_match(
    labels: np.ndarray, cameras: np.ndarray | None, query: np.ndarray, gallery: np.ndarray
) -> tuple[int, int]:
    """Queries that nothing in the gallery can answer.

    Args:
      labels: `[n]`.
      cameras: `[n]`, below 0 where they are not known, or None for no camera rule.
      query, gallery: rows; a query is no answer to itself.

    Returns:
      (those with no other image of their class in the gallery, those with images of their own camera only).
    """
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    own = -1 - np.arange(len(labels))  # an unknown camera differs from all others
    of = own if cameras is None else np.where(cameras < 0, own, cameras)
    for row in gallery.tolist():
        seen[int(labels[row])][int(of[row])] += 1
    inside = {*gallery.tolist()}
    no_class = same_camera = 0
    for row in query.tolist():
        found = seen[int(labels[row])]
        if found.total() == (row in inside):
            no_class += 1
        elif found.total() == found[int(of[row])]:
            same_camera += 1
    return no_class, same_camera


def describe(
    labels: ArrayLike,
    cameras: ArrayLike | None = None,
    *,
    query: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    protocols: Sequence[str] = ("class",),
) -> tuple[str, ...]:
    """A line for each protocol under which queries have no valid match: how many, why, and what to change.

    Further lines say when the camera rule does not hold, and how many cameras are not known; none where all is well.

    Args:
      labels: `[n]`; -1 is junk.
      cameras: `[n]`, or None for no camera rule.
      query, gallery: rows (indices or masks), None for all; "class" always takes every row.
      protocols: see `hap2s_jax.evaluation.protocols`.
    """
    label, lines = np.asarray(labels), []
    camera = None if cameras is None else np.asarray(cameras)
    everything = np.arange(len(label))
    if camera is not None and {*protocols} - {*_WITHOUT_CAMERAS} and (unknown := int(np.sum(camera < 0))):
        lines.append(
            f"{unknown:,} of {len(camera):,} test images name no camera; each counts as of a camera of its own"
        )
    for name in (name for name in protocols if name not in _COUNTED):
        rule = None if name in _WITHOUT_CAMERAS else camera
        if one_camera(rule, label):
            lines.append(f"{name}: {ONE_CAMERA}")
            rule = None
        chosen = (query, gallery) if name != "class" else (None, None)
        asked, kept = (everything if rows is None else everything[np.asarray(rows)] for rows in chosen)
        asked, kept = asked[label[asked] != _JUNK], kept[label[kept] != _JUNK]
        if line := _missing(name, len(asked), *without_match(label, rule, asked, kept)):
            lines.append(line)
    return tuple(lines)


def _missing(name: str, asked: int, no_class: int, same_camera: int) -> str:
    """The line about one protocol's queries without a match, "" if there are none."""
    reasons = []
    if no_class and name == "class":
        reasons.append(f"{no_class:,} are alone in their class (a test class needs two images or more)")
    elif no_class:
        reasons.append(
            f"{no_class:,} have no other image of their class in the gallery (put one of each query's class there)"
        )
    if same_camera:
        reasons.append(
            f"{same_camera:,} have such images of their own camera only, which do not count (name the camera that "
            "took each image, or leave cameras out; a CSV's by data.options.columns=camera=)"
        )
    missing = no_class + same_camera
    if missing == asked:
        fate = ", so nothing can be measured"
    elif name in ("class", "in_shop"):
        fate = " and count as misses, in recall@k alone"
    else:
        fate = " and are left out"
    told = f"{name}: {missing:,} of {asked:,} queries have no valid match{fate}: {', '.join(reasons)}"
    return told if missing else ""
