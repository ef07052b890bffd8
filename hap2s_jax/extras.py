"""Missing packages, named as users install them: ``pip install "hap2s_jax[train]"``.

Everything beyond the losses, the encoders and the metrics is an extra in pyproject.toml. Code that needs one asks for
it here before any work begins.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from hap2s_jax.errors import UserError

_USE = (
    "absl",
    "flatbuffers",
    "ml_collections",
    "orbax",
    "cv2",
    "matplotlib",
    "PIL",
    "rich",
    "safetensors",
    "tqdm",
)
_TRAIN = (
    "tensorflow",
    "tensorflow_datasets",
    "importlib_resources",
    "scipy",
    "h5py",
    "sklearn",
    "tensorboardX",
)

# What each extra brings, by the names that are imported.
MODULES: dict[str, tuple[str, ...]] = {
    "use": _USE,
    "train": (*_USE, *_TRAIN),
    "hub": ("huggingface_hub", "safetensors"),
    "demo": (*_USE, "gradio"),
    "parquet": ("pyarrow",),
    "hf": ("datasets",),
    "faiss": ("faiss",),
    "gallery": (*_USE, "lancedb"),
    "ray": (*_USE, "ray", "pyarrow"),
    "tpu": ("libtpu",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "onnx": (*_USE, "jax2onnx", "onnxruntime"),
    "gcs": ("gcsfs",),
}


def require(user: str, *extras: str) -> None:
    """Raises unless the packages of `extras` are installed.

    Args:
      user: who needs them, as the message names it: "embed", "--index=faiss".
      extras: keys of `MODULES`.

    Raises:
      UserError: something is missing; in one line that names it and the extras to install.
    """
    missing = {name: [m for m in MODULES[name] if importlib.util.find_spec(m) is None] for name in extras}
    if lacking := [name for name in extras if missing[name]]:
        raise not_installed(user, missing[lacking[0]][0], *lacking)


def not_installed(user: str, module: str, *extras: str) -> UserError:
    """The error for a `module` that is missing, which `extras` bring."""
    return UserError(
        f'{user} needs {module}, which is not installed: pip install "hap2s_jax[{",".join(extras)}]"'
    )


def load(user: str, module: str, extra: str) -> Any:
    """The imported `module`.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise not_installed(user, module.partition(".")[0], extra) from error
