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
    """Wrong training data on purpose, to study robustness; the workdir's noise.json records it."""

    section = "data.noise"
    kind: Annotated[
        str, '"labels" flips labels to another class, "images" swaps images for foreign ones; "" for none.'
    ] = ""
    fraction: Annotated[
        float, "Share of the training images to change. Validation and test stay clean.", between(0, 1)
    ] = 0.0
    seed: Annotated[
        int, "Chooses the images; a larger fraction includes those of a smaller one.", at_least(0)
    ] = 0
    foreign: Annotated[str, "The data set that foreign images are taken from."] = "emoji"
    foreign_dir: Annotated[str | None, "The folder of that data set; None for data.data_dir."] = None


@dataclasses.dataclass(frozen=True)
class Data(Settings):
    """The data set, and how its images become inputs."""

    section = "data"
    name: Annotated[str, "The data set; `python -m hap2s_jax.check_data` lists them."] = ""
    data_dir: Annotated[
        str | None,
        "The folder of the data set; None for ~/tensorflow_datasets or $TFDS_DATA_DIR, then ./data.",
    ] = None
    image_size: Annotated[tuple[int, int], "Height and width of the encoder's input, pixels.", _SIDES] = (
        256,
        128,
    )
    validation_fraction: Annotated[
        float, "Share of the training classes held out to choose the best checkpoint.", below(0, 1)
    ] = 0.1
    options: Annotated[
        dict[str, Any], 'Options of the data set, if it has any, such as "detection" of CUHK03.'
    ] = dataclasses.field(default_factory=dict)
    sources: Annotated[
        dict[str, Any],
        "Several data sets to train on, in place of data.name: maps a name to its data_dir and options, and to the"
        " data set's name if that differs. For data sets in one directory, write data.name=market1501,dukemtmc.",
        _SETS,
    ] = dataclasses.field(default_factory=dict)
    parts: Annotated[
        tuple[str, ...],
        "The parts to train on; train,query,gallery takes all images, and then evaluate.on must name other data "
        "sets.",
    ] = ("train",)
    on_unreadable: Annotated[
        str, 'If an image cannot be decoded: "error" names it and stops, "skip" names it and continues.'
    ] = "error"
    exif: Annotated[
        bool, "Turn images upright by their EXIF orientation; boxes are then in pixels of the upright image."
    ] = True
    background: Annotated[
        tuple[int, int, int] | None,
        "Colour on which transparent images are laid; None drops the transparency.",
        _COLOUR,
    ] = (255, 255, 255)
    max_pixels: Annotated[
        int,
        "An image whose header claims more pixels counts as unreadable and is not decoded.",
        at_least(1),
    ] = 2**28
    num_workers: Annotated[
        int | None, "Threads that read and decode images; None for one per core.", at_least(1)
    ] = None
    cache_bytes: Annotated[
        int,
        "Keep the decoded images of a part in memory if all of them fit into this many bytes; 0 keeps none.",
        at_least(0),
    ] = 512 * 2**20
    cache_dir: Annotated[
        str | None, "Folder that caches images fetched from a bucket; None for the system's temporary folder."
    ] = None
    cache_gb: Annotated[
        float, "Largest size of that cache in GB, for each packed data set.", at_least(0.1)
    ] = 20.0
    cached_views: Annotated[
        int,
        "Views of each training image for which a frozen encoder keeps features: 1 is the centre, as in "
        "evaluation; more are random views by `augment`, chosen once.",
        at_least(1),
    ] = 1
    quarter_turns: Annotated[
        bool,
        "Add training images turned by 90, 180 and 270 degrees as further classes: four times as many.",
    ] = False
    noise: Noise = dataclasses.field(default_factory=Noise)


