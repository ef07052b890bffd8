"""Five recipes for person re-identification, each a handful of lines over `hap2s_jax.recipes.common`.

`paper`, the default, is HAP2S alone under TriNet's public schedule; its head (FC 1024 with BN and ReLU, FC 128) is a
reader's note on the HAP2S paper. `trinet` is the same with the loss that TriNet had. `bot` and `agw` are two strong
baselines with HAP2S where they have a triplet loss, beside identification, and so is `vit`, with a transformer. All
start from ImageNet's weights; the functions below follow public code, except where they say that something is ours.

    python -m hap2s_jax.main --config=configs/market1501.py:bot,autoaugment,ema --config.data.data_dir=DIR
"""

from __future__ import annotations

import math

from hap2s_jax.data import registry
from hap2s_jax.errors import UserError
from hap2s_jax.recipes import common
from hap2s_jax.run.config import Config

IMAGENET = "hf://timm/resnet50.tv_in1k"
IMAGENET_VIT = "hf://timm/vit_base_patch16_224.orig_in21k_ft_in1k"
# Options of every recipe besides its loss, all off.
SWITCHES = dict.fromkeys(("autoaugment", "ema", "scratch", "tiny"), False)


def recipe(name: str, arg: str | None) -> Config:
    """The config for the data set `name`.

    Args:
      name: as in hap2s_jax.data.registry.
      arg: comma-separated: a recipe (``paper``, ``trinet``, ``bot``, ``agw`` or ``vit``), ``loss=NAME`` (any of
        hap2s_jax.losses.names(), in place of the recipe's), ``autoaugment`` (a tenth of the images by AutoAugment's
        policy), ``ema`` (evaluate a moving average of the weights), ``scratch`` (weights start at random), ``tiny`` (a
        few steps of a small encoder on whatever data there is).
    """
    chosen = common.parse_arg(arg, loss="", **dict.fromkeys(RECIPES, False), **SWITCHES)
    named = [key for key in RECIPES if chosen[key]] or ["paper"]
    if len(named) > 1:
        raise UserError(f"config argument {arg!r} names several recipes; choose one of {', '.join(RECIPES)}")

    config = common.get_config()
    config.name = name if named == ["paper"] else f"{name}-{named[0]}"
    config.data.name = name
    config.data.image_size = (256, 128)
    config.augment.flip = True
    config.encoder.name = "resnet50"
    config.pretrained.source = IMAGENET
    RECIPES[named[0]](config)

    if chosen.loss:
        common.set_loss(config, chosen.loss)
    switch(config, chosen, auto_augment=0.1, tiny_size=(64, 32))
    return config


def switch(config: Config, chosen: Config, *, auto_augment: float, tiny_size: tuple[int, int]) -> None:
    """Changes a recipe as the `SWITCHES` that were given say."""
    if chosen.autoaugment:
        config.augment.auto_augment = auto_augment
    if chosen.ema:
        config.ema_decay = 0.999
    if chosen.scratch:
        start_at_random(config)
    if chosen.tiny:
        shrink(config, tiny_size)


def paper(config: Config) -> None:
    """HAP2S alone: 18 people x 4 images, 256x128 out of 288x144, Adam at 3e-4, falling exponentially to a thousandth
    from update 15,000 of 25,000 on (Hermans et al. 2017's schedule; the paper's own is not known to us)."""
    config.steps = 25_000
    config.batch.classes, config.batch.images_per_class = 18, 4
    config.augment.crop = "random"
    config.augment.enlarge = config.evaluate.enlarge = 1.125
    config.encoder.hidden_dim = 1024
    config.encoder.embedding_dim = 128
    common.set_loss(config, "hap2s_e")
    config.optimizer.learning_rate = 3e-4
    config.schedule.name = "exponential"
    config.schedule.decay_from = 0.6
    config.schedule.final_factor = 0.001


def trinet(config: Config) -> None:
    """Hermans et al. 2017, "In Defense of the Triplet Loss": batch-hard with the soft margin."""
    paper(config)
    common.set_loss(config, "batch_hard", soft_margin=True, margin=0.0)


