"""What the class retrieval configs share: the common public recipe for fine-grained images.

ResNet-50 from ImageNet's weights with the statistics of its batch normalisation kept, an embedding of length 1 straight
from the pooled features, 224x224 crops out of a 256-pixel side, mirrored at random, Adam at 1e-5 for the trunk. That
the new layer learns ten times as fast is ours.
"""

from __future__ import annotations

from hap2s_jax.recipes import common
from hap2s_jax.recipes.reid import IMAGENET, SWITCHES, switch
from hap2s_jax.run.config import Config


def recipe(name: str, arg: str | None, *, steps: int, classes: int, images_per_class: int) -> Config:
    """The config for the data set `name`.

    Args:
      name: as in hap2s_jax.data.registry.
      arg: comma-separated: ``loss=NAME`` (any of hap2s_jax.losses.names()), ``autoaugment`` (half of the images by
        AutoAugment's policy), ``ema`` (evaluate a moving average of the weights), ``scratch`` (weights start at
        random), ``tiny`` (a few steps of a small encoder on whatever data there is).
      steps: updates.
      classes: P.
      images_per_class: K.
    """
    chosen = common.parse_arg(arg, loss="hap2s_e", **SWITCHES)
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
    # Without cameras there is no mAP of the re-identification kind to choose by.
    config.checkpoint.best_metric = "map@r"
    switch(config, chosen, auto_augment=0.5, tiny_size=(64, 64))
    return config