@dataclasses.dataclass(frozen=True)
class Batch(Settings):
    """A batch is P classes with K images each."""

    section = "batch"
    classes: Annotated[int, "Number of classes in a batch (P).", at_least(1)] = 16
    images_per_class: Annotated[int, "Images of each class in a batch (K).", at_least(1)] = 4
    pieces: Annotated[
        int,
        "Encode a device's share of the batch in this many micro-batches, with the gradient of the whole batch "
        "(GradCache): less memory, one more forward pass. See docs/pods.md.",
        at_least(1),
    ] = 1
    mixing: Annotated[
        str,
        'How several data sets share a batch: "classes" draws every class equally often, "sets" every data set; or'
        " weights such as market1501=2,dukemtmc=1.",
    ] = "classes"
    sets: Annotated[
        str, "Whether a batch mixes several data sets or comes from one.", one_of("mixed", "one")
    ] = "mixed"


@dataclasses.dataclass(frozen=True)
class Encoder(Settings):
    """Arguments of `hap2s_jax.models.create`; an encoder of your own takes those that its class names."""

    section = "encoder"
    name: Annotated[str, "One of hap2s_jax.models.names(), or package.module:Class."] = "resnet50"
    width: Annotated[int | None, "Channels of the first stage; None for the published 64."] = None
    frozen: Annotated[
        bool,
        "Keep the backbone fixed: each image goes through it once, and the head is trained on features kept in the "
        "working directory.",
    ] = False
    frozen_blocks: Annotated[
        int, "Keep this many first blocks of a transformer fixed, and all before them.", at_least(0)
    ] = 0
    remat: Annotated[bool, "Recompute a transformer's blocks in the backward pass, to save memory."] = False
    drop_path: Annotated[
        float,
        "Rate at which training skips a transformer's last block, image by image; it rises from 0 at the first "
        "block (stochastic depth, Huang et al. 2016).",
        below(0, 1),
    ] = 0.0
    stem: Annotated[str, "imagenet, small64 or small32: how soon the stem reduces the image."] = "imagenet"
    last_stride: Annotated[
        int,
        "Stride of the last stage; 1 keeps its map as large as the one before, as is usual in re-identification.",
    ] = 2
    pooling: Annotated[
        str, "gap, gem, gap+gmp or grid2; for transformers cls, gap, cls+gap, or attention for SigLIP."
    ] = "gap"
    hidden_dim: Annotated[
        int, "Width of a hidden layer with BN and ReLU before the embedding; 0 for none."
    ] = 0
    embedding_dim: Annotated[
        int, "Dimensions of the embedding; 0 takes the pooled features as the embedding."
    ] = 128
    embedding_bn: Annotated[
        bool, "Apply batch normalisation to the embedding before it is scaled to length 1."
    ] = False
    normalize: Annotated[bool, "Scale embeddings to length 1."] = False
    bnneck: Annotated[
        bool,
        "Apply batch normalisation after the embedding, for the second loss and for retrieval (Luo et al. 2019).",
    ] = False
    freeze_bn_stats: Annotated[
        bool,
        "Keep the running statistics of the backbone's batch normalisation fixed, and use them in training.",
    ] = False
    freeze_bn_affine: Annotated[
        bool, "Keep the scales and biases of the backbone's batch normalisation fixed."
    ] = False
    remat_stages: Annotated[
        tuple[int, ...], "Stages (1 to 4) to recompute in the backward pass, to save memory."
    ] = ()
    dtype: Annotated[
        str,
        "Type of the computation: float32, bfloat16 or float16. Parameters, statistics and distances stay float32.",
    ] = "float32"


@dataclasses.dataclass(frozen=True)
class Pretrained(Settings):
    """The source of the encoder's first weights; a resumed run ignores it."""

    section = "pretrained"
    source: Annotated[
        str,
        "A .safetensors or .pth file, a hub name such as hf://timm/resnet50.tv_in1k, or the working directory of "
        'another run; "" for random weights.',
    ] = ""
    offline: Annotated[bool, "Use only files of the hub that are in this machine's cache."] = False
    cache_dir: Annotated[str | None, "Folder of that cache; None for huggingface_hub's own."] = None


