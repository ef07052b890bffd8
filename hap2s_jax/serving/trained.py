"""A trained encoder with its own preprocessing: images in, embeddings out."""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import numpy as np

from hap2s_jax.data import pixels
from hap2s_jax.data.places import local
from hap2s_jax.data.regular_files import read_bytes
from hap2s_jax.data.several import source_names
from hap2s_jax.distributed.devices import DataParallel
from hap2s_jax.errors import UserError, require
from hap2s_jax.reporting.environment import usable_cores
from hap2s_jax.run.evaluator import decoding, embedding_function
from hap2s_jax.training.step import embed_step

PyTree = Any
if TYPE_CHECKING:
    from PIL import Image as pillow

# A path, an encoded image, uint8 [H, W, 3], or Pillow's Image.
Image: TypeAlias = "str | os.PathLike[str] | bytes | np.ndarray | pillow.Image"

_CHUNKS_AHEAD = 2


class Embedded(NamedTuple):
    """A batch of `TrainedEncoder.stream`.

    Attributes:
      embeddings: float32 `[b, d]`; zeros where an image could not be read.
      failures: `[b]`, why each image could not be read, None for those that could.
    """

    embeddings: np.ndarray
    failures: list[Exception | None]


class TrainedEncoder:
    """Images in, embeddings out; made by `hap2s_jax.load`.

    Attributes:
      config: the run's config.
      step: of the checkpoint: how many updates it has seen.
      average: whether the weights are the moving average.
      module: the flax module.
      variables: its variables, ``{"params", "batch_stats"}``, NumPy arrays.
      image_size: (height, width) that the encoder sees.
      dim: d, the embedding's size.
      distance: how embeddings are compared, one of `evaluation.inputs.DISTANCES`.
      fingerprint: 16 hexadecimal digits that tell these weights and this preprocessing from all others.
      workdir: where it was loaded from.
      trained_on: the names of the data sets.
    """

    def __init__(
        self, config: Any, step: int, average: bool, module: Any, variables: PyTree, workdir: pathlib.Path
    ):
        self.config, self.step, self.average, self.workdir = config, step, average, workdir
        self.module, self.variables = module, variables
        self.image_size: tuple[int, int] = (int(config.data.image_size[0]), int(config.data.image_size[1]))
        self.distance: str = config.evaluate.distance
        self.trained_on = source_names(config.data)
        self._transform = _transform(config)
        # A run from elsewhere may ask for more memory than this machine has.
        made = decoding(config)
        self._decoding = made._replace(max_pixels=min(made.max_pixels, pixels.DEFAULT.max_pixels))
        self.fingerprint = fingerprint(variables, config)
        self._parallel = DataParallel(tuple(jax.local_devices()))
        self._placed = self._parallel.replicate(variables)
        self._function = embedding_function(module, config.evaluate)
        self._embed = self._parallel.compile_map(self._function)
        # One view has the shape of their mean, and is traced faster.
        one = functools.partial(embed_step, encoder=module, feature=config.evaluate.feature)
        sample = jax.ShapeDtypeStruct((1, *self.image_size, 3), np.uint8)
        self.dim = int(jax.eval_shape(one, variables, sample).shape[1])

    def describe(self) -> dict[str, Any]:
        """The description of the encoder that stands in a file of embeddings."""
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "average": self.average,
            "distance": self.distance,
            "image_size": list(self.image_size),
            "workdir": str(self.workdir),
        }

    def function(self, images: Any) -> jax.Array:
        """The bare pure function ``uint8 [n, h, w, 3] -> [n, d]``, the weights closed over; for `jax.export`."""
        return self._function(self.variables, images)

    def embed_pixels(self, images: np.ndarray) -> np.ndarray:
        """Embeds results of `preprocess`, uint8 `[n, *image_size, 3]`, in one batch to float32 `[n, d]`."""
        batch = np.zeros((self._bucket(len(images)), *self.image_size, 3), np.uint8)
        batch[: len(images)] = images
        return _fetch(self._embed(self._placed, batch), [None] * len(images)).embeddings

    def __call__(self, images: Sequence[Image] | Image, *, batch_size: int | None = None) -> np.ndarray:
        """Embeds images.

        Args:
          images: paths, encoded images (bytes), arrays uint8 `[H, W, 3]` of any sizes, RGB, or Pillow's Images, also
            mixed; one array uint8 `[n, H, W, 3]`; or a single image.
          batch_size: images at a time; by default as the run evaluated.

        Returns:
          float32 `[n, d]`, in order.

        Raises:
          UserError: an image cannot be read; the first such one is named.
          TypeError: something that is no image.
        """
        single = isinstance(images, str | os.PathLike | bytes) or _is_pillow(images)
        single = single or (isinstance(images, np.ndarray) and images.ndim == 3)
        chosen: Any = [images] if single else images
        rows = [np.zeros((0, self.dim), np.float32)]
        number = 0
        for batch in self.stream(chosen, batch_size=batch_size):
            for place, failure in enumerate(batch.failures, number):
                if failure is not None:
                    raise UserError(f"image {_describe(chosen[place], place)} cannot be read: {failure}")
            number += len(batch.failures)
            rows.append(batch.embeddings)
        return np.concatenate(rows)

    def preprocess(self, image: Image, *, box: np.ndarray | None = None) -> np.ndarray:
        """The image as the encoder sees it, uint8 `[h, w, 3]`, the same as in the run's own evaluation.

        Args:
          image: a path, an encoded image, an array uint8 `[H, W, 3]`, RGB, or Pillow's Image, with its orientation and
            transparency.
          box: (left, top, right, bottom) in pixels to which it is limited first, or None.

        Raises:
          UnreadableImageError, OSError: it cannot be read.
          TypeError: it is no image.
        """
        data: Any = image
        if isinstance(image, str | os.PathLike):
            data = read_bytes(local(image))
        elif _is_pillow(image):
            data = _encoded(image)
        elif not isinstance(image, bytes):
            data = np.asarray(image)
            if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3 or 0 in data.shape:
                raise TypeError(
                    "an image must be a path, the bytes of an image file, a PIL.Image or an array uint8 [H, W, 3] of "
                    f"RGB in 0..255, but is {type(image).__name__} {data.dtype} {list(data.shape)}"
                )
        return pixels.for_evaluation(
            data, self.image_size, box=box, decoding=self._decoding, **self._transform
        )

    def stream(
        self,
        images: Iterable[Any],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        read: Callable[[Any], np.ndarray] | None = None,
    ) -> Iterator[Embedded]:
        """Embeds any number of images in bounded memory, a batch at a time; reading goes on while devices work.

        Args:
          images: as for a call, drawn from as they are needed.
          batch_size: images at a time; by default as the run evaluated.
          workers: threads that read and decode; by default as many as there are cores.
          read: an item of `images` -> uint8 `[*image_size, 3]`; by default `preprocess`.

        Yields:
          Batches, in order; for an image that cannot be read, the reason takes the place of the embedding.
        """
        wanted = int(self.config.evaluate.batch_size) if batch_size is None else batch_size
        require(wanted >= 1, "batch_size", wanted, "at least 1")
        size = self._round_up(wanted)
        read = read or self.preprocess
        with ThreadPoolExecutor(workers or usable_cores()) as pool:
            source = iter(images)
            waiting: collections.deque[list[Future[np.ndarray]]] = collections.deque()
            queued: tuple[Any, list[Exception | None]] | None = None
            compiled = 0
            while True:
                while len(waiting) < _CHUNKS_AHEAD and (chunk := list(itertools.islice(source, size))):
                    waiting.append([pool.submit(read, image) for image in chunk])
                if not waiting:
                    break
                images_now, failures = self._collect(waiting.popleft())
                # The last batch is padded, which avoids compiling again, unless it is the only one.
                rows = compiled or min(size, self._bucket(len(failures)))
                compiled = max(compiled, rows)
                batch = np.zeros((rows, *self.image_size, 3), np.uint8)
                batch[: len(failures)] = images_now
                embedded = self._embed(self._placed, batch)
                if queued is not None:
                    yield _fetch(*queued)
                queued = (embedded, failures)
            if queued is not None:
                yield _fetch(*queued)

    def _collect(self, futures: list[Future[np.ndarray]]) -> tuple[np.ndarray, list[Exception | None]]:
        """The images of a chunk, black where one could not be read, and why it could not."""
        out = np.zeros((len(futures), *self.image_size, 3), np.uint8)
        failures: list[Exception | None] = []
        for slot, future in enumerate(futures):
            try:
                out[slot] = future.result()
                failures.append(None)
            except (OSError, pixels.UnreadableImageError) as error:
                failures.append(error)
        return out, failures

    def _round_up(self, rows: int) -> int:
        devices = len(self._parallel.local_devices)
        return max(1, -(-rows // devices)) * devices

    def _bucket(self, rows: int) -> int:
        """Rounds up to one of few sizes: single queries are quick, and little is compiled."""
        return self._round_up(1 << (rows - 1).bit_length())


def fingerprint(variables: PyTree, config: Any) -> str:
    """Sixteen hexadecimal digits that tell these weights, with this preprocessing, from all others."""
    size = [int(side) for side in config.data.image_size]
    settings = [config.evaluate[key] for key in ("feature", "flip", "five_crops", "crop", "distance")]
    # Added only if it differs from the old behaviour, so that older indexes keep their fingerprint.
    settings += ["zooms"] if config.evaluate.zooms else []
    if (config.evaluate.flip or config.evaluate.five_crops) and config.evaluate.distance != "cosine":
        # Older versions did not normalise these means.
        settings += ["unit mean"] if config.encoder.normalize or config.encoder.bnneck else []
    if (made := decoding(config))[:2] != (False, None):  # older versions had only this
        settings += [list(made[:2])]
    digest = hashlib.sha256(repr((size, settings, sorted(_transform(config).items()))).encode())
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    ):
        digest.update(path.encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _transform(config: Any) -> dict[str, Any]:
    """The arguments of `pixels.for_evaluation` besides the size."""
    return {
        "enlarge": float(config.evaluate.enlarge),
        "keep_aspect": bool(config.evaluate.keep_aspect),
    }


def _fetch(embedded: Any, failures: list[Exception | None]) -> Embedded:
    rows = np.array(embedded, np.float32)[: len(failures)]
    rows[[failure is not None for failure in failures]] = 0
    return Embedded(rows, failures)


def _is_pillow(image: Any) -> bool:
    # Recognised by its methods: no need to import Pillow here.
    return hasattr(image, "getexif") and hasattr(image, "convert")


def _encoded(image: Any) -> bytes:
    """Encodes Pillow's Image as a PNG, so that transparency and orientation are treated as in a file."""
    stream = io.BytesIO()
    kept = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    (image if kept else image.convert("RGB")).save(stream, "PNG", exif=image.getexif(), compress_level=1)
    return stream.getvalue()


def _describe(image: Any, place: int) -> str:
    return str(image) if isinstance(image, str | os.PathLike) else f"number {place}"
