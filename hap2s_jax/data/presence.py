"""Whether the images of a source can be read: a look at the disk, and the fewest that there must be."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from hap2s_jax.data.source import Source, origin_of
from hap2s_jax.errors import UserError, reason


def fault(source: Source, index: int) -> str:
    """Why image number `index` cannot be read, as far as its file tells unopened; "" where it may well be an image."""
    source, index = origin_of(source, index)
    size = getattr(source, "size", None)
    try:
        return "the file is empty" if size is not None and size(index) == 0 else ""
    except OSError as error:
        return reason(error)


def check(
    source: Source,
    query: np.ndarray | None = None,
    gallery: np.ndarray | None = None,
    *,
    can_read: Callable[[int], bool] | None = None,
) -> None:
    """Checks that enough images can be read to train on, or to judge by.

    Args:
      source: the images.
      query, gallery: rows of which some must be readable; None for no such choice.
      can_read: whether image number i can be read; by default as its file tells unopened.

    Raises:
      UserError: none can be read, none of the queries or of the gallery, or only images of one class.
    """
    readable = can_read or (lambda index: not fault(source, index))
    labels = np.asarray(source.labels)
    for what, rows in (("images", np.arange(len(labels))), ("queries", query), ("gallery images", gallery)):
        rows = [] if rows is None else rows[labels[rows] >= 0].tolist()
        if rows and not any(map(readable, rows)):
            raise UserError(
                f"none of the {len(rows):,} {source.name} {what} can be read, such as {source.describe(rows[0])}; "
                "check the paths, or mend the files"
            )
    classes = np.unique(labels[labels >= 0]).tolist()
    left = (c for c in classes if any(map(readable, np.flatnonzero(labels == c).tolist())))
    if len(classes) > 1 and len(found := [*itertools.islice(left, 2)]) < 2:
        lost = int(np.flatnonzero((labels >= 0) & (labels != found[0]))[0])
        raise UserError(
            f"of the {len(classes):,} classes of {source.name} only {source.class_names[found[0]]} has images that "
            f"can be read, and it takes two; none of the others can be, such as {source.describe(lost)}; check the "
            "paths, or mend the files"
        )
