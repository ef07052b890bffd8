"""The sections of a config: type, range, default and meaning of every key in them. See `schema` for the whole."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from hap2s_jax.evaluation.inputs import DISTANCES
from hap2s_jax.settings import Rule, Settings, at_least, below, between, one_of
from hap2s_jax.training.step import FEATURES

# Beyond 2048 pixels not even small batches fit.
_SIDES = Rule(
    lambda size: all(1 <= side <= 2048 for side in size),
    "height and width in pixels from 1 to 2048, as in 256,128",
)

_SETS = Rule(
    lambda sets: all(hasattr(entry, "keys") for entry in sets.values()),
    "a section for each data set, with data_dir and options",
)
_COLOUR = Rule(lambda colour: all(0 <= value <= 255 for value in colour), "red, green and blue from 0 to 255")


@dataclasses.dataclass(frozen=True)
class Noise(Settings):
    """Wrong training data on purpose, to study robustness; what was done stands in the workdir's noise.json."""

    section = "data.noise"
    kind: Annotated[
        str, 'labels (flipped to another class) or images (swapped for foreign ones); "" for none.'
    ] = ""
    fraction: Annotated[
        float, "Share of the training images. Validation and test stay clean.", between(0, 1)
    ] = 0.0
    seed: Annotated[int, "Which images; a larger fraction touches the same ones and more.", at_least(0)] = 0
    foreign: Annotated[str, "The data set whose training images are the foreign ones."] = "emoji"
    foreign_dir: Annotated[str | None, "Where that one lies; None for data.data_dir."] = None


@dataclasses.dataclass(frozen=True)
class Data(Settings):
    """The data set, and how its images become inputs."""

    section = "data"
    name: Annotated[str, "Which data set; `python -m hap2s_jax.check_data` lists them."] = ""
    data_dir: Annotated[
        str | None, "Where it lies; None for ~/tensorflow_datasets or $TFDS_DATA_DIR, then ./data."
    ] = None
    image_size: Annotated[tuple[int, int], "Height and width that the encoder sees, pixels.", _SIDES] = (
        256,
        128,
    )
    validation_fraction: Annotated[
        float, "Part of the training classes set aside to choose the best checkpoint by.", below(0, 1)
    ] = 0.1
    options: Annotated[dict[str, Any], 'Only some data sets have any, such as "detection" of CUHK03.'] = (
        dataclasses.field(default_factory=dict)
    )
    sources: Annotated[
        dict[str, Any],
        "Several data sets to train on, in place of data.name: a set's name -> its data_dir and options, and name "
        "where it is called otherwise. Short for sets in one directory: data.name=market1501,dukemtmc.",
        _SETS,
    ] = dataclasses.field(default_factory=dict)
    parts: Annotated[
        tuple[str, ...],
        "Which parts are trained on; train,query,gallery takes all images, and evaluate.on must name other sets.",
    ] = ("train",)
    on_unreadable: Annotated[
        str, "For an image that cannot be decoded: error names it and ends, skip names it and goes on."
    ] = "error"
    exif: Annotated[bool, "Turn images upright as EXIF says; boxes are then those of the upright image."] = (
        True
    )
    background: Annotated[
        tuple[int, int, int] | None,
        "Colour on which transparent images are laid; None drops the transparency.",
        _COLOUR,
    ] = (255, 255, 255)
    max_pixels: Annotated[
        int,
        "An image whose header promises more is not decoded and counts as one that cannot be.",
        at_least(1),
    ] = 2**28
    num_workers: Annotated[
        int | None, "Threads that read and decode; None for as many as there are cores.", at_least(1)
    ] = None
    cache_bytes: Annotated[
        int,
        "Decoded images are kept in memory when all of a part fit into this many bytes; 0 keeps none.",
        at_least(0),
    ] = 512 * 2**20
    cache_dir: Annotated[
        str | None, "Folder for packed images out of a bucket; None for the system's temporary one."
    ] = None
    cache_gb: Annotated[
        float, "How many GB of each packed data set, at most, lie there during a run.", at_least(0.1)
    ] = 20.0
    cached_views: Annotated[
        int,
        "Views of each training image that a frozen encoder makes features of: 1 is the centre, as in evaluation; more "
        "are random ones by `augment`, fixed once and for all.",
        at_least(1),
    ] = 1
    quarter_turns: Annotated[
        bool,
        "Training images turned by 90, 180 and 270 degrees too, as classes of their own: four times as many.",
    ] = False
    noise: Noise = dataclasses.field(default_factory=Noise)