@dataclasses.dataclass(frozen=True)
class LossSchedule(Settings):
    """Anneals one number of the loss, such as sigma, from its configured value to `final`."""

    section = "loss_schedule"
    hyperparameter: Annotated[str, 'The hyperparameter to change, such as sigma; "" for none.'] = ""
    name: Annotated[str, "constant, linear, cosine or exponential (equal ratios)."] = "linear"
    final: Annotated[float, "Its last value."] = 1.0
    begin: Annotated[float, "Share of the run after which it starts to change."] = 0.0
    end: Annotated[float, "Share of the run after which it keeps its last value."] = 1.0


@dataclasses.dataclass(frozen=True)
class Evaluate(Settings):
    """When and how embeddings are judged."""

    section = "evaluate"
    every_steps: Annotated[int, "Steps between two evaluations on the validation classes.", at_least(1)] = (
        1000
    )
    batch_size: Annotated[int, "Images embedded at a time.", at_least(1)] = 128
    enlarge: Annotated[
        float,
        'Resize images to this many times the centre crop that is taken; 256 / 224 for "256, crop 224".',
        between(1, 16),
    ] = 1.0
    keep_aspect: Annotated[bool, "Cut margins off rather than squeeze the image."] = False
    distance: Annotated[str, "How embeddings are compared.", one_of(*DISTANCES)] = "euclidean"
    feature: Annotated[
        str,
        "The vector to compare: retrieval (after BNNeck if there is one), embedding (before it) or features "
        "(pooled, before the head).",
        one_of(*FEATURES),
    ] = "retrieval"
    flip: Annotated[bool, "Average the embeddings of an image and its mirror image."] = False
    five_crops: Annotated[bool, "Average the embeddings of the centre and the four corners."] = False
    zooms: Annotated[
        bool, "Average over further sizes of the image (see hap2s_jax.evaluation.test_time)."
    ] = False
    crop: Annotated[float, "Side of those crops, as a share of the image's side."] = 0.875
    on: Annotated[
        dict[str, Any],
        "Data sets to test on instead of those trained on, as in data.sources.",
        _SETS,
    ] = dataclasses.field(default_factory=dict)
    untrained: Annotated[bool, "Also measure the untrained encoder."] = True
    weights: Annotated[
        str,
        "Which weights are reported: the best on the validation classes, or the last.",
        one_of("best", "last"),
    ] = "best"


@dataclasses.dataclass(frozen=True)
class Checkpoint(Settings):
    """When a run saves its state, and which states it keeps."""

    section = "checkpoint"
    every_steps: Annotated[int, "Steps between two checkpoints.", at_least(1)] = 1000
    keep_last: Annotated[int, "How many of the newest checkpoints to keep.", at_least(1)] = 2
    keep_best: Annotated[int, "How many of the best checkpoints to keep.", at_least(0)] = 1
    best_metric: Annotated[
        str, "The metric of the validation classes that decides which is best; larger is better."
    ] = "mAP"


@dataclasses.dataclass(frozen=True)
class Log(Settings):
    """The logs of a run."""

    section = "log"
    every_steps: Annotated[int, "Steps between two lines of metrics.jsonl.", at_least(1)] = 50
    tensorboard: Annotated[bool, "Write TensorBoard's event files."] = True
    profile_steps: Annotated[
        tuple[int, int] | None,
        "First and last step to trace with jax.profiler, into profile/ of the working directory.",
        Rule(lambda steps: 1 <= steps[0] <= steps[1], "two steps, 1 or more, in order"),
    ] = None
    wandb: Annotated[
        str, 'Project of Weights & Biases to log to; "" for none. WANDB_MODE=offline keeps the log here.'
    ] = ""
    mlflow: Annotated[
        str, 'Experiment of MLflow to log to; "" for none. MLFLOW_TRACKING_URI names a server.'
    ] = ""
