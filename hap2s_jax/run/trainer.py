"""Makes the objects that a config names, for training."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from hap2s_jax.data import duplicates, mixing, presence
from hap2s_jax.data.noise import NoiseRecord
from hap2s_jax.data.pk import PKPlan
from hap2s_jax.data.places import place
from hap2s_jax.data.source import Dataset, Source
from hap2s_jax.distributed.devices import DataParallel, use_cores
from hap2s_jax.errors import UserError, require, unknown_name
from hap2s_jax.evaluation import protocols
from hap2s_jax.models import pretrained
from hap2s_jax.run import frozen, initial_weights
from hap2s_jax.run.config import Config
from hap2s_jax.run.evaluator import Evaluator, embedding_function, load_dataset, reading, with_noise
from hap2s_jax.run.learner import Learner
from hap2s_jax.training import digests
from hap2s_jax.training.checkpoint import FOLDER, Checkpointer
from hap2s_jax.training.state import TrainState, encoder_variables, split_frozen, start_average

PyTree = Any
Update = Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]]


def use_compilation_cache(config: Config) -> None:
    """Keeps compiled programs between runs, unless the user has set a cache of their own."""
    folder = config.compilation_cache
    if folder == "" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = os.path.expanduser(folder or "~/.cache/hap2s_jax/xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_devices(config: Config) -> None:
    """Splits a CPU into devices over which a batch and its pieces divide; see `use_cores`."""
    batch_size = config.batch.classes * config.batch.images_per_class
    use_cores(batch_size // max(config.batch.pieces, 1), config.num_devices)


@dataclasses.dataclass(frozen=True)
class Trainer(Evaluator):
    """A config's data set, encoder, loss, optimiser and devices, bound together.

    Attributes, besides those of an `Evaluator`:
      augmentation: the random changes to training images.
      plan: the images of each step's batch.
      learner: encoder, losses, optimiser and step.
      update: compiled ``(state, split batch) -> (state, metrics)``.
      noise: which training images were made wrong on purpose, None without noise.
      features: used instead of images, if the trunk is frozen; see `on_features`.
    """

    augmentation: Any
    plan: PKPlan | mixing.MixedPlan
    learner: Learner
    update: Update
    noise: NoiseRecord | None = None
    features: frozen.Features | None = None

    @classmethod
    def create(cls, config: Config) -> Trainer:
        """Builds everything, the cheapest mistakes first.

        Raises:
          UserError: naming the key that is wrong, or the data that is missing.
        """
        learner = Learner.create(config)
        parallel = DataParallel.create(config.num_devices)
        parallel.check_batch(learner.batch_size, config.batch.pieces)
        embed = parallel.compile_map(embedding_function(learner.encoder, config.evaluate))

        from hap2s_jax.data.augment import Augmentation

        augmentation = Augmentation(**config.augment)
        dataset = load_dataset(config)
        check_best_metric(config, dataset)
        check_presence(dataset)
        if learner.is_frozen and len(dataset.targets) > 1:
            raise UserError(
                f"encoder.frozen: keeps features of one set to test on, and there are {len(dataset.targets)}; name one "
                "in evaluate.on, and judge the others with `evaluate --workdir --data`"
            )
        if dataset.is_own and not dataset.targets and parallel.is_lead:
            found = duplicates.find(dataset, duplicates.QUICK_BYTES)
            dataset = dataclasses.replace(dataset, remarks=(*dataset.remarks, *found.lines()))
        dataset, noise = with_noise(config, dataset)
        labels, sets = np.asarray(dataset.train.labels), dataset.class_sets
        plan = mixing.plan(
            labels,
            None if sets is None else sets[np.maximum(labels, 0)],
            dataset.name.split("+"),
            mixing=config.batch.mixing,
            together=config.batch.sets,
            classes_per_batch=config.batch.classes,
            images_per_class=config.batch.images_per_class,
            seed=config.seed,
        )
        update = parallel.compile_step(learner.train_step)
        return cls(config, parallel, dataset, embed, augmentation, plan, learner, update, noise)

    def initial_state(self) -> TrainState:
        """The state before the first update, not yet placed on the devices."""
        # Not the number of the plan's classes: flipped labels may leave a class without images.
        return self.learner.initial_state(len(self.dataset.train.class_names))

    def with_initial_weights(self, state: TrainState) -> tuple[TrainState, PyTree, str]:
        """Takes `config.pretrained`'s weights in place of the random ones.

        Returns:
          The state; the variables of the trunk that it does not hold, None where none is frozen; and a line that says
          what came.
        """
        source, is_frozen, kept = self.config.pretrained.source, self.learner.is_frozen, None
        encoder = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
        if is_frozen:
            encoder = self.learner.whole_encoder()
        line = "weights start at random"
        if source:
            encoder, line = self._pretrained(encoder)
        elif is_frozen:
            line += ", and the frozen trunk keeps them: give pretrained.source"
        elif self.config.encoder.get("freeze_bn_stats"):
            line += ", and batch normalisation keeps its first statistics: unfreeze encoder.freeze_bn_stats"
        if is_frozen:
            encoder, kept = split_frozen(encoder)
        if not source:
            return state, kept, line
        params, batch_stats = {**state.params, "encoder": encoder["params"]}, encoder.get("batch_stats", {})
        state = dataclasses.replace(
            state,
            params=params,
            batch_stats=batch_stats,
            opt_state=self.learner.optimizer.init(params),
            ema_params=None if state.ema_params is None else start_average(params, batch_stats),
        )
        return state, kept, line

    def _pretrained(self, variables: PyTree) -> tuple[PyTree, str]:
        """An encoder's variables with `config.pretrained`'s weights, and a line about what was loaded."""
        settings = self.config.pretrained
        try:
            encoder, report = initial_weights.load(
                settings.source,
                self.learner.encoder,
                variables,
                cache_dir=settings.cache_dir,
                offline=settings.offline,
            )
        except UserError as e:
            around = f" {initial_weights.WITHOUT_HUB}" if settings.source.startswith(pretrained.HUB) else ""
            raise UserError(f"{e}{around}") from None
        return encoder, str(report)

    def on_features(self, variables: PyTree, workdir: pathlib.Path, stop: Callable[[], bool]) -> Trainer:
        """The trainer with features of a frozen trunk (of these `variables`) instead of images; see `frozen`."""
        return dataclasses.replace(self, features=frozen.make(self, variables, workdir, stop))

    def image_batches(self, plan: Any, augmentation: Any, start_step: int) -> Iterator[PyTree]:
        """This process's share of batches of training images."""
        from hap2s_jax.data.batches import train_batches

        return train_batches(
            self.dataset.train,
            plan,
            reading(self.config),
            augmentation=augmentation,
            seed=self.config.seed,
            start_step=start_step,
        )

    def train_batches(self, start_step: int) -> Iterator[PyTree]:
        """The batches of steps `start_step`, `start_step` + 1, ..., split over the local devices."""
        if self.features is None:
            batches = self.image_batches(self.plan, self.augmentation, start_step)
        else:
            host = jax.process_index(), jax.process_count()
            batches = self.features.train_batches(self.plan, self.config.seed, start_step, *host)
        return (self.parallel.split(batch) for batch in batches)

    def inputs(self, source: Source) -> Iterator[PyTree]:
        """This process's share of the encoder's inputs for a source: its images, or their features."""
        if self.features is None:
            return self.eval_batches(source)
        return self.features.eval_batches(source, self.parallel)

    def checkpointer(
        self, workdir: str | os.PathLike[str], checks: digests.Checks | None = None
    ) -> Checkpointer:
        """Opens the checkpoints of the run in `workdir`, as the config keeps them; `checks` may have begun already."""
        settings = self.config.checkpoint
        return Checkpointer(
            place(workdir).absolute() / FOLDER,
            keep_last=settings.keep_last,
            keep_best=settings.keep_best,
            best_metric=settings.best_metric if self.dataset.validation is not None else None,
            checks=checks,
        )

    def variables(self, state: TrainState) -> PyTree:
        """The encoder's variables that evaluation uses: the moving average if the run keeps one."""
        kept = None if self.features is None else self.features.variables
        return encoder_variables(state.params, state.batch_stats, state.ema_params, kept)

    def embeddings(self, state: TrainState, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Embeds `source`: ``(embeddings [N, d], present [N])``; see `embed_dataset`."""
        return self.embed_source(self.variables(state), source)

    def evaluate(self, state: TrainState, source: Source) -> dict[str, float]:
        """The metrics of the weights that `variables` takes.

        If these are a moving average, the metrics of the current weights are added under "live/".
        """
        measured = self.measure(*self.embeddings(state, source), source)
        if state.ema_params is None:
            return measured
        live = dataclasses.replace(state, ema_params=None)
        beside = self.measure(*self.embeddings(live, source), source)
        return measured | {f"live/{name}": value for name, value in beside.items()}

    def measure_trunk(self, state: TrainState) -> dict[str, float]:
        """The metrics of the test images by the features before the head, compared by their cosines."""
        settings = ml_collections.ConfigDict(
            {**self.config.evaluate, "feature": "features", "distance": "cosine"}
        )
        embed = self.parallel.compile_map(embedding_function(self.learner.encoder, settings))
        trunk, test = dataclasses.replace(self, embed=embed), self.dataset.test
        return self.measure(*trunk.embeddings(state, test), test, distance="cosine", cluster=False)


def check_presence(dataset: Dataset) -> None:
    """Checks before the training that enough images of each part are there, see `presence.check`.

    Raises:
      UserError: too few.
    """
    for source in (dataset.train, dataset.validation):
        if source is not None:
            presence.check(source)
    for target in dataset.targets or (dataset,):
        presence.check(target.test, target.query, target.gallery)


def check_best_metric(config: Config, dataset: Dataset) -> None:
    """Checks `checkpoint.best_metric`, if there are validation classes.

    Raises:
      UserError: it is not measured on them, or the best checkpoint is wanted but not kept.

    """
    if dataset.validation is None:
        return
    if config.evaluate.weights == "best":
        require(
            config.checkpoint.keep_best >= 1,
            "checkpoint.keep_best",
            config.checkpoint.keep_best,
            "at least 1, since evaluate.weights wants the best",
        )
    measured = protocols.names(dataset.validation_protocols)
    if config.ema_decay:
        measured += tuple(f"live/{name}" for name in measured)
    if config.checkpoint.best_metric not in measured:
        raise unknown_name(
            "metric of the validation classes (checkpoint.best_metric)",
            config.checkpoint.best_metric,
            measured,
        )
