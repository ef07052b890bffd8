"""PK batches: P classes with K images each, every batch a pure function of (seed, step)."""

from __future__ import annotations

import numpy as np

from hap2s_jax.data.draws import hash_words, permutation
from hap2s_jax.errors import UserError

# Words that keep the different uses of the seed apart.
_CLASS_RING, _CLASS_ORDER, _IMAGE_RING, _IMAGE_ORDER = range(4)


class PKPlan:
    """Chooses the images of each batch.

    An epoch is a fresh shuffle of the C classes in floor(C / P) batches, so that no class stands twice in a
    batch. The C mod P classes left over sit out that epoch; they are the next ones of a fixed ring, so every
    class sits out equally often. The images of a class are dealt out in the same manner, K at a time: over a
    training run, the uses of two images of one class differ by at most two. A class with fewer than K images
    repeats them, as evenly as can be.

    Batch `step` takes the same time for any step, and is the same on every machine.

    Args:
      labels: `[N]` integers; images labelled below 0 (distractors, ignored) are never drawn.
      classes_per_batch: P.
      images_per_class: K.
      seed: any integer.

    Raises:
      UserError: P or K is not positive, or P exceeds the number of classes.

    Attributes:
      num_classes: C, the classes that can be drawn.
      steps_per_epoch: floor(C / P).
      short_classes: how many classes have fewer than K images, and so repeat some in every batch.
    """

    def __init__(self, labels: np.ndarray, *, classes_per_batch: int, images_per_class: int, seed: int):
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels: must be integers [N], found {labels.dtype} {list(labels.shape)}")
        for name, value in (("classes_per_batch", classes_per_batch), ("images_per_class", images_per_class)):
            if value < 1:
                raise UserError(f"{name}: must be at least 1, found {value}")
        # Sorting once by class (stable) turns "the images of class c" into a slice.
        by_class = np.argsort(labels, kind="stable").astype(np.int64)
        by_class = by_class[labels[by_class] >= 0]
        classes, counts = np.unique(labels[by_class], return_counts=True)
        if classes_per_batch > len(classes):
            raise UserError(
                f"classes_per_batch (batch.classes): is {classes_per_batch}, but the training data has only "
                f"{len(classes)} classes, those for validation not counted; set it to {len(classes)} or less"
            )
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.seed = seed
        self.num_classes = len(classes)
        self.steps_per_epoch = len(classes) // classes_per_batch
        self.short_classes = int(np.sum(counts < images_per_class))
        self._by_class = by_class
        self._counts = counts
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        self._class_ring = permutation(len(classes), seed, _CLASS_RING)
        self._ring_position = np.argsort(self._class_ring)
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def batch_size(self) -> int:
        """P * K, the size of the global batch."""
        return self.classes_per_batch * self.images_per_class

    def describe(self) -> str:
        """One line for the log: sizes, and how many classes must repeat images."""
        line = (
            f"{self.classes_per_batch} classes x {self.images_per_class} images a batch, "
            f"{self.num_classes} classes, {self.steps_per_epoch} steps an epoch"
        )
        if self.short_classes:
            line += (
                f"; {self.short_classes} classes have fewer than {self.images_per_class} images and repeat"
            )
        return line

    def batch(self, step: int) -> np.ndarray:
        """The indices of batch `step`, int64 `[P * K]`, the K images of a class side by side.

        Raises:
          ValueError: `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step: must be 0 or more, found {step}")
        epoch, position = divmod(int(step), self.steps_per_epoch)
        p = self.classes_per_batch
        classes = self._class_order(epoch)[position * p : (position + 1) * p]
        return self.images(classes, np.array([self._visits(int(c), epoch) for c in classes])).reshape(-1)

    def images(self, classes: np.ndarray, visits: np.ndarray) -> np.ndarray:
        """K images for each of `classes` `[c]` at its draw number `visits` `[c]`, int64 `[c, K]`."""
        indices = np.empty((len(classes), self.images_per_class), np.int64)
        enough = self._counts[classes] >= self.images_per_class
        if enough.any():
            indices[enough] = self._distinct_images(classes[enough], visits[enough])
        for row in np.flatnonzero(~enough):
            indices[row] = self._repeated_images(int(classes[row]), int(visits[row]))
        return indices

    def _class_order(self, epoch: int) -> np.ndarray:
        # Kept for one epoch only; a tuple, so that threads see the number and the order change together.
        kept_epoch, order = self._epoch
        if kept_epoch != epoch:
            order = _deal(self._class_ring, self.classes_per_batch, epoch, (self.seed, _CLASS_ORDER))
            self._epoch = (epoch, order)
        return order

    def _visits(self, c: int, epoch: int) -> int:
        """The number of earlier epochs that class `c` took part in."""
        left_over = self.num_classes % self.classes_per_batch
        absences = -((int(self._ring_position[c]) - epoch * left_over) // self.num_classes)
        return epoch - max(0, absences)

    def _distinct_images(self, classes: np.ndarray, visits: np.ndarray) -> np.ndarray:
        """K images for each class that has as many, at its draw number `visits` `[c]`, `[c, K]`.

        All classes at once, since a class by itself has so few images that NumPy's calls would cost more than its work.
        """
        k, n = self.images_per_class, self._counts[classes]
        turn, position = np.divmod(visits, n // k)
        row, place = np.repeat(np.arange(len(n)), n), _counted(n)
        # The n mod K images of a class that are left out this turn; each turn leaves out others.
        ring = _shuffled(row, hash_words(self.seed, _IMAGE_RING, classes[row], place))
        out = (place - (turn * (n % k) % n)[row]) % n[row] < (n % k)[row]
        kept = np.ones(len(row), bool)
        kept[ring[out]] = False
        row, place = row[kept], place[kept]
        left = n - n % k
        words = hash_words(self.seed, _IMAGE_ORDER, classes[row], turn[row], _counted(left))
        order = place[_shuffled(row, words)]
        first = np.cumsum(left) - left + position * k
        chosen = order[first[:, None] + np.arange(k)]
        return self._by_class[self._offsets[classes][:, None] + chosen]

    def _repeated_images(self, c: int, visit: int) -> np.ndarray:
        """K images for class `c`, which has fewer, at its draw number `visit`."""
        n, k = int(self._counts[c]), self.images_per_class
        ring = permutation(n, self.seed, _IMAGE_RING, c)
        order = np.concatenate([np.tile(ring, k // n), _window(ring, visit, k % n)])
        return self._by_class[self._offsets[c] + order]


def _counted(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... up to each size in turn."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _shuffled(rows: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The order of all entries by row and, within a row, by random words; as `permutation` does for a single row."""
    return np.lexsort((words, rows))


def _window(ring: np.ndarray, turn: int, size: int) -> np.ndarray:
    """The next `size` members of the ring, after those of earlier turns, int64 `[size]`."""
    start = turn * size % len(ring)
    return ring[(start + np.arange(size)) % len(ring)]


def _deal(ring: np.ndarray, size: int, turn: int, words: tuple[int, ...]) -> np.ndarray:
    """0..len(ring)-1 in random order, without len(ring) mod size of them; each turn leaves out others."""
    kept = np.ones(len(ring), bool)
    kept[_window(ring, turn, len(ring) % size)] = False
    kept = np.flatnonzero(kept)
    return kept[permutation(len(kept), *words, turn)]
