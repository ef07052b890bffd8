"""Embedding a data set: every image exactly once, on all devices and hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hap2s_jax.distributed.devices import DataParallel

PyTree = Any  # an encoder's variables, and what it embeds: images, or features of them


def embed_dataset(
    embed: Callable[[PyTree, PyTree], Any],  # returns an array of NumPy or JAX
    variables: PyTree,
    batches: Iterable[Mapping[str, np.ndarray]],
    count: int,
    parallel: DataParallel,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeds all images of a source.

    Args:
      embed: compiled by `DataParallel.compile_map`: ``embed(variables, images [b, h, w, 3]) -> [b, d]``.
      variables: of the encoder.
      batches: this process's share, each with ``image [b, h, w, 3]``, ``index [b]`` (the image's number in the
        source) and ``mask [b]`` (False for padding and for images that could not be read).
      count: number of images in the source.
      parallel: the devices.

    Returns:
      ``(embeddings [count, d] float32, present [count] bool)`` on every process, in the source's order.
      Images that could not be read are not present and have zero embeddings.

    Raises:
      RuntimeError: if a batch brings an image a second time.
    """
    rows, indices = [], []
    queued = None
    for batch in batches:
        # One batch stays queued: the next one is read while the device works.
        embedded = embed(variables, batch["image"])
        if queued is not None:
            rows.append(np.asarray(queued[0])[queued[1]])
        queued = (embedded, np.asarray(batch["mask"]))
        indices.append(np.asarray(batch["index"])[batch["mask"]])
    if queued is not None:
        rows.append(np.asarray(queued[0])[queued[1]])

    own_rows = np.concatenate(rows).astype(np.float32) if rows else np.zeros((0, 0), np.float32)
    own_indices = np.concatenate(indices).astype(np.int64) if indices else np.zeros((0,), np.int64)
    all_rows, all_indices = _from_all_processes(own_rows, own_indices, parallel)
    if len(np.unique(all_indices)) != len(all_indices):
        raise RuntimeError("the batches brought an image twice; each must come exactly once")
    embeddings = np.zeros((count, all_rows.shape[1]), np.float32)
    present = np.zeros(count, bool)
    embeddings[all_indices] = all_rows
    present[all_indices] = True
    return embeddings, present


def _from_all_processes(
    rows: np.ndarray, indices: np.ndarray, parallel: DataParallel
) -> tuple[np.ndarray, np.ndarray]:
    """Joins the rows of processes, which need not hold equally many."""
    shapes = parallel.gather(np.array([rows.shape], np.int64))
    longest, width = shapes.max(axis=0)
    padded_rows = np.zeros((longest, width), np.float32)
    padded_indices = np.full(longest, -1, np.int64)
    if len(rows):
        padded_rows[: len(rows)], padded_indices[: len(rows)] = rows, indices
    all_rows, all_indices = parallel.gather(padded_rows), parallel.gather(padded_indices)
    kept = all_indices >= 0
    return all_rows[kept], all_indices[kept]
