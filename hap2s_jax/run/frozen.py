"""Features of a frozen trunk instead of images: computed once, kept in the working directory, and trained on.

Every image goes through the trunk once: those of the validation and test classes as evaluation shows them, each
training image in `data.cached_views` views. The features are appended to a file of float32 rows, so an interrupted run
goes on where it stopped, and memory does not grow with the number of images.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hap2s_jax.data.draws import uniforms
from hap2s_jax.data.places import is_bucket
from hap2s_jax.data.regular_files import read_json
from hap2s_jax.data.source import Dataset, Source, Subset
from hap2s_jax.distributed import signals
from hap2s_jax.distributed.devices import DataParallel
from hap2s_jax.errors import Preempted
from hap2s_jax.evaluation.embed import embed_dataset
from hap2s_jax.reporting.atomic import cannot_write, open_appending, replacing
from hap2s_jax.reporting.progress import ProgressBar
from hap2s_jax.run import config as configs
from hap2s_jax.run import facts

PyTree = Any

FOLDER = "features"  # in a working directory
# Training images whose views are drawn together; another number would give other views.
_DRAWN_TOGETHER = 64
# Batches between two writes to the file.
_BATCHES_PER_WRITE = 2
# Images at a time on a device of a CPU. More are no faster, and the last batch is filled up.
_ON_A_CPU = 16
# Features that are turned into embeddings at a time.
_ROWS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Features:
    """Features used instead of a data set's images.

    Attributes:
      variables: of the frozen trunk, ``{"params", "batch_stats"}``, on the devices.
      train: `[views * n, c + 1]`, a memory-mapped file, view after view of the n training images with a class; the last
        column is the image's class.
      place: `[N]`, the number of each training image among these n.
      parts: for the validation and the test images, the source and its rows `[N, c + 1]`; the last column is -1 if the
        image cannot be read.
    """

    variables: PyTree
    train: np.ndarray
    place: np.ndarray
    parts: tuple[tuple[Source, np.ndarray], ...]

    def train_batches(
        self, plan: Any, seed: int, start_step: int, host_index: int, host_count: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """As `hap2s_jax.data.batches.train_batches`, with float32 features `[b, c]` for the images."""
        share = plan.batch_size // host_count
        slots = np.arange(host_index * share, (host_index + 1) * share)
        images = int(self.place.max()) + 1
        views = len(self.train) // images
        for step in itertools.count(start_step):
            view = (uniforms(seed, step, slots, 1)[:, 0] * views).astype(np.int64)
            rows = self.train[view * images + self.place[plan.batch(step)[slots]]]
            yield {"image": rows[:, :-1], "label": rows[:, -1].astype(np.int32)}

    def eval_batches(self, source: Source, parallel: DataParallel) -> Iterator[dict[str, np.ndarray]]:
        """As `hap2s_jax.data.batches.eval_batches`, with float32 features `[b, c]` for the images."""
        rows = next(rows for part, rows in self.parts if part is source)
        share = -(-len(rows) // jax.process_count())
        first = jax.process_index() * share
        devices = len(parallel.local_devices)
        size = -(-min(share, _ROWS_AT_ONCE) // devices) * devices
        for begin in range(first, first + share, size):
            chosen = np.arange(begin, begin + size)
            mask = chosen < min(first + share, len(rows))
            chosen = np.where(mask, chosen, 0)
            taken = rows[chosen]
            yield {"image": taken[:, :-1], "index": chosen, "mask": mask & (taken[:, -1] >= 0)}


def make(trainer: Any, variables: PyTree, workdir: pathlib.Path, stop: Callable[[], bool]) -> Features:
    """Makes the features of a trainer's data set, as far as `workdir` does not hold them yet.

    Args:
      trainer: a `hap2s_jax.run.trainer.Trainer` whose encoder is frozen.
      variables: of its trunk.
      workdir: where the files go, in the folder "features"; with one in a bucket, on this machine for as long as the
        process runs.
      stop: asked after every batch.

    Raises:
      UserError: an image cannot be read, or a file cannot be written.
      Preempted: `stop` said so; the next run goes on from there.
    """
    data: Dataset = trainer.dataset
    maker = _Maker(trainer, trainer.parallel.replicate(variables), workdir / FOLDER, stop)
    labelled = np.flatnonzero(np.asarray(data.train.labels) >= 0)
    place = np.full(len(data.train), -1)
    place[labelled] = np.arange(len(labelled))
    others = (("validation", data.validation), ("test", data.test))
    return Features(
        maker.variables,
        maker.train(labelled),
        place,
        tuple((part, maker.evaluation(name, part)) for name, part in others if part is not None),
    )


class _Maker:
    """Computes and writes the features of a data set's parts."""

    def __init__(self, trainer: Any, variables: PyTree, folder: pathlib.Path, stop: Callable[[], bool]):
        self.trainer, self.variables, self.folder, self.stop = trainer, variables, folder, stop
        self._parallel: DataParallel = trainer.parallel
        self._writes = self._parallel.is_lead
        if is_bucket(folder):  # rows are read at random, so each process keeps a copy while it runs
            self._writes, self._own = True, signals.temporary_folder()
            self.folder = pathlib.Path(self._own.name)
        self._width = trainer.learner.inputs.shape[-1] + 1
        self._embed = self._parallel.compile_map(functools.partial(_with_label, trainer.learner.encoder))
        self._weights = facts.arrays_fact(variables)

    def evaluation(self, name: str, source: Source) -> np.ndarray:
        """The rows of validation or test images."""

        def batches(begin: int, end: int) -> Iterator[Mapping[str, Any]]:
            for batch in self.trainer.eval_batches(Subset(source, np.arange(begin, end), relabel=False)):
                label = np.zeros(len(batch["index"]), np.int32)
                yield {**batch, "image": {"image": batch["image"], "label": label}}

        size = _BATCHES_PER_WRITE * self.trainer.config.evaluate.batch_size
        return self._rows(name, source, len(source), size, batches)

    def train(self, labelled: np.ndarray) -> np.ndarray:
        """The rows of the training images with a class, whose numbers are `labelled`."""
        config, hosts = self.trainer.config, jax.process_count()
        count = config.data.cached_views * len(labelled)
        batch_size = math.lcm(_DRAWN_TOGETHER, hosts)
        walk = _Walk(labelled, batch_size)
        own = np.arange(batch_size).reshape(hosts, -1)[jax.process_index()]
        walked: Any = None

        def batches(begin: int, end: int) -> Iterator[Mapping[str, Any]]:
            nonlocal walked
            if walked is None:
                walked = self.trainer.image_batches(walk, self._augmentation(), begin // batch_size)
            for first in range(begin, end, batch_size):
                rows = first + own
                yield {"image": next(walked), "index": rows - begin, "mask": rows < end}

        size = _BATCHES_PER_WRITE * batch_size
        return self._rows("train", self.trainer.dataset.train, count, size, batches)

    def _augmentation(self) -> Any:
        # Not above: OpenCV may be missing where features are only read.
        from hap2s_jax.data.augment import Centre

        config = self.trainer.config
        if config.data.cached_views > 1:
            return self.trainer.augmentation
        return Centre(config.evaluate.enlarge, config.evaluate.keep_aspect)

    def _rows(
        self,
        name: str,
        source: Source,
        count: int,
        size: int,
        batches: Callable[[int, int], Iterator[Mapping[str, Any]]],
    ) -> np.ndarray:
        """The rows of a part, `size` of them written at a time; `batches` gives those from a row to another."""
        path, is_lead = self._path(name), self._parallel.is_lead
        identity = self._identity(source, count)  # reads images
        done = self._done(name, identity, count, size)
        if done < count:
            if self._writes:
                self._begin(name, identity, done)
            with ProgressBar(count, done, f"features, {name}", images_per_step=1, enabled=is_lead) as bar:
                for begin in range(done, count, size):
                    end = min(begin + size, count)
                    pieces = self._pieces(batches(begin, end))
                    rows, present = embed_dataset(
                        self._embed, self.variables, pieces, end - begin, self._parallel
                    )
                    rows[~present, -1] = -1
                    if self._writes:
                        _append(path, rows)
                    bar.update(end)
            self._parallel.gather(np.zeros(1))  # all processes wait until the file is complete
        return np.memmap(path, np.float32, "r", shape=(count, self._width))

    def _pieces(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Batches of one size, without those that are only padding, until somebody asks to stop."""
        devices, size = len(self._parallel.local_devices), self.trainer.config.evaluate.batch_size
        if self._parallel.devices[0].platform == "cpu":
            size = min(size, _ON_A_CPU * devices)
        size = -(-size // devices) * devices
        for batch in batches:
            for first in range(0, len(batch["mask"]), size):
                if first and not batch["mask"][first : first + size].any():
                    continue
                if self.stop():
                    raise Preempted(0)
                yield jax.tree.map(lambda x, first=first: _padded(x[first : first + size], size), batch)

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.f32"

    def _identity(self, source: Source, count: int) -> str:
        """A fingerprint of all that decides the rows."""
        config = self.trainer.config
        keys = ("augment.", "data.", "encoder.name", "encoder.pooling", "encoder.dtype", "seed")
        keys += ("evaluate.enlarge", "evaluate.keep_aspect")
        settings = {
            key: value
            for key, value in configs.flatten(config).items()
            if key.startswith(keys) and not configs.among(key, configs.CHANGEABLE)
        }
        found = [self._weights, facts.source_fact(source), count, self._width, settings]
        return hashlib.sha256(json.dumps(found, default=list).encode()).hexdigest()[:16]

    def _done(self, name: str, identity: str, count: int, size: int) -> int:
        """The number of rows that are already written, counting complete writes only."""
        try:
            if read_json(self.folder / f"{name}.json").get("rows_of") != identity:
                return 0
            rows = self._path(name).stat().st_size // (4 * self._width)
        except (OSError, ValueError):
            return 0
        return rows if rows == count else min(rows, count) // size * size

    def _begin(self, name: str, identity: str, done: int) -> None:
        """Truncates the file to the first `done` rows, and records what they are."""
        path = self._path(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open_appending(path, "ab") as file:
                file.truncate(done * 4 * self._width)
        except OSError as error:
            raise cannot_write(path, error) from error
        # Written last: until then another process must not take the rows for these features.
        with replacing(self.folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps({"rows_of": identity}))


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, ((0, size - len(rows)), *[(0, 0)] * (rows.ndim - 1)))


def _append(path: pathlib.Path, rows: np.ndarray) -> None:
    try:
        with open_appending(path, "ab") as file:
            file.write(np.ascontiguousarray(rows, np.float32).tobytes())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def _with_label(encoder: Any, variables: PyTree, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The features of a batch's images, and in a last column their labels, which float32 holds up to 16 million."""
    features = encoder.apply(variables, batch["image"], method="pooled")
    return jnp.concatenate([features, batch["label"][:, None].astype(features.dtype)], axis=1)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """A plan that goes through the images `rows` in order, again and again."""

    rows: np.ndarray
    batch_size: int

    def batch(self, step: int) -> np.ndarray:
        return self.rows[(step * self.batch_size + np.arange(self.batch_size)) % len(self.rows)]
