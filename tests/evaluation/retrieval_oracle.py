"""Brute force in float64: sort the whole gallery for every query, walk down it, count."""

from __future__ import annotations

import math

import numpy as np


def distances(a, b, kind="euclidean"):
    """All distances by differences, [q, m]; cosine as the chord between directions, which ranks alike."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if kind == "cosine":
        a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    return np.stack([np.sqrt(((x - b) ** 2).sum(axis=1)) for x in a])


def walk(embeddings, labels, cameras=None, query=None, gallery=None, kind="euclidean", ties="pessimistic"):
    """One dictionary of figures per query, by walking down its sorted gallery."""
    n = len(labels)
    query = range(n) if query is None else query
    gallery = range(n) if gallery is None else gallery
    x = np.asarray(embeddings, np.float64)
    out = []
    for q in query:
        if labels[q] == -1:
            continue
        row = distances(x[q : q + 1], x, kind)[0]
        entries = []
        for g in gallery:
            right = labels[g] == labels[q]
            if g == q or labels[g] == -1 or (right and cameras is not None and cameras[g] == cameras[q]):
                continue
            entries.append((row[g], right if ties == "pessimistic" else not right, right))
        entries.sort(key=lambda entry: entry[:2])
        out.append(_descend([right for _, _, right in entries]) | {"query": q})
    return out


def _descend(hits):
    total = sum(hits)
    if total == 0:
        nothing = math.nan
        zero = dict.fromkeys(("matches", "first_rank", "last_rank"), 0)
        names = ("average_precision", "average_precision_trapezoid", "map_at_r", "r_precision")
        return zero | dict.fromkeys(names, nothing)
    found, area, old_recall, old_precision = 0, 0.0, 0.0, 1.0
    precisions, ranks = [], []
    for place, right in enumerate(hits, start=1):
        found += right
        recall, precision = found / total, found / place
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
        if right:
            precisions.append(precision)
            ranks.append(place)
    return {
        "matches": total,
        "first_rank": ranks[0],
        "last_rank": ranks[-1],
        "average_precision": sum(precisions) / total,
        "average_precision_trapezoid": area,
        "map_at_r": sum(p for p, r in zip(precisions, ranks, strict=True) if r <= total) / total,
        "r_precision": sum(hits[:total]) / total,
    }