def bot(config: Config) -> None:
    """Luo et al. 2019, "Bag of Tricks": last stride 1, the pooled features as embedding, BNNeck, identification with
    smoothed labels, random erasing, warm-up over 10 of 120 passes, a tenth of the rate at 40 and at 70. HAP2S stands
    in the triplet's place, at its margin of 0.3; their centre loss is left out, and biases and normalisation layers
    do not decay. A pass is over the published training images; since `data.validation_fraction` of the classes is set
    aside here, the rest is seen a ninth more often."""
    config.batch.classes, config.batch.images_per_class = 16, 4
    images = registry.entry(config.data.name).counts["train"]
    one_pass = math.ceil((max(images) if isinstance(images, tuple) else images) / 64)
    config.steps = 120 * one_pass
    config.augment.crop = "pad"
    config.augment.erase_probability = 0.5
    config.encoder.last_stride = 1
    config.encoder.embedding_dim = 0
    config.encoder.bnneck = True
    common.set_loss(config, "hap2s_e")
    common.set_auxiliary(config, "softmax", weight=1.0, label_smoothing=0.1, use_bias=False)
    config.optimizer.learning_rate = 3.5e-4
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "step"
    config.schedule.warmup_steps = 10 * one_pass
    config.schedule.boundaries = (30 / 110, 60 / 110)
    config.evaluate.distance = "cosine"


def agw(config: Config) -> None:
    """Ye et al. 2021, "Deep Learning for Person Re-identification": BoT with GeM pooling and a triplet of softly
    weighted sets, which is HAP2S_E of sigma 1 with a soft margin and the anchor among its own positives. Their
    non-local blocks are left out."""
    bot(config)
    config.encoder.pooling = "gem"
    common.set_loss(config, "weighted_regularised_triplet")


def vit(config: Config) -> None:
    """He et al. 2021, "TransReID", its baseline: BoT with a ViT-B/16 from ImageNet-21k's weights, the class token for
    the features, SGD at 0.008 falling along a cosine after five of 120 passes, a decay of 1e-4, no smoothing of labels,
    and the embedding before the neck at test. HAP2S with a soft margin stands in the triplet's place. Left out are
    their overlapping patches, camera embeddings and the doubled rate of biases, and biases and normalisation layers do
    not decay."""
    bot(config)
    config.encoder.name = "vit_b16"
    config.encoder.pooling = "cls"
    config.encoder.drop_path = 0.1
    config.encoder.last_stride = 2
    config.pretrained.source = IMAGENET_VIT
    common.set_loss(config, "hap2s_e", soft_margin=True, margin=0.0)
    common.set_auxiliary(config, "softmax", weight=1.0, label_smoothing=0.0, use_bias=False)
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.008
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "cosine"
    config.schedule.warmup_steps //= 2
    config.evaluate.feature = "embedding"


RECIPES = {"paper": paper, "trinet": trinet, "bot": bot, "agw": agw, "vit": vit}


def start_at_random(config: Config) -> None:
    """Without imported weights there is nothing to spare: one rate for all, batch statistics of their own."""
    config.pretrained.source = ""
    config.optimizer.trunk_factor = 1.0
    config.encoder.freeze_bn_stats = config.encoder.freeze_bn_affine = False


def shrink(config: Config, image_size: tuple[int, int]) -> None:
    """A few steps of a small encoder, for tests on small data."""
    config.name += "-tiny"
    config.steps = 3
    config.data.image_size = image_size
    config.data.validation_fraction = 0.4
    config.batch.classes, config.batch.images_per_class = 2, 4
    config.pretrained.source = ""
    if not config.encoder.name.startswith("resnet"):
        config.encoder.pooling = "gap"
        config.optimizer.layer_decay = 1.0
        config.optimizer.head_steps = min(config.optimizer.head_steps, 1)
    config.encoder.name = "resnet10"
    config.encoder.width = 8
    config.encoder.hidden_dim = min(config.encoder.hidden_dim, 16)
    config.schedule.warmup_steps = min(config.schedule.warmup_steps, 1)
    config.evaluate.every_steps = 2
    config.evaluate.batch_size = 16
    config.checkpoint.every_steps = 2
    config.log.every_steps = 1
