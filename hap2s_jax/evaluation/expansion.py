"""Query expansion: an image's embedding becomes the weighted mean of its nearest neighbours'."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from hap2s_jax.evaluation.inputs import check_embeddings, check_members, space
from hap2s_jax.evaluation.neighbors import all_neighbors


def expand(
    embeddings: ArrayLike,
    *,
    query: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    k: int = 10,
    alpha: float = 3.0,
) -> np.ndarray:
    """Expands queries and gallery by their `k` nearest (the image itself among them), by cosine similarity.

    `x_i <- mean over the k nearest j of max(cos_ij, 0)^alpha x_j`, on unit vectors x (alpha 0: Chum et al.,
    2007; else Radenovic et al., 2018). Lengths carry no meaning afterwards: evaluate the outcome with the
    cosine distance.

    Args:
      embeddings: `[n, d]` floats, all finite.
      query, gallery: rows (indices or masks) that are expanded and from which neighbours come, None for all.
      k: neighbours, at most the number of images.
      alpha: power of the similarity.

    Returns:
      `[n, d]`, unit vectors for the rows that are in neither list.
    """
    array = check_embeddings(embeddings)
    count = len(array)
    members = check_members(query, gallery, count)
    if not 1 <= k <= len(members):
        raise ValueError(
            f"k must lie between 1 and the {len(members)} images of query and gallery, but is {k}."
        )
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, but is {alpha}.")
    out = space(array, "cosine")(array, np.arange(count))
    directions = out[members]
    neighbors, near, _ = all_neighbors(directions, k, cosine=True)
    weights = np.maximum(1 - near, 0) ** alpha
    mixed = np.zeros_like(directions)
    for slot in range(k):
        mixed += weights[:, slot, None] * directions[neighbors[:, slot]]
    out[members] = mixed / k
    return out
