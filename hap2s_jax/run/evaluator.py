"""Evaluates an encoder on a config's data; needs no loss, no optimiser and nothing else of training."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from hap2s_jax.data import matches, presence
from hap2s_jax.data.noise import NoiseRecord
from hap2s_jax.data.pixels import Decoding
from hap2s_jax.data.source import Dataset, Source, Subset
from hap2s_jax.data.turns import TURNS, QuarterTurns
from hap2s_jax.distributed.devices import DataParallel
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation import protocols, raw_pixels, test_time
from hap2s_jax.evaluation.embed import embed_dataset
from hap2s_jax.run.config import Config
from hap2s_jax.run.sets import cache_of, load_dataset
from hap2s_jax.training import step

if TYPE_CHECKING:
    from hap2s_jax.data.batches import Reading  # needs OpenCV, which the commands' help must not

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A config's data set, devices and compiled encoder, to embed images and judge the embeddings.

    Attributes:
      config: the config, locked.
      parallel: the devices.
      dataset: the data set.
      embed: compiled ``(variables, images [b, h, w, 3]) -> [b, d]``.
    """

    config: Config
    parallel: DataParallel
    dataset: Dataset
    embed: Callable[[PyTree, Any], jax.Array]

    @staticmethod
    def of_run(config: Config, encoder: Any, dataset: Dataset | None = None) -> Evaluator:
        """Opens a trained run, on as many of its devices as this machine has.

        Args:
          config: of the run. Its loss need not be known here.
          encoder: the flax module.
          dataset: another one than the run's.

        Raises:
          UserError: naming the key that is wrong, or the data that are missing.
        """
        wanted = config.num_devices
        parallel = DataParallel.create(None if wanted is None else min(wanted, jax.device_count()))
        embed = parallel.compile_map(embedding_function(encoder, config.evaluate))
        dataset = dataset or with_noise(config, load_dataset(config))[0]
        return Evaluator(config, parallel, dataset, embed)

    def eval_batches(self, source: Source) -> Iterator[PyTree]:
        """This process's share of a source's images, each once."""
        from hap2s_jax.data.batches import eval_batches

        devices = len(self.parallel.local_devices)
        return eval_batches(
            source,
            reading(self.config),
            batch_size=-(-self.config.evaluate.batch_size // devices) * devices,
            enlarge=self.config.evaluate.enlarge,
            keep_aspect=self.config.evaluate.keep_aspect,
        )

    def inputs(self, source: Source) -> Iterator[PyTree]:
        """This process's share of the encoder's inputs for a source: its images."""
        return self.eval_batches(source)

    def embed_source(self, variables: PyTree, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Embeds a source.

        Args:
          variables: of the encoder, ``{"params", "batch_stats"}``, on the devices.
          source: labelled images.

        Returns:
          ``(embeddings [N, d], present [N])``; see `embed_dataset`.

        Raises:
          UserError: too few images can be read, see `presence.check`.
        """
        chosen = self.query_and_gallery(source)
        presence.check(source, *chosen)
        found = embed_dataset(self.embed, variables, self.inputs(source), len(source), self.parallel)
        presence.check(source, *chosen, can_read=lambda index: bool(found[1][index]))
        return found

    def query_and_gallery(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Query and gallery rows of `source`: the data set's for its test images, else all rows for both."""
        data = self.dataset
        if source is data.test and data.query is not None and data.gallery is not None:
            return data.query, data.gallery
        everything = np.arange(len(source))
        return everything, everything

    def embed_with_pixels(
        self, variables: PyTree, source: Source
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """As `embed_source`, and raw pixels too: ``(embeddings, pixels [N, p], present)``.

        Pixels are compared for your own images only, and None if that would take long.
        """
        embeddings, present = self.embed_source(variables, source)
        if not (self.dataset.is_own and raw_pixels.is_affordable(len(source), self.config.data.image_size)):
            return embeddings, None, present
        images = self.eval_batches(source)
        pixels, _ = embed_dataset(raw_pixels.embed, None, images, len(source), self.parallel)
        return embeddings, pixels, present

    def measure(
        self, embeddings: np.ndarray, present: np.ndarray, source: Source, **options: Any
    ) -> dict[str, float]:
        """The retrieval metrics of a source's embeddings under the data set's protocols.

        Args:
          embeddings, present: of `embed_source`.
          source: the images.
          **options: of `protocols.evaluate`, in place of the config's.
        """
        data, is_test = self.dataset, source is self.dataset.test
        query, gallery = self.query_and_gallery(source)
        return protocols.evaluate(
            embeddings,
            np.where(present, source.labels, -1),
            source.cameras,
            query=query,
            gallery=gallery,
            protocols=data.protocols if is_test else data.validation_protocols,
            views=data.views if is_test else None,
            **{"distance": self.config.evaluate.distance, **options},
        )

    def remarks(self, source: Source) -> tuple[str, ...]:
        """A line for each protocol under which queries of a source have no valid match."""
        query, gallery = self.query_and_gallery(source)
        data = self.dataset
        chosen = data.protocols if source is data.test else data.validation_protocols
        return matches.describe(source.labels, source.cameras, query=query, gallery=gallery, protocols=chosen)

    def of_targets(self) -> list[Evaluator]:
        """Yields an evaluator for each data set to test on."""
        return [
            dataclasses.replace(self, dataset=target) for target in self.dataset.targets or (self.dataset,)
        ]

    def remarks_on_others(self) -> list[str]:
        """As `remarks`, for the data sets to test on after the first, each with its name."""
        others = self.of_targets()[1:]
        return [
            f"{judge.dataset.name}: {line}" for judge in others for line in judge.remarks(judge.dataset.test)
        ]

    def measure_others(self, variables: PyTree) -> dict[str, dict[str, float]]:
        """The figures of the data sets to test on after the first, by name."""
        return {
            judge.dataset.name: judge.measure(
                *judge.embed_source(variables, judge.dataset.test), judge.dataset.test
            )
            for judge in self.of_targets()[1:]
        }

    def images(self, source: Source, indices: np.ndarray) -> np.ndarray:
        """Some images of a source as the encoder sees them, uint8 ``[n, h, w, 3]``, for pictures."""
        from hap2s_jax.data.batches import Reading, eval_batches

        batches = eval_batches(
            Subset(source, indices, relabel=False),
            Reading(self.config.data.image_size, on_unreadable="skip", decoding=decoding(self.config)),
            batch_size=max(len(indices), 1),
            enlarge=self.config.evaluate.enlarge,
            keep_aspect=self.config.evaluate.keep_aspect,
        )
        return np.concatenate([batch["image"][: len(indices)] for batch in batches])


def reading(config: Config) -> Reading:
    """How this process reads images, as a config says."""
    from hap2s_jax.data.batches import Reading

    data = config.data
    return Reading(
        data.image_size,
        jax.process_index(),
        jax.process_count(),
        data.num_workers,
        data.on_unreadable,
        data.cache_bytes,
        decoding(config),
    )


def decoding(config: Config) -> Decoding:
    """The decoding that a config asks for."""
    data = config.data
    background = None if data.background is None else tuple(data.background)
    return Decoding(data.exif, background, data.max_pixels)


def with_noise(config: Config, dataset: Dataset) -> tuple[Dataset, NoiseRecord | None]:
    """The data set as a run trains on it, and a record of its noise (wrong labels or images on purpose), or None.

    Raises:
      UserError: naming the key that is wrong, or the foreign data that are missing.
    """
    from hap2s_jax.data import datasets

    dataset, noise = datasets.with_noise(
        dataset, data_dir=config.data.data_dir, cache=cache_of(config), **config.data.noise
    )
    if config.data.quarter_turns:
        sets = None if dataset.class_sets is None else np.tile(dataset.class_sets, TURNS)
        train = QuarterTurns(dataset.train, decoding(config))
        dataset = dataclasses.replace(dataset, train=train, class_sets=sets)
    return dataset, noise


def embedding_function(
    encoder: Any, settings: Config, *, combine: Callable[..., Any] = test_time.over_views
) -> Callable[[PyTree, Any], jax.Array]:
    """The function that evaluation embeds images with, not yet compiled.

    Args:
      encoder: flax module.
      settings: `config.evaluate`: the feature, the views of an image, and the distance.
      combine: how the views become one embedding: `test_time.over_views` or `at_once`.

    Raises:
      UserError: for an unknown feature or distance, or a crop out of range.
    """
    from hap2s_jax.run import schema  # not above: it needs OpenCV, which the commands' help must not

    schema.Evaluate.read(settings)
    embed = functools.partial(step.embed_step, encoder=encoder, feature=settings.feature)
    # If single embeddings are unit vectors, their mean over views is rescaled to unit length too. Custom encoders
    # announce this through the same attributes.
    own = getattr(encoder, "module", encoder)
    makes_unit, has_neck = (getattr(own, name, False) for name in ("normalize", "bnneck"))
    unit = {"embedding": makes_unit, "retrieval": makes_unit or has_neck}
    normalize = settings.distance == "cosine" or unit.get(settings.feature, False)
    try:
        return combine(embed, test_time.views_of(settings), crop=settings.crop, normalize=normalize)
    except ValueError as error:
        raise UserError(f"evaluate: {error}") from None
