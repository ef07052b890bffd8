"""Which queries can be answered at all, told from labels and cameras before anything is embedded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from hap2s_jax.data.source import Source


def without_match(
    labels: np.ndarray, cameras: np.ndarray | None, query: np.ndarray, gallery: np.ndarray
) -> tuple[int, int]:
    """Queries that nothing in the gallery can answer.

    Args:
      labels: `[n]`.
      cameras: `[n]`, or None for no camera rule.
      query, gallery: rows; a query is no answer to itself.

    Returns:
      (those with no other image of their class in the gallery, those with images of their own camera only).
    """
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    of = np.zeros(len(labels), int) if cameras is None else cameras
    for row in gallery.tolist():
        seen[int(labels[row])][int(of[row])] += 1
    inside = {*gallery.tolist()}
    no_class = same_camera = 0
    for row in query.tolist():
        found = seen[int(labels[row])]
        others = found.total() - (row in inside)
        if not others:
            no_class += 1
        elif cameras is not None and found.total() == found[int(of[row])]:
            same_camera += 1
    return no_class, same_camera


def describe(
    source: Source, query: np.ndarray | None, gallery: np.ndarray | None, *, paired: bool
) -> Iterator[str]:
    """Lines on what of a test set cannot be judged, and what to change; none where all is well.

    Args:
      source: the test images; its cameras are None where there is no camera rule.
      query, gallery: rows, or None for all of them.
      paired: whether queries are asked against a gallery, with the camera rule where there are cameras.
    """
    labels, cameras = np.asarray(source.labels), source.cameras
    counts = np.bincount(labels[labels >= 0])
    if single := int(np.sum(counts == 1)):
        what = "no query has a match, and no figure says anything" if single == np.sum(counts > 0) else ""
        yield (
            f"{single:,} of {np.sum(counts > 0):,} test classes have a single image, which nothing can match: "
            f"{what or 'recall@k counts it as missed'}; a test class needs two images or more"
        )
    if cameras is not None and (unknown := int(np.sum(cameras < 0))):
        yield f"{unknown:,} of {len(source):,} test images name no camera; each counts as of a camera of its own"
    if not paired:
        return
    everything = np.arange(len(source))
    query, gallery = (everything if rows is None else rows for rows in (query, gallery))
    no_class, same_camera = without_match(labels, cameras, query, gallery)
    missing = no_class + same_camera
    if not missing:
        return
    reasons, remedies = [], []
    if no_class:
        reasons.append(f"{no_class:,} have no other image of their class in the gallery")
        remedies.append("put one of each query's class there")
    if same_camera:
        reasons.append(f"{same_camera:,} have such images of their own camera only, which do not count")
        remedies.append(
            "name the camera that took each image, or leave cameras out: data.options.columns=camera="
        )
    effect = (
        "mAP and rank-k cannot be measured"
        if missing == len(query)
        else "they are left out of mAP and rank-k"
    )
    yield (
        f"{missing:,} of {len(query):,} queries have no valid match: {', '.join(reasons)}; {effect}: "
        f"{'; '.join(remedies)}"
    )
