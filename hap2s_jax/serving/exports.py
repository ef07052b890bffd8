"""The encoder in forms that run without this project: StableHLO, TensorFlow's SavedModel, torchvision's names.

Each export takes uint8 images of the encoder's own size; ``preprocessing.json`` beside it says how to make those.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hap2s_jax import formats
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation import test_time
from hap2s_jax.models import pretrained, torch_names
from hap2s_jax.models.encoder import IMAGE_MEAN, IMAGE_STD
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.serving.trained import TrainedEncoder

PLATFORMS = ("cpu", "cuda", "tpu")
PREPROCESSING = "preprocessing.json"


def write_stablehlo(encoder: TrainedEncoder, folder: pathlib.Path) -> pathlib.Path:
    """Writes ``encoder.stablehlo``: ``jax.export.deserialize(file.read()).call(images)``, for cpu, cuda and tpu.

    images: uint8 `[b, h, w, 3]` for any b; the result is float32 `[b, d]`.

    Raises:
      UserError: flatbuffers is not installed, which JAX needs to write and to read such files.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError('StableHLO needs flatbuffers: pip install -e ".[use]"')
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *encoder.image_size, 3), jnp.uint8)
    exported = jax.export.export(jax.jit(encoder.function), platforms=PLATFORMS)(images)
    path = folder / "encoder.stablehlo"
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(exported.serialize()))
    return path


def write_safetensors(encoder: TrainedEncoder, folder: pathlib.Path) -> pathlib.Path:
    """Writes ``encoder.safetensors``, in torch's layout: the trunk under torchvision's names, the head under "head.".

    A stem other than "imagenet" is none of torchvision's and stands under "stem.".

    Raises:
      UserError: the trunk is no ResNet of ours.
    """
    path = folder / "encoder.safetensors"
    tensors = {}
    for names, leaf in _leaves(encoder.variables):
        tensors[_torch_name(names, encoder)] = torch_names.to_torch_layout(np.asarray(leaf))
    folder.mkdir(parents=True, exist_ok=True)
    pretrained.write_safetensors(tensors, path)
    return path


def write_saved_model(encoder: TrainedEncoder, folder: pathlib.Path) -> pathlib.Path:
    """Writes ``saved_model/``: ``tf.saved_model.load(path)(images)``, also its signature "serving_default".

    Raises:
      UserError: TensorFlow is missing, or this JAX has no jax2tf.
    """
    try:
        from jax.experimental import jax2tf
    except ImportError as error:
        raise UserError(
            f"--formats=saved_model needs TensorFlow and a JAX with jax2tf ({error}): pip install 'hap2s_jax[train]'"
        ) from error
    from hap2s_jax.data.tf.saved_model import save

    height, width = encoder.image_size
    converted = jax2tf.convert(
        encoder.function, polymorphic_shapes=[f"(b, {height}, {width}, 3)"], with_gradient=False
    )
    path = folder / "saved_model"
    save(converted, path, encoder.image_size)
    return path


FORMATS: dict[str, Callable[[TrainedEncoder, pathlib.Path], pathlib.Path]] = {
    "stablehlo": write_stablehlo,
    "safetensors": write_safetensors,
    "saved_model": write_saved_model,
}


def write_preprocessing(encoder: TrainedEncoder, folder: pathlib.Path) -> pathlib.Path:
    """Writes what must be done to an image before it is given to an export."""
    evaluate, (height, width) = encoder.config.evaluate, encoder.image_size
    record: dict[str, Any] = {
        "input": f"uint8 [batch, {height}, {width}, 3], RGB, 0 to 255",
        "output": f"float32 [batch, {encoder.dim}], compared by {encoder.distance} distance",
        "image_size": [height, width],
        "keep_aspect": bool(evaluate.keep_aspect),
        "enlarge": float(evaluate.enlarge),
        "resize": (
            "take the central part, round(side / enlarge) of each side (with keep_aspect, the largest part of the "
            "input's aspect ratio, over enlarge); then bilinear, or area averages where both sides are at least halved"
        ),
        # StableHLO and SavedModel make the views and their mean themselves; weights alone do not.
        "views": test_time.views_of(evaluate),
        "inside_the_encoder": {"mean": list(IMAGE_MEAN), "std": list(IMAGE_STD)},
        "fingerprint": encoder.fingerprint,
        "step": encoder.step,
    }
    path = folder / PREPROCESSING
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(formats.stamped(record), indent=2) + "\n")
    return path


def _leaves(tree: Any, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not hasattr(tree, "items"):
        return [(above, tree)]
    return [pair for name, inner in tree.items() for pair in _leaves(inner, (*above, name))]


def _torch_name(path: tuple[str, ...], encoder: TrainedEncoder) -> str:
    _, room, *inside = path
    if room == "trunk":
        settings = encoder.config.encoder
        if inside[0].startswith("stem_") and settings.stem != "imagenet":
            # Another layer than torchvision's conv1: its name would promise what does not fit.
            room, inside = "stem", [inside[0].removeprefix("stem_"), *inside[1:]]
        else:
            try:
                return torch_names.to_torchvision(path)
            except ValueError as error:
                raise UserError(
                    f"--formats=safetensors: torchvision has no ResNet like encoder.name {settings.name}: {error}"
                ) from error
    leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join([room, *inside[:-1], leaf.get(inside[-1], inside[-1])])
