"""Batches for training and for evaluation, in NumPy and OpenCV, made ahead of time.

The unit of work is a batch: a Python function from the step number to the whole batch runs several steps at once and
in order, through tf.data where TensorFlow is installed and on a pool of threads elsewhere; the batches are the same
bit for bit. Everything expensive in it (decoding, resizing, warping) leaves Python's lock.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import cv2
import numpy as np

from hap2s_jax.data.augment import DRAWS, Augmentation
from hap2s_jax.data.draws import uniforms
from hap2s_jax.data.fetching import Ahead
from hap2s_jax.data.images import CACHE_BYTES, DecodedImages
from hap2s_jax.data.pixels import DEFAULT, Decoding, centre_part, resize
from hap2s_jax.data.reading import Reader
from hap2s_jax.data.source import Source
from hap2s_jax.data.tf import AHEAD, has_tensorflow
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.environment import usable_cores

_UNREADABLE = ("error", "skip")
_FOREVER = np.iinfo(np.int64).max
# Memory for all batches that exist at a time: those being made, `AHEAD` that wait, and one in use.
_AHEAD_BYTES = 4 * 2**30
_Batch = TypeVar("_Batch")
# (fill, count): fill(0), ..., fill(count - 1), in any order
_Each = Callable[[Callable[[int], None], int], None]


class Plan(Protocol):
    """Chooses the images of each batch; see `hap2s_jax.data.pk.PKPlan`."""

    def batch(self, step: int) -> np.ndarray:
        """Indices of the images of the global batch number `step`, int `[B]`."""
        ...


@dataclass(frozen=True)
class Reading:
    """How images are read, the same for training and for evaluation.

    Attributes:
      image_size: (height, width) of the encoder's input.
      host_index: which contiguous share of a training batch, or of the images to evaluate, to make.
      host_count: number of shares.
      num_workers: threads; by default the number of usable cores. Each makes a batch, large batches are shared.
      on_unreadable: "error" names the image and ends; "skip" names it once. Training then puts the next readable image
        of its class in its place (where the class has none, of another class, with that one's label), the same at every
        run; evaluation masks it.
      cache_bytes: decoded images are kept, also for the next pass, when all of them fit into this many bytes.
      decoding: orientation, background of transparent images, and the most pixels an image may have.

    Raises:
      UserError: one of these is out of range.
    """

    image_size: tuple[int, int]
    host_index: int = 0
    host_count: int = 1
    num_workers: int | None = None
    on_unreadable: str = "error"
    cache_bytes: int = CACHE_BYTES
    decoding: Decoding = DEFAULT

    def __post_init__(self) -> None:
        if self.on_unreadable not in _UNREADABLE:
            raise UserError(
                f"data.on_unreadable: must be one of {', '.join(_UNREADABLE)}, found {self.on_unreadable!r}"
            )
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            found = tuple(self.image_size)
            raise UserError(f"data.image_size: must be (height, width) in pixels, found {found}")
        if self.num_workers is not None and self.num_workers < 1:
            raise UserError(
                f"data.num_workers: must be at least 1, or None for all cores, found {self.num_workers}"
            )
        if self.cache_bytes < 0:
            raise UserError(f"data.cache_bytes: must be 0 (keep nothing) or more, found {self.cache_bytes}")

    def reader(self, source: Source) -> Reader:
        """A reader of the images of `source` with these settings."""
        return Reader(DecodedImages(source, self.cache_bytes, self.decoding), self.on_unreadable)


def train_batches(
    source: Source,
    plan: Plan,
    reading: Reading,
    *,
    augmentation: Augmentation,
    seed: int,
    start_step: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Training batches of the steps `start_step`, `start_step` + 1, ... without end.

    Batch `t` is a pure function of (seed, t): bit for bit the same after a resume, with any number of
    workers, and, put together, on any number of hosts.

    Args:
      source: the training images.
      plan: which of them make up batch `t`.
      reading: how they are read, and which share of them here.
      augmentation: the random changes.
      seed: of the random changes.
      start_step: the first batch; a large number costs nothing.

    Returns:
      An iterator of {"image": uint8 `[b, h, w, 3]`, "label": int32 `[b]`}, b = B / host_count.

    Raises:
      UserError: the batch cannot be divided among the hosts, or (while iterating) an image cannot be read.
    """
    batch_size, hosts = len(plan.batch(start_step)), reading.host_count
    if batch_size % hosts:
        raise UserError(f"batch: {batch_size} images cannot be divided evenly among {hosts} hosts")
    share = batch_size // hosts
    slots = np.arange(reading.host_index * share, (reading.host_index + 1) * share)
    labels = np.asarray(source.labels)
    reader = reading.reader(source)
    size = (int(reading.image_size[0]), int(reading.image_size[1]))

    ahead = Ahead(source, lambda step: plan.batch(step)[slots], start_step, _FOREVER)

    def load(step: int, each: _Each) -> tuple[np.ndarray, np.ndarray]:
        ahead.reach(step)
        indices = plan.batch(step)[slots]
        draws = uniforms(seed, step, slots, DRAWS)
        out = np.empty((share, *size, 3), np.uint8)
        taken = np.empty(share, np.int64)

        def fill(slot: int) -> None:
            u = draws[slot]
            part, taken[slot] = reader.get_or_substitute(
                int(indices[slot]), lambda h, w: augmentation.part(h, w, size, u), size
            )
            augmentation.finish(part, out[slot], u)

        each(fill, share)
        return out, labels[taken].astype(np.int32)

    batches = _run(load, start_step, _FOREVER, reading.num_workers, share * math.prod(size) * 3)
    return ({"image": image, "label": label} for image, label in batches)


def eval_batches(
    source: Source,
    reading: Reading,
    *,
    batch_size: int,
    enlarge: float = 1.0,
    keep_aspect: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Every image of a source exactly once, in order, unchanged but for its size.

    Args:
      source: the images.
      reading: how they are read, and which share of them here. Every host gets the same number of batches, some
        perhaps all padding.
      batch_size: images per batch of this host.
      enlarge: 256 / 224 with `keep_aspect` is "resize to 256, centre crop 224"; see `pixels.centre_part`.
      keep_aspect: whether margins are cut instead of squeezing the image.

    Returns:
      An iterator of {"image": uint8 `[b, h, w, 3]`, "index": int32 `[b]`, "mask": bool `[b]`}. The mask is
      False for the padding of the last batches (index 0) and for images that cannot be read (black).

    Raises:
      UserError: an argument is out of range, or (while iterating) an image cannot be read.
    """
    if batch_size < 1:
        raise UserError(f"evaluate.batch_size: must be at least 1, found {batch_size}")
    share = -(-len(source) // reading.host_count)
    first, last = reading.host_index * share, min((reading.host_index + 1) * share, len(source))
    reader = reading.reader(source)
    size = (int(reading.image_size[0]), int(reading.image_size[1]))

    def choose(height: int, width: int) -> tuple[int, int, int, int]:
        return centre_part(height, width, size, enlarge=enlarge, keep_aspect=keep_aspect)

    def rows(step: int) -> np.ndarray:
        start = first + step * batch_size
        return np.arange(start, min(start + batch_size, last), dtype=np.int32)

    ahead = Ahead(source, rows, 0, -(-share // batch_size))

    def load(step: int, each: _Each) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ahead.reach(step)
        indices = rows(step)
        out = np.zeros((batch_size, *size, 3), np.uint8)
        mask = np.zeros(batch_size, bool)

        def fill(slot: int) -> None:
            part = reader.get(int(indices[slot]), choose, size)
            if part is not None:
                out[slot], mask[slot] = resize(part, size), True

        each(fill, len(indices))
        return out, np.pad(indices, (0, batch_size - len(indices))), mask

    batches = _run(load, 0, -(-share // batch_size), reading.num_workers, batch_size * math.prod(size) * 3)
    return ({"image": image, "index": index, "mask": mask} for image, index, mask in batches)


def _run(
    load: Callable[[int, _Each], tuple[np.ndarray, ...]],
    start: int,
    stop: int,
    num_workers: int | None,
    batch_bytes: int,
) -> Generator[tuple[np.ndarray, ...], None, None]:
    """load(start), load(start + 1), ... in order, made ahead of time on `num_workers` threads.

    A thread makes a batch of its own, unless batches are so large that `_AHEAD_BYTES` do not hold as many: then fewer
    are made at a time, each by several threads.
    """
    threads = num_workers or usable_cores()
    at_once = min(threads, max(1, _AHEAD_BYTES // batch_bytes - AHEAD - 1))
    threads_each = threads // at_once
    made_ahead = on_threads
    if has_tensorflow():
        from hap2s_jax.data.tf.pipeline import made_ahead
    # Our own threads use all cores; OpenCV's would compete with them and with the encoder.
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(at_once * threads_each, "images") if threads_each > 1 else None

    def each(fill: Callable[[int], None], count: int) -> None:
        for _ in map(fill, range(count)) if pool is None else pool.map(fill, range(count)):
            pass

    try:
        yield from made_ahead(lambda step: load(step, each), start, stop, at_once)
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def on_threads(
    make: Callable[[int], _Batch], start: int, stop: int, at_once: int
) -> Generator[_Batch, None, None]:
    """make(start), ..., make(stop - 1) in order, as `data.tf.pipeline.made_ahead` yields them."""
    pool, steps = ThreadPoolExecutor(at_once, "batches"), iter(range(start, stop))
    try:
        waiting = deque(pool.submit(make, step) for step in itertools.islice(steps, at_once + AHEAD))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(make, step) for step in itertools.islice(steps, 1))
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
