"""Retrieval by raw pixels on the test classes of the emoji set: the figure that every encoder has to beat.

    python -m hap2s_jax.data.emoji.baseline     # computes it again, in about a minute

NumPy alone, and apart from `hap2s_jax.evaluation`, so that each checks the other. Needs Pillow for decoding.
"""

from __future__ import annotations

import io
from collections import defaultdict

import numpy as np

from hap2s_jax.data.source import Source

QUERIES_AT_ONCE = 256


def decode(source: Source) -> np.ndarray:
    """All images of a source whose images share one size; uint8 `[n, h, w, 3]`."""
    from PIL import Image

    return np.stack(
        [np.asarray(Image.open(io.BytesIO(source.read(i))).convert("RGB")) for i in range(len(source))]
    )


def ranked_relevance(distances: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Which ranks hold a match; nearest first, and of equally near images the wrong ones first.

    Args:
      distances: `[n]` to the keys of one query.
      relevant: bool `[n]`, whether a key is of the query's class.

    Returns:
      bool `[n]`.
    """
    return relevant[np.lexsort((relevant, distances))]


def figures_of_query(
    distances: np.ndarray, same_class: np.ndarray, same_camera: np.ndarray
) -> dict[str, float]:
    """The figures of one query against all other images (itself already taken out).

    Args:
      distances: `[n]`.
      same_class, same_camera: bool `[n]`.

    Returns:
      mAP and rank-k without the same-class same-camera images; recall@k, map@r and r_precision with them.
      Without any match, recall@k is 0 and the others are NaN.
    """
    figures = {}
    hits = ranked_relevance(distances, same_class)
    for k in (1, 2, 4, 8):
        figures[f"recall@{k}"] = float(hits[:k].any())
    count = int(same_class.sum())
    first = hits[:count]
    precision = np.cumsum(first) / np.arange(1, count + 1)
    figures["map@r"] = float((precision * first).sum() / count) if count else np.nan
    figures["r_precision"] = float(first.mean()) if count else np.nan
    across = ~(same_class & same_camera)
    hits = ranked_relevance(distances[across], same_class[across])
    ranks = np.flatnonzero(hits) + 1
    for k in (1, 5, 10):
        figures[f"rank-{k}"] = float(ranks[0] <= k) if ranks.size else np.nan
    figures["mAP"] = float((np.arange(1, ranks.size + 1) / ranks).mean()) if ranks.size else np.nan
    return figures


def pixel_baseline(pixels: np.ndarray, labels: np.ndarray, cameras: np.ndarray) -> dict[str, float]:
    """Retrieval by the Euclidean distance of raw pixels, every image querying all others.

    Distances are taken between grey levels 0 to 255 in float64, where their squares are whole numbers and
    hence exact; dividing by 255 would change no rank.

    Args:
      pixels: uint8 `[n, h, w, 3]`.
      labels, cameras: int `[n]`.

    Returns:
      Means over the queries that have a match, by the names of `hap2s_jax.evaluation.protocols`.
    """
    rows = pixels.reshape(len(pixels), -1).astype(np.float64)
    norms = (rows**2).sum(1)
    values: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(rows), QUERIES_AT_ONCE):
        block = slice(start, start + QUERIES_AT_ONCE)
        distances = norms[block, None] + norms - 2 * rows[block] @ rows.T
        for i in range(start, min(start + QUERIES_AT_ONCE, len(rows))):
            others = np.arange(len(rows)) != i
            found = figures_of_query(
                distances[i - start, others], labels[others] == labels[i], cameras[others] == cameras[i]
            )
            for name, value in found.items():
                values[name].append(value)
    return {name: float(np.nanmean(value)) for name, value in values.items()}


def main() -> None:
    """Print the figures of the test classes."""
    from hap2s_jax.data.emoji import load

    test = load().test
    assert test.cameras is not None
    for name, value in sorted(pixel_baseline(decode(test), test.labels, test.cameras).items()):
        print(f"{name:12} {value:.4f}")


if __name__ == "__main__":
    main()
