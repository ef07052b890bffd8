"""Batches that have broken somebody's metric loss."""

from __future__ import annotations

import numpy as np

# A 3 x 4 rectangle: every corner has its positive at distance 3 and its negatives at 4 and 5.
CORNERS, CORNER_LABELS = (
    np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [3.0, 4.0]], np.float32),
    np.array([0, 0, 1, 1]),
)


def clustered(seed, counts, dim=16, radius=1.0, scale=1.0, centre=0.0):
    """Classes of given sizes and radius around random centres of unit scale, all times `scale`."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = random.normal(size=(len(counts), dim)) / np.sqrt(dim)
    x = centres[labels] + radius * random.normal(size=(len(labels), dim)) / np.sqrt(dim)
    order = random.permutation(len(labels))
    return (scale * (x[order] + centre)).astype(np.float32), labels[order].astype(np.int32)


def radius_of(x):
    x = np.asarray(x, np.float64)
    return float(np.sqrt(((x - x.mean(0)) ** 2).sum(1)).max())


def odd_batches():
    """(name, embeddings, labels): unequal and single-member classes, duplicates, one class only, and so
    on."""
    uneven, labels = clustered(0, [5, 1, 3, 2, 1, 7])
    duplicates = uneven.copy()
    duplicates[3] = duplicates[0]
    duplicates[7:10] = duplicates[6]
    missing = uneven.copy()
    missing_labels = labels.copy()
    missing_labels[[2, 5, 11]] = -1
    missing[[2, 5, 11]] = np.nan
    return [
        ("uneven", uneven, labels),
        ("duplicates", duplicates, labels),
        ("one class", uneven, np.zeros_like(labels)),
        ("all distinct", uneven, np.arange(len(labels), dtype=np.int32)),
        ("all equal", np.ones_like(uneven), labels),
        ("ignored NaN rows", missing, missing_labels),
        ("all ignored", np.full_like(uneven, np.nan), np.full_like(labels, -1)),
        ("zero", np.zeros_like(uneven), labels),
        ("one sample", uneven[:1], labels[:1]),
    ]
