"""Exports of the encoder that run without this project: StableHLO, ONNX, SavedModel, safetensors.

Each export takes uint8 images of the encoder's own size; ``preprocessing.json`` beside it says how to make those.
Each is loaded again and run once before it gets its name, so that every export works with the present versions.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import logging
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.export  # older releases do not bring it with jax
import jax.numpy as jnp
import numpy as np

from hap2s_jax import extras, formats
from hap2s_jax.distributed import experimental, signals
from hap2s_jax.errors import UserError, reason
from hap2s_jax.evaluation import test_time
from hap2s_jax.models import pretrained, torch_names
from hap2s_jax.models.encoder import IMAGE_MEAN, IMAGE_STD
from hap2s_jax.models.resnet import ResNet
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.run.evaluator import embedding_function
from hap2s_jax.serving.trained import TrainedEncoder

PLATFORMS = ("cpu", "cuda", "tpu")
PREPROCESSING = "preprocessing.json"
FILES = {
    "stablehlo": "encoder.stablehlo",
    "safetensors": "encoder.safetensors",
    "saved_model": "saved_model",
    "onnx": "encoder.onnx",
}
# How long jax promises to read its exported files.
GUARANTEE = datetime.timedelta(days=180)


def write_stablehlo(
    encoder: TrainedEncoder, folder: pathlib.Path, batch_size: int | None = None
) -> pathlib.Path:
    """Writes ``encoder.stablehlo``: ``jax.export.deserialize(file.read()).call(images)``, for cpu, cuda and tpu.

    images: uint8 `[b, h, w, 3]` for any b, or for `batch_size` alone; the result is float32 `[b, d]`.

    Raises:
      UserError: flatbuffers is not installed, which JAX needs to write and to read such files, or the file does not
        give the encoder's embeddings.
    """
    extras.load("StableHLO", "flatbuffers", "use")
    batch = batch_size or jax.export.symbolic_shape("b")[0]
    images = jax.ShapeDtypeStruct((batch, *encoder.image_size, 3), jnp.uint8)
    exported = jax.export.export(jax.jit(encoder.function), platforms=PLATFORMS)(images)
    path = folder / FILES["stablehlo"]
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(exported.serialize()))
        with _checked("stablehlo"):
            read = jax.export.deserialize(bytearray(temporary.read_bytes()))
            _compare(encoder, read.call, batch_size)
    return path


def write_safetensors(
    encoder: TrainedEncoder, folder: pathlib.Path, batch_size: int | None = None
) -> pathlib.Path:
    """Writes ``encoder.safetensors``, in torch's layout: the trunk under torchvision's names, the head under "head.".

    A stem other than "imagenet" does not exist in torchvision and is under "stem.". Weights suit any `batch_size`.

    Raises:
      UserError: the trunk is no ResNet of ours.
    """
    path = folder / FILES["safetensors"]
    tensors = {}
    for names, leaf in _leaves(encoder.variables):
        array = np.asarray(leaf)
        tensors[_torch_name(names, encoder)] = (
            torch_names.to_torch_layout(array) if names[-1] == "kernel" else array
        )
    folder.mkdir(parents=True, exist_ok=True)
    pretrained.write_safetensors(tensors, path)
    read = pretrained.read_tensors(path)
    if tensors.keys() != read.keys() or not all(
        np.array_equal(tensors[k], read[k], equal_nan=True) for k in read
    ):
        raise UserError(f"--formats=safetensors: {path} does not hold what was written to it")
    return path


def write_saved_model(
    encoder: TrainedEncoder, folder: pathlib.Path, batch_size: int | None = None
) -> pathlib.Path:
    """Writes ``saved_model/``: ``tf.saved_model.load(path)(images)``, also its signature "serving_default".

    images: uint8 `[b, h, w, 3]` for any b, or for `batch_size` alone.

    Raises:
      UserError: TensorFlow is missing, this JAX has no jax2tf, or this TensorFlow cannot run what this JAX makes.
    """
    try:
        # Before jax2tf, so that TensorFlow prints no log lines.
        from hap2s_jax.data.tf import saved_model
    except ImportError as error:
        raise extras.not_installed("--formats=saved_model", "tensorflow", "train") from error

    height, width = encoder.image_size
    shape = f"({batch_size or 'b'}, {height}, {width}, 3)"
    converted = experimental.jax2tf().convert(
        encoder.function, polymorphic_shapes=[shape], with_gradient=False
    )
    path = folder / FILES["saved_model"]

    def check(partial: pathlib.Path) -> None:
        # TensorFlow 2.21 cannot run what jax writes from 0.11.2 on for any number of images.
        writes = f"this TensorFlow cannot run what JAX {jax.__version__} writes"
        fault, remedy = writes, ""
        if not batch_size:
            fault, remedy = (
                f"{writes} for any number of images",
                "; give --batch_size=N, one size for all calls",
            )
        with _checked("saved_model", fault, remedy), signals.quiet():
            _compare(encoder, saved_model.load(partial), batch_size)

    saved_model.save(converted, path, (batch_size, *encoder.image_size, 3), check)
    return path


def write_onnx(encoder: TrainedEncoder, folder: pathlib.Path, batch_size: int | None = None) -> pathlib.Path:
    """Writes ``encoder.onnx``: ``onnxruntime.InferenceSession(path).run(None, {"images": images})[0]``.

    images: uint8 `[b, h, w, 3]` for any b, or for `batch_size` alone; the result is float32 `[b, d]`.

    Raises:
      UserError: jax2onnx or onnxruntime is missing, jax2onnx cannot convert this encoder, or onnxruntime does not give
        the encoder's embeddings.
    """
    converter, runtime = (extras.load("--formats=onnx", name, "onnx") for name in ("jax2onnx", "onnxruntime"))
    images = jax.ShapeDtypeStruct((batch_size or "b", *encoder.image_size, 3), jnp.uint8)
    at_once = functools.partial(test_time.at_once, size=encoder.image_size)
    embed = embedding_function(encoder.module, encoder.config.evaluate, combine=at_once)
    path = folder / FILES["onnx"]
    # onnx_ir warns of shapes that onnxruntime finds by itself.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    with (
        _checked("onnx", "jax2onnx cannot convert this encoder"),
        # jax2onnx has no choice of platform; code for a CPU has the simplest operations.
        mock.patch.object(jax.lax, "platform_dependent", _for_cpu),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # jax2onnx's own, about types
        model = converter.to_onnx(
            functools.partial(embed, encoder.variables),
            [images],
            input_names=["images"],
            output_names=["embeddings"],
        )
        content = model.SerializeToString()
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        with _checked("onnx"):
            session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

            def call(images: np.ndarray) -> np.ndarray:
                parts = [images] if batch_size else [images[:1], images[1:]]  # of different sizes
                return np.concatenate([session.run(None, {"images": part})[0] for part in parts])

            _compare(encoder, call, batch_size)
    return path


def _for_cpu(*args: Any, default: Any = None, **platforms: Any) -> Any:
    """`jax.lax.platform_dependent` as it is on a CPU."""
    return platforms.get("cpu", default)(*args)


FORMATS: dict[str, Callable[..., pathlib.Path]] = {
    "stablehlo": write_stablehlo,
    "safetensors": write_safetensors,
    "saved_model": write_saved_model,
    "onnx": write_onnx,
}


@contextlib.contextmanager
def _checked(
    name: str, fault: str = "the versions here cannot run what they wrote", remedy: str = ""
) -> Iterator[None]:
    """Around converting a file, or loading and running it; turns any error into one line."""
    try:
        yield
    except Exception as error:  # from another library's loader, compiler or runtime
        raise UserError(f"--formats={name}: {fault} ({reason(error)}){remedy}") from error


def _compare(encoder: TrainedEncoder, call: Callable[[Any], Any], batch_size: int | None) -> None:
    images = np.random.default_rng(0).integers(0, 256, (batch_size or 3, *encoder.image_size, 3), np.uint8)
    expected, found = encoder.embed_pixels(images), np.asarray(call(images), np.float32)
    # Other compilers add in a different order.
    tolerance = 1e-4 if encoder.config.encoder.dtype == "float32" else 0.05
    if found.shape != expected.shape or not np.all(
        np.abs(found - expected) <= tolerance * np.abs(expected).max()
    ):
        raise ValueError("other embeddings than the encoder's")


def write_preprocessing(
    encoder: TrainedEncoder,
    folder: pathlib.Path,
    batch_size: int | None = None,
    written: Iterable[pathlib.Path] = (),
) -> pathlib.Path:
    """Writes what must be done to an image before it is given to an export, and the SHA-256 of all files `written`."""
    evaluate, (height, width) = encoder.config.evaluate, encoder.image_size
    record: dict[str, Any] = {
        "input": f"uint8 [{batch_size or 'batch'}, {height}, {width}, 3], RGB, 0 to 255",
        "output": f"float32 [{batch_size or 'batch'}, {encoder.dim}], compared by {encoder.distance} distance",
        "image_size": [height, width],
        "keep_aspect": bool(evaluate.keep_aspect),
        "enlarge": float(evaluate.enlarge),
        "resize": (
            "take the central part, round(side / enlarge) of each side (with keep_aspect, the largest part of the "
            "input's aspect ratio, over enlarge); then bilinear, or area averages where both sides are at least halved"
        ),
        # StableHLO, ONNX and SavedModel average over the views themselves; bare weights cannot.
        "views": test_time.views_of(evaluate),
        "inside_the_encoder": {
            "mean": list(getattr(encoder.module, "mean", IMAGE_MEAN)),
            "std": list(getattr(encoder.module, "std", IMAGE_STD)),
        },
        "trained_on": encoder.trained_on,
        "fingerprint": encoder.fingerprint,
        "step": encoder.step,
        "jax": jax.__version__,
        "stablehlo_is_guaranteed_until": guaranteed_until(),
        # In the format of sha256sum.
        "sha256": {
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for path in written
            for file in sorted([path] if path.is_file() else path.rglob("*"))
            if file.is_file()
        },
    }
    path = folder / PREPROCESSING
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(formats.stamped(record), indent=2) + "\n")
    return path


def guaranteed_until() -> str:
    """The day until which any jax reads a StableHLO file of today, as YYYY-MM-DD."""
    return (datetime.datetime.now(datetime.UTC).date() + GUARANTEE).isoformat()


def _leaves(tree: Any, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not hasattr(tree, "items"):
        return [(above, tree)]
    return [pair for name, inner in tree.items() for pair in _leaves(inner, (*above, name))]


def _torch_name(path: tuple[str, ...], encoder: TrainedEncoder) -> str:
    _, room, *inside = path
    if room == "trunk" and isinstance(getattr(encoder.module, "trunk", None), ResNet):
        settings = encoder.config.encoder
        if inside[0].startswith("stem_") and settings.stem != "imagenet":
            # It differs from torchvision's conv1, so it must not have that name.
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
