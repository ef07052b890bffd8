"""What the person re-identification configs share: TriNet's public training script with the paper's head.

ResNet-50, global average pooling, FC 1024 with BN and ReLU, FC 128 (the head is a reader's note on the HAP2S
paper); batches of 18 people with 4 images each, 256x128 crops out of 288x144, mirrored at random, Adam at 3e-4
for 25,000 updates, decaying exponentially to a thousandth from update 15,000 on.
"""

from __future__ import annotations

from configs import common
from hap2s_jax.config import Config


def recipe(name: str, arg: str | None) -> Config:
    """The config for the data set `name`.

    Args:
      name: as in hap2s_jax.data.registry.
      arg: comma-separated: ``loss=NAME`` (any of hap2s_jax.losses.names()), ``tiny`` (a few steps of a small
        encoder on whatever data there is).
    """
    chosen = common.parse_arg(arg, loss="hap2s_e", tiny=False)
    config = common.get_config()
    config.name = name
    config.steps = 25_000
    config.data.name = name
    config.data.image_size = (256, 128)
    config.batch.classes, config.batch.images_per_class = 18, 4
    config.augment.crop = "random"
    config.augment.enlarge = 1.125
    config.augment.flip = True
    config.evaluate.enlarge = 1.125

    config.encoder.name = "resnet50"
    config.encoder.hidden_dim = 1024
    config.encoder.embedding_dim = 128
    common.set_loss(config, chosen.loss)

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 3e-4
    config.schedule.name = "exponential"
    config.schedule.decay_from = 0.6
    config.schedule.final_factor = 0.001
    if chosen.tiny:
        shrink(config, (64, 32))
    return config


def shrink(config: Config, image_size: tuple[int, int]) -> None:
    """A few steps of a small encoder, for tests on small data."""
    config.name += "-tiny"
    config.steps = 3
    config.data.image_size = image_size
    config.data.validation_fraction = 0.4
    config.batch.classes, config.batch.images_per_class = 2, 4
    config.encoder.name = "resnet10"
    config.encoder.width = 8
    config.encoder.hidden_dim = 0
    config.evaluate.every_steps = 2
    config.evaluate.batch_size = 16
    config.checkpoint.every_steps = 2
    config.log.every_steps = 1