@dataclasses.dataclass(frozen=True)
class Batch(Settings):
    """A batch is P classes with K images each."""

    section = "batch"
    classes: Annotated[int, "P.", at_least(1)] = 16
    images_per_class: Annotated[int, "K.", at_least(1)] = 4
    pieces: Annotated[
        int,
        "Pieces in which a device's share goes through the encoder one after another, with the gradient of the whole "
        "batch and the memory of one piece, for one forward pass more. Unfrozen BN takes its statistics from a piece.",
        at_least(1),
    ] = 1
    mixing: Annotated[
        str,
        "Shares of several data sets in a batch: classes (every class alike), sets (every set alike), or weights such "
        "as market1501=2,dukemtmc=1.",
    ] = "classes"
    sets: Annotated[
        str, "Whether a batch holds classes of several sets, or is of one at a time.", one_of("mixed", "one")
    ] = "mixed"


@dataclasses.dataclass(frozen=True)
class Encoder(Settings):
    """Arguments of `hap2s_jax.models.create`; an encoder of your own takes those that its class names."""

    section = "encoder"
    name: Annotated[str, "One of hap2s_jax.models.names(), or package.module:Class."] = "resnet50"
    width: Annotated[int | None, "Channels of the first stage; None for the published 64."] = None
    frozen: Annotated[
        bool,
        "Whether the trunk is kept as it is: each image goes through it once, and the head is trained on the features "
        "that are kept in the working directory.",
    ] = False
    frozen_blocks: Annotated[
        int, "First blocks of a transformer, and all before them, that are kept from training.", at_least(0)
    ] = 0
    remat: Annotated[
        bool, "Whether a transformer's blocks recompute their insides instead of keeping them."
    ] = False
    drop_path: Annotated[
        float,
        "Rate at which a transformer's last block leaves out its branches in training, image by image; it rises from 0 "
        "at the first block (stochastic depth, Huang et al. 2016).",
        below(0, 1),
    ] = 0.0
    stem: Annotated[str, "imagenet, small64 or small32: how soon the stem shrinks the image."] = "imagenet"
    last_stride: Annotated[
        int, "1 keeps the last stage's map as large as the one before, as re-identification has it."
    ] = 2
    pooling: Annotated[
        str, "gap, gem, gap+gmp or grid2; of a transformer cls, gap, cls+gap or, for SigLIP, attention."
    ] = "gap"
    hidden_dim: Annotated[int, "Hidden layer with BN and ReLU before the embedding; 0 for none."] = 0
    embedding_dim: Annotated[int, "Dimensions of an embedding; 0 for the pooled features themselves."] = 128
    embedding_bn: Annotated[bool, "Batch normalisation of the embedding before it is scaled to length 1."] = (
        False
    )
    normalize: Annotated[bool, "Embeddings of length 1."] = False
    bnneck: Annotated[
        bool,
        "Batch normalisation after the embedding, for the second loss and for retrieval (Luo et al. 2019).",
    ] = False
    freeze_bn_stats: Annotated[bool, "Keep the running statistics of batch normalisation as they are."] = (
        False
    )
    freeze_bn_affine: Annotated[bool, "Keep the scale and bias of batch normalisation as they are."] = False
    remat_stages: Annotated[
        tuple[int, ...], "Stages (1 to 4) that recompute instead of keeping activations."
    ] = ()
    dtype: Annotated[
        str, "float32, bfloat16 or float16; parameters, statistics and distances stay float32."
    ] = "float32"


