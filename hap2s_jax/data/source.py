"""The interface of data sets: labels, cameras, and encoded images by index.

NumPy and the standard library only. Decoding, resizing and augmentation belong to the pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

PROTOCOLS = ("class", "query_gallery", "in_shop", "single_gallery_shot", "multi_query")
_OF_ANY_SOURCE = PROTOCOLS[:2]
PROTOCOLS += ("closed_set", "open_set", "verification")


@runtime_checkable
class Source(Protocol):
    """Labelled images with random access.

    Labels run from 0 to C - 1 in the sorted order of the classes, so that they never depend on the order in
    which a folder was listed. Cameras are None where the data set knows none.
    """

    @property
    def name(self) -> str:
        """The name of this source in messages, such as "emoji test"."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """int32 `[N]`, values 0 to C - 1; -1 for junk, which evaluation leaves out. Distractors have a class of
        their own, which no query has."""
        ...

    @property
    def cameras(self) -> np.ndarray | None:
        """int32 `[N]`, or None where the data set has no cameras."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C names, in the order of the labels."""
        ...

    def __len__(self) -> int:
        """N, the number of images."""
        ...

    def read(self, index: int) -> bytes:
        """The encoded image (JPEG or PNG) number `index`."""
        ...

    def describe(self, index: int) -> str:
        """The origin of image number `index` (path or archive member), for error messages."""
        ...


class Derived:
    """A source made of images of other sources; `origin` says which."""

    def origin(self, index: int) -> tuple[Source, int]:
        """The source of image number `index`, and its number there."""
        raise NotImplementedError

    def read(self, index: int) -> bytes:
        """The encoded image number `index`."""
        source, place = self.origin(index)
        return source.read(place)

    def describe(self, index: int) -> str:
        """The origin of image number `index`."""
        source, place = self.origin(index)
        return source.describe(place)


def origin_of(source: Any, index: int) -> tuple[Any, int]:
    """The source that really holds image number `index`, and the image's number there."""
    while hasattr(source, "origin"):
        source, index = source.origin(index)
    return source, index


class Subset(Derived):
    """Some images of another source, read lazily from it.

    Args:
      source: the source to take from.
      indices: `[n]` positions in `source`, in the order wanted; repeats are allowed.
      relabel: whether labels are renumbered 0 to C' - 1 over the classes that are left (their order stays).
        Otherwise labels and class names stay those of `source`.
      name: what messages call the subset; by default the name of `source`.

    Attributes:
      boxes: int `[n, 4]`, those of `source` (left, top, right, bottom; see `FileSource`), None where it has none.

    Raises:
      ValueError: an index lies outside the source.
    """

    def __init__(
        self,
        source: Source,
        indices: np.ndarray | Sequence[int],
        relabel: bool = True,
        name: str | None = None,
    ):
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if indices.size and (indices.min() < 0 or indices.max() >= len(source)):
            raise ValueError(
                f"indices: must lie in 0..{len(source) - 1} (the images of {source.name}), "
                f"found {indices.min()}..{indices.max()}"
            )
        self.source = source
        self.indices = indices
        self.name = source.name if name is None else name
        self.cameras = None if source.cameras is None else source.cameras[indices].astype(np.int32)
        boxes: np.ndarray | None = getattr(source, "boxes", None)
        self.boxes = None if boxes is None else boxes[indices]
        labels = np.asarray(source.labels)[indices]
        if relabel:
            kept = np.unique(labels[labels >= 0])
            # A distractor's -1 names no class, so it is not renumbered.
            labels = np.where(labels >= 0, np.searchsorted(kept, labels), labels)
            self.class_names = tuple(source.class_names[i] for i in kept)
        else:
            self.class_names = source.class_names
        self.labels = labels.astype(np.int32)

    def __len__(self) -> int:
        """The number of images in the subset."""
        return len(self.indices)

    def origin(self, index: int) -> tuple[Source, int]:
        """The source of image number `index`, and its number there."""
        return self.source, int(self.indices[index])


@dataclass(frozen=True)
class Dataset:
    """A data set, split for training and for retrieval on unseen classes.

    Attributes:
      name: its name in configs and messages.
      train: the images to learn from.
      validation: images of classes taken from the training classes (never of test classes), or None.
      test: the images of the unseen classes.
      query: int64 `[Q]` indices into `test`, or None when every test image queries all the others.
      gallery: int64 `[G]` indices into `test`; None exactly when `query` is.
      protocols: which evaluations apply: "class" (every test image queries all others), "query_gallery"
        (query against gallery; where there are cameras, same-class same-camera images are removed), and the
        special ones of `hap2s_jax.evaluation.protocols`.
      baselines: figures on `test` of systems that need no training ("raw pixels"), by the names of the
        evaluation's metrics, to be shown beside a run's own.
      views: int64 `[V]` indices into `test` of the images that "multi_query" pools a query from, neither queries
        nor gallery; None without any.
      seen_classes: names of test classes that also occur in training or validation, as in a user's own split.
      is_own: whether the images are the user's own.
      remarks: lines for the user, such as numbers of images that differ from the published ones.
      judged: protocols of the validation classes, if they do not follow from those of the test.
      targets: all data sets to test on, if there are several or other ones than this; the first is `test`.
      class_sets: int `[C]`, the data set of each training class; None for a single data set.
    """

    name: str
    train: Source
    validation: Source | None
    test: Source
    query: np.ndarray | None = None
    gallery: np.ndarray | None = None
    protocols: tuple[str, ...] = ("class",)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    views: np.ndarray | None = None
    seen_classes: tuple[str, ...] = ()
    is_own: bool = False
    remarks: tuple[str, ...] = ()
    judged: tuple[str, ...] | None = None
    targets: tuple[Dataset, ...] = ()
    class_sets: np.ndarray | None = None

    @property
    def validation_protocols(self) -> tuple[str, ...]:
        """The protocols of validation classes: special ones depend on how the test images were collected."""
        return self.judged or tuple(p for p in self.protocols if p in _OF_ANY_SOURCE) or _OF_ANY_SOURCE[:1]

    def __post_init__(self) -> None:
        """Refuses data that no evaluation could use."""
        if (self.query is None) != (self.gallery is None):
            raise ValueError("query and gallery: must be given together, or both be None")
        for name, value in (("query", self.query), ("gallery", self.gallery), ("views", self.views)):
            if value is not None and value.size and (value.min() < 0 or value.max() >= len(self.test)):
                raise ValueError(f"{name}: must hold indices 0..{len(self.test) - 1} into test")
        unknown = sorted(set(self.protocols) - set(PROTOCOLS))
        if unknown or not self.protocols:
            raise ValueError(f"protocols: must be taken from {PROTOCOLS}, found {self.protocols}")
