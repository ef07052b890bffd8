"""Every key of a config, with its meaning; the other configs start from here and change a handful.

`get_config` of this file is not runnable: it names no data set.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections
from ml_collections import config_dict

from hap2s_jax import losses
from hap2s_jax.data.tf.augment import Augmentation
from hap2s_jax.errors import UserError, unknown_name
from hap2s_jax.run.config import Config


def get_config() -> Config:
    """The defaults: person re-identification with a ResNet-50 as most public recipes have it."""
    config: Config = ml_collections.ConfigDict()

    # Names the default working directory, runs/<name>.
    config.name = "common"
    # Decides the initial weights, the order of the classes and every random draw of the augmentation.
    config.seed = 0
    # Updates of the weights in the whole run.
    config.steps = 20_000
    # How many devices to use, a multiple of which the batch must be; None for all. A CPU is split into as many, for
    # None one a core.
    config.num_devices = config_dict.placeholder(int)
    # Folder of compiled programs that later runs reuse; None for ~/.cache/hap2s_jax, "" for none.
    config.compilation_cache = config_dict.placeholder(str)

    config.data = ml_collections.ConfigDict()
    # Which data set; `python -m hap2s_jax.check_data` lists them.
    config.data.name = ""
    # Where it lies; None for ~/tensorflow_datasets or $TFDS_DATA_DIR, then ./data.
    config.data.data_dir = config_dict.placeholder(str)
    # Height and width that the encoder sees, pixels.
    config.data.image_size = (256, 128)
    # Part of the training classes set aside to choose the best checkpoint by.
    config.data.validation_fraction = 0.1
    # What only some data sets have, as "detection" of CUHK03.
    config.data.options = ml_collections.ConfigDict()
    # An image that cannot be decoded: "error" names it and ends, "skip" names it and goes on.
    config.data.on_unreadable = "error"
    # Threads that read and decode; None for as many as there are cores.
    config.data.num_workers = config_dict.placeholder(int)
    # Decoded images are kept in memory when all of a part fit into this many bytes; 0 keeps none.
    config.data.cache_bytes = 512 * 2**20

    # Training images turned by 90, 180 and 270 degrees too, as classes of their own: four times as many.
    config.data.quarter_turns = False
    # Wrong training data on purpose, to study robustness; what was done stands in the workdir's noise.json.
    config.data.noise = ml_collections.ConfigDict()
    # labels (flipped to another class) or images (swapped for foreign ones); "" for none.
    config.data.noise.kind = ""
    # Share of the training images. Validation and test stay clean.
    config.data.noise.fraction = 0.0
    # Which images; a larger fraction touches the same ones and more.
    config.data.noise.seed = 0
    # The data set whose training images are the foreign ones, and where it lies (None for data.data_dir).
    config.data.noise.foreign = "emoji"
    config.data.noise.foreign_dir = config_dict.placeholder(str)

    # A batch is P classes with K images each.
    config.batch = ml_collections.ConfigDict()
    config.batch.classes = 16
    config.batch.images_per_class = 4
    # Pieces in which a device's share goes through the encoder one after another, with the gradient of the whole batch
    # and the memory of one piece, for one forward pass more. Unfrozen BN takes its statistics from a piece.
    config.batch.pieces = 1

    # Random changes to training images; what each field means stands at the class.
    config.augment = ml_collections.ConfigDict(dataclasses.asdict(Augmentation()))

    # Arguments of hap2s_jax.models.create.
    config.encoder = ml_collections.ConfigDict()
    # hap2s_jax.models.names()
    config.encoder.name = "resnet50"
    # Channels of the first stage; None for the published 64.
    config.encoder.width = config_dict.placeholder(int)
    # imagenet, small64 or small32: how soon the stem shrinks the image.
    config.encoder.stem = "imagenet"
    # 1 keeps the last stage's map as large as the one before, as re-identification has it.
    config.encoder.last_stride = 2
    # gap, gem, gap+gmp, grid2
    config.encoder.pooling = "gap"
    # Hidden layer with BN and ReLU before the embedding; 0 for none.
    config.encoder.hidden_dim = 0
    config.encoder.embedding_dim = 128
    # Batch normalisation of the embedding before it is scaled to length 1.
    config.encoder.embedding_bn = False
    # Embeddings of length 1.
    config.encoder.normalize = False
    # Batch normalisation after the embedding, for the second loss and for retrieval (Luo et al. 2019).
    config.encoder.bnneck = False
    # Keep the running statistics, or scale and bias, of batch normalisation as they are.
    config.encoder.freeze_bn_stats = False
    config.encoder.freeze_bn_affine = False
    # Stages (1 to 4) that recompute instead of keeping activations.
    config.encoder.remat_stages = ()
    # float32, bfloat16 or float16; parameters, statistics and distances stay float32.
    config.encoder.dtype = "float32"

    # Where the encoder's first weights come from; a run that is resumed does not look here.
    config.pretrained = ml_collections.ConfigDict()
    # A .safetensors or .pth file, a hub name as hf://timm/resnet50.tv_in1k, or the working directory of another run;
    # "" starts at random.
    config.pretrained.source = ""
    # Take what is on the hub from this machine's cache alone.
    config.pretrained.offline = False
    # That cache; None for huggingface_hub's own.
    config.pretrained.cache_dir = config_dict.placeholder(str)

    # Name and hyperparameters of the loss; set both with set_loss.
    set_loss(config, "hap2s_e")

    # Anneals one number of the loss, as sigma, from its value above to `final`.
    config.loss_schedule = ml_collections.ConfigDict()
    # Which; "" for none.
    config.loss_schedule.hyperparameter = ""
    # constant, linear, cosine, exponential (equal ratios)
    config.loss_schedule.name = "linear"
    config.loss_schedule.final = 1.0
    # Parts of the run between which it changes.
    config.loss_schedule.begin = 0.0
    config.loss_schedule.end = 1.0

    # A second loss that is added, most often "softmax"; "" for none. Set with set_auxiliary.
    config.auxiliary = ml_collections.ConfigDict({"name": "", "weight": 1.0})

    # Arguments of hap2s_jax.training.optimizer.create_optimizer.
    config.optimizer = ml_collections.ConfigDict()
    # adabelief, adagrad, adam, adamw, amsgrad, lamb, lars, lion, nadam, nadamw, radam, rmsprop, sgd, yogi
    config.optimizer.name = "adam"
    # The peak of the schedule.
    config.optimizer.learning_rate = 3e-4
    # Decoupled for adamw, nadamw, lamb and lion, within the trust ratio for lars, an L2 penalty for the others.
    config.optimizer.weight_decay = 0.0
    # Whether it holds for biases and normalisation layers too.
    config.optimizer.decay_biases = False
    # Largest global norm of the gradient; 0 does not clip.
    config.optimizer.clip_norm = 0.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    # Of sgd, rmsprop and lars, and whether it is Nesterov's.
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    # Learning rate of the trunk over that of the head, 0.1 for instance where the trunk has been trained; 0 keeps it
    # (but for its batch statistics, unless encoder.freeze_bn_stats).
    config.optimizer.trunk_factor = 1.0
    # Learning rate of the loss's own arrays (a classifier, proxies) over that of the head.
    config.optimizer.loss_factor = 1.0
    # Parameters that stay as they are: regular expressions such as "encoder/trunk/stem_.*" or "encoder/trunk/stage1.*".
    config.optimizer.frozen = ()

    # Arguments of hap2s_jax.training.optimizer.create_schedule.
    config.schedule = ml_collections.ConfigDict()
    # constant, cosine, exponential, polynomial, step
    config.schedule.name = "cosine"
    # Updates over which the rate rises in a line to its peak; the first one has 1 / (warmup_steps + 1) of it.
    config.schedule.warmup_steps = 0
    # Last rate over peak (cosine, exponential, polynomial).
    config.schedule.final_factor = 0.001
    # Where the exponential decay begins, as a part of the steps after the warm-up.
    config.schedule.decay_from = 0.6
    # Where the rate is multiplied by step_factor (step), as parts of the steps after the warm-up: with a tenth of the
    # run for warm-up, 30% and 60% of the run are (2/9, 5/9).
    config.schedule.boundaries = (0.33, 0.58)
    config.schedule.step_factor = 0.1
    # Of the polynomial; 1 is a straight line.
    config.schedule.power = 1.0

    # Decay of the moving average of the weights, with which evaluation is then done; 0 for none.
    config.ema_decay = 0.0

    config.evaluate = ml_collections.ConfigDict()
    # Updates between two evaluations on the validation classes.
    config.evaluate.every_steps = 1000
    config.evaluate.batch_size = 128
    # The size to which images are resized, over the centre crop that is taken; 256 / 224 for "256, crop 224".
    config.evaluate.enlarge = 1.0
    # Whether margins are cut rather than the image squeezed.
    config.evaluate.keep_aspect = False
    # How embeddings are compared: "euclidean" or "cosine".
    config.evaluate.distance = "euclidean"
    # What is compared: "retrieval" (after BNNeck where there is one), "embedding" (before it), "features" (pooled,
    # before the head).
    config.evaluate.feature = "retrieval"
    # Embeddings as means over views of an image: with its mirror image, over the centre and the corners, at further
    # sizes (see hap2s_jax.evaluation.test_time).
    config.evaluate.flip = False
    config.evaluate.five_crops = False
    config.evaluate.zooms = False
    # Side of those crops, as a share of the image's.
    config.evaluate.crop = 0.875
    # Whether to measure the untrained encoder too.
    config.evaluate.untrained = True
    # Which weights the final figures on the test classes are of: "best" (on validation) or "last".
    config.evaluate.weights = "best"

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1
    # Larger is better. Always of the validation classes, never of test classes.
    config.checkpoint.best_metric = "mAP"

    config.log = ml_collections.ConfigDict()
    # Updates between two lines of metrics.jsonl.
    config.log.every_steps = 50
    # Whether to write TensorBoard's event files.
    config.log.tensorboard = True
    return config


def set_loss(config: Config, name: str, **hyperparameters: object) -> None:
    """Chooses the loss, with all its hyperparameters at their defaults but those given."""
    config.loss = _loss(name, hyperparameters)


def set_auxiliary(config: Config, name: str, weight: float, **hyperparameters: object) -> None:
    """Adds a second loss, such as "softmax" for HAP2S and identification together."""
    config.auxiliary = _loss(name, hyperparameters)
    config.auxiliary.weight = weight


def _loss(name: str, hyperparameters: dict[str, object]) -> Config:
    values = losses.hyperparameters(name)
    unknown = sorted(set(hyperparameters) - set(values))
    if unknown:
        raise unknown_name(f"hyperparameter of {name}", unknown[0], values)
    return ml_collections.ConfigDict({"name": name, **values, **hyperparameters})


def parse_arg(arg: str | None, **defaults: object) -> Config:
    """Reads the string after the colon of ``--config=FILE:ARG``, such as ``tiny,loss=hap2s_e``.

    Args:
      arg: comma-separated ``key=value``, or ``key`` alone for a boolean.
      **defaults: the known keys; a default's type is the value's type.

    Raises:
      UserError: for an unknown key or a value of the wrong type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, has_value, text = item.partition("=")
        if key not in defaults:
            raise unknown_name("config argument", key, defaults)
        default = defaults[key]
        try:
            if isinstance(default, bool):
                values[key] = {"": True, "true": True, "1": True, "false": False, "0": False}[text.lower()]
            elif not has_value:
                raise ValueError
            else:
                convert: Any = type(default)
                values[key] = convert(text)
        except (KeyError, ValueError):
            raise UserError(
                f"config argument {item!r}: {key} needs a {type(default).__name__}, as in {key}={default}"
            ) from None
    return ml_collections.ConfigDict(values)