@dataclasses.dataclass(frozen=True)
class Pretrained(Settings):
    """The source of the encoder's first weights; a resumed run ignores it."""

    section = "pretrained"
    source: Annotated[
        str,
        "A .safetensors or .pth file, a hub name such as hf://timm/resnet50.tv_in1k, or the working directory of "
        'another run; "" starts at random.',
    ] = ""
    offline: Annotated[bool, "Take hub files from this machine's cache alone."] = False
    cache_dir: Annotated[str | None, "That cache; None for huggingface_hub's own."] = None


@dataclasses.dataclass(frozen=True)
class LossSchedule(Settings):
    """Anneals one number of the loss, such as sigma, from its configured value to `final`."""

    section = "loss_schedule"
    hyperparameter: Annotated[str, 'Which number; "" for none.'] = ""
    name: Annotated[str, "constant, linear, cosine or exponential (equal ratios)."] = "linear"
    final: Annotated[float, "The last value."] = 1.0
    begin: Annotated[float, "Part of the run after which it begins to change."] = 0.0
    end: Annotated[float, "Part of the run after which it has its last value."] = 1.0


@dataclasses.dataclass(frozen=True)
class Evaluate(Settings):
    """When and how embeddings are judged."""

    section = "evaluate"
    every_steps: Annotated[int, "Updates between two evaluations on the validation classes.", at_least(1)] = (
        1000
    )
    batch_size: Annotated[int, "Images embedded at a time.", at_least(1)] = 128
    enlarge: Annotated[
        float,
        'The size to which images are resized, over the centre crop that is taken; 256 / 224 for "256, crop 224".',
        between(1, 16),
    ] = 1.0
    keep_aspect: Annotated[bool, "Whether margins are cut rather than the image squeezed."] = False
    distance: Annotated[str, "How embeddings are compared.", one_of(*DISTANCES)] = "euclidean"
    feature: Annotated[
        str,
        "The vector that is compared: retrieval (after BNNeck where there is one), embedding (before it) or features "
        "(pooled, before the head).",
        one_of(*FEATURES),
    ] = "retrieval"
    flip: Annotated[bool, "Average an image's embedding with its mirror image's."] = False
    five_crops: Annotated[bool, "Average over the centre and the four corners."] = False
    zooms: Annotated[
        bool, "Average over further sizes of the image (see hap2s_jax.evaluation.test_time)."
    ] = False
    crop: Annotated[float, "Side of those crops, as a share of the image's."] = 0.875
    on: Annotated[
        dict[str, Any],
        "Other data sets to test on, as in data.sources; none for those that are trained on.",
        _SETS,
    ] = dataclasses.field(default_factory=dict)
    untrained: Annotated[bool, "Whether to measure the untrained encoder too."] = True
    weights: Annotated[
        str,
        "Whose weights' figures are reported: the best on validation, or the last.",
        one_of("best", "last"),
    ] = "best"


@dataclasses.dataclass(frozen=True)
class Checkpoint(Settings):
    """When a run saves its state, and which states it keeps."""

    section = "checkpoint"
    every_steps: Annotated[int, "Updates between two checkpoints.", at_least(1)] = 1000
    keep_last: Annotated[int, "How many of the newest to keep.", at_least(1)] = 2
    keep_best: Annotated[int, "How many of the best to keep.", at_least(0)] = 1
    best_metric: Annotated[
        str, "Larger is better. Always of the validation classes, never of test classes."
    ] = "mAP"


@dataclasses.dataclass(frozen=True)
class Log(Settings):
    """The logs of a run."""

    section = "log"
    every_steps: Annotated[int, "Updates between two lines of metrics.jsonl.", at_least(1)] = 50
    tensorboard: Annotated[bool, "Whether to write TensorBoard's event files."] = True
    profile_steps: Annotated[
        tuple[int, int] | None,
        "First and last update of a trace by jax.profiler, written to profile/ in the working directory.",
        Rule(lambda steps: 1 <= steps[0] <= steps[1], "two steps, 1 or more, in order"),
    ] = None
    wandb: Annotated[
        str, 'Project of Weights & Biases to log to as well; "" for none. WANDB_MODE=offline keeps it here.'
    ] = ""
    mlflow: Annotated[
        str, 'Experiment of MLflow to log to as well; "" for none. MLFLOW_TRACKING_URI says where.'
    ] = ""
