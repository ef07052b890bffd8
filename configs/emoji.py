"""HAP2S on the embedded emoji set: a real retrieval problem that a laptop's CPU learns in five minutes.

    python -m hap2s_jax.main --config=configs/emoji.py
    python -m hap2s_jax.main --config=configs/emoji.py:loss=hap2s_e
    python -m hap2s_jax.main --config=configs/emoji.py:tiny        # seconds, for tests

Every class is an emoji, every image one vendor's drawing of it; the classes of the test set are never seen
in training, and a match counts only across vendors.
"""

from __future__ import annotations

from configs import common
from hap2s_jax.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config.

    Args:
      arg: comma-separated: ``loss=NAME`` (any of hap2s_jax.losses.names()), ``tiny`` (a few steps of a small
        encoder).
    """
    chosen = common.parse_arg(arg, loss="hap2s_p", tiny=False)
    config = common.get_config()
    config.name = "emoji"
    config.steps = 1900
    config.data.name = "emoji"
    config.data.image_size = (64, 64)

    config.augment.scale = (0.75, 1.25)
    config.augment.shift = 0.1
    config.augment.color_mix = 0.1

    config.encoder.name = "resnet10"
    config.encoder.width = 32
    config.encoder.stem = "small64"
    config.encoder.last_stride = 1
    config.encoder.embedding_dim = 128
    config.encoder.normalize = True

    common.set_loss(config, chosen.loss)
    if chosen.loss in ("hap2s_e", "hap2s_p", "batch_hard"):
        config.loss.margin = 0.3

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.schedule.name = "cosine"
    config.schedule.warmup_steps = 100
    config.evaluate.every_steps = 500
    config.evaluate.weights = "last"
    config.checkpoint.every_steps = 500

    if chosen.tiny:
        config.name = "emoji-tiny"
        config.steps = 6
        config.encoder.width = 8
        config.batch.classes = 8
        config.schedule.warmup_steps = 2
        config.evaluate.every_steps = 4
        config.checkpoint.every_steps = 3
        config.log.every_steps = 2
    return config
