"""The recipe of the class retrieval configs: the common public one for fine-grained images.

ResNet-50 from ImageNet's weights with the statistics of its batch normalisation kept, an embedding of length 1 straight
from the pooled features, 224x224 crops out of a 256-pixel side, mirrored at random, Adam at 1e-5 for the trunk. That
the new layer learns ten times as fast is ours.
"""

from __future__ import annotations

from hap2s_jax.data.augment import Augmentation
from hap2s_jax.recipes import common
from hap2s_jax.recipes.reid import IMAGENET, SWITCHES, switch
from hap2s_jax.run.config import Config
from hap2s_jax.settings import fields

DINOV2 = "hf://facebook/dinov2-small"


def recipe(name: str, arg: str | None, *, steps: int, classes: int, images_per_class: int) -> Config:
    """The config for the data set `name`.

    Args:
      name: as in hap2s_jax.data.registry.
      arg: comma-separated: ``loss=NAME`` (any of hap2s_jax.losses.names()), ``dinov2`` (see `dinov2`),
        ``autoaugment`` (half of the images by AutoAugment's policy), ``ema`` (evaluate a moving average of the
        weights), ``scratch`` (weights start at random), ``tiny`` (a few steps of a small encoder on whatever data there
        is).
      steps: updates.
      classes: P.
      images_per_class: K.
    """
    chosen = common.parse_arg(arg, loss="hap2s_e", dinov2=False, **SWITCHES)
    config = common.get_config()
    config.name = name
    config.steps = steps
    config.data.name = name
    config.data.image_size = (224, 224)
    config.batch.classes, config.batch.images_per_class = classes, images_per_class
    config.augment.crop = "resized"
    config.augment.crop_area = (0.16, 1.0)
    config.augment.flip = True
    # Resize the shorter side to 256, centre crop 224.
    config.evaluate.keep_aspect = True
    config.evaluate.enlarge = 256 / 224

    config.encoder.name = "resnet50"
    config.encoder.embedding_dim = 128
    config.encoder.normalize = True
    config.encoder.freeze_bn_stats = True
    config.pretrained.source = IMAGENET
    common.set_loss(config, chosen.loss)

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.trunk_factor = 0.1
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "constant"
    # Without cameras there is no re-identification mAP to choose the best checkpoint by.
    config.checkpoint.best_metric = "map@r"
    if chosen.dinov2:
        dinov2(config)
    switch(config, chosen, auto_augment=0.5, tiny_size=(64, 64))
    return config


def dinov2(config: Config) -> None:
    """DINOv2's ViT-S/14 (Oquab et al. 2023), its class token as the features, fine-tuned as Ermolov et al. 2022
    ("Hyperbolic Vision Transformers") do it with DINO's: AdamW at 1e-5, random crops of at least a fifth of the image,
    mirrored, 128 dimensions of length 1, gradients clipped at 3, a decay of 0.01 (torch's default). HAP2S in place of
    their loss is ours, and so are the layer-wise rates, the new layer's tenfold rate, and its 200 updates alone."""
    config.name += "-dinov2"
    config.encoder.name = "dinov2_vits14"
    config.encoder.pooling = "cls"
    config.encoder.freeze_bn_stats = False
    config.pretrained.source = DINOV2
    config.augment.crop_area = (0.2, 1.0)
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 3.0
    config.optimizer.layer_decay = 0.8
    config.optimizer.head_steps = 200


def freeze(config: Config) -> None:
    """The same encoder with its trunk frozen: one feature of each image's centre, a new layer trained by AdamW at 1e-3.
    All of it is ours."""
    config.encoder.frozen = True
    config.encoder.freeze_bn_stats = False
    for field in fields(Augmentation):
        config.augment[field.name] = field.default
    config.optimizer.learning_rate = 1e-3
    config.optimizer.trunk_factor = config.optimizer.layer_decay = 1.0
    config.optimizer.head_steps = 0
