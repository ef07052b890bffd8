"""Advice on steps and batch sizes from the number of classes and images."""

from __future__ import annotations

import math

# Share of the training classes to validate on.
VALIDATION = 0.1
# Validation classes that it takes to tell one checkpoint from another, and the largest share of the training classes
# that is given for them. On two or three classes nearly every checkpoint is perfect.
CHOICE = 10
MOST = 0.25
# Classes in a batch, if there are as many; passes over the images, within the limits of the steps.
CLASSES = 16
PASSES = 100
STEPS = (500, 8_000)
# Shares of the steps.
WARMUP, INTERVAL = 1 / 16, 1 / 8


def validation_fraction(classes: int) -> float:
    """The share of `classes` training classes to validate on.

    At least `CHOICE` classes, unless that is more than the share `MOST`; 0 if fewer than two were left to train on.
    """
    if classes * MOST >= CHOICE:
        return round(max(VALIDATION, CHOICE / classes), 4)
    return (
        VALIDATION if classes >= 4 and classes - max(2, math.floor(classes * VALIDATION + 0.5)) >= 2 else 0.0
    )


def weights(validation_classes: float) -> str:
    """Which checkpoint to report, for this number of validation classes: "best" or "last"."""
    return "best" if validation_classes >= CHOICE else "last"


def batch_classes(classes: float) -> int:
    """P, for this number of training classes."""
    return int(max(1, min(CLASSES, classes)))


def steps(images: float, batch_size: int) -> int:
    """Updates for `PASSES` passes over so many training images, rounded to hundreds, within `STEPS`."""
    wanted = min(images * PASSES / batch_size, STEPS[1])
    return max(STEPS[0], 100 * round(wanted / 100))


def warmup_steps(total: int) -> int:
    """Updates of the warm-up, for so many updates in all."""
    return int(total * WARMUP)


def interval(total: int) -> int:
    """Updates between two evaluations, and between two checkpoints."""
    return max(1, int(total * INTERVAL))
