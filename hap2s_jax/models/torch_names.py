"""Names of a ResNet's tensors in torchvision (and timm) and in Hugging Face transformers, and their places here.

Vision transformers' names stand in `vit_names`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from hap2s_jax.models import vit_names

Path = tuple[str, ...]

# Where a tensor of a normalisation goes: collection and name.
_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_TENSOR = r"(weight|bias|running_mean|running_var)"


def recognise(names: Iterable[str]) -> str | None:
    """The library of these names: "torchvision" (or timm), "transformers", "vit" (see `vit_names`), or None."""
    names = set(names)
    if vit_names.recognise(names):
        return "vit"
    if "conv1.weight" in names and any(name.startswith("layer1.0.") for name in names):
        return "torchvision"
    if any(name.endswith("embedder.embedder.convolution.weight") for name in names):
        return "transformers"
    return None


def to_path(name: str, naming: str) -> Path | None:
    """The place in our variables of the tensor called `name`; None for a name no encoder has."""
    if naming == "vit":
        return vit_names.to_path(name)
    return _from_torchvision(name) if naming == "torchvision" else _from_transformers(name)


def to_our_layout(tensor: np.ndarray) -> np.ndarray:
    """Kernels `[out, in, h, w]` to `[h, w, in, out]`, matrices `[out, in]` to `[in, out]`, vectors as they are."""
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T if tensor.ndim == 2 else tensor


def _from_torchvision(name: str) -> Path | None:
    if match := re.fullmatch(rf"(conv|bn)1\.{_TENSOR}", name):
        return _trunk(None, f"stem_{match[1]}1", match[2])
    if match := re.fullmatch(rf"layer([1-4])\.(\d{{1,4}})\.(conv|bn)([1-3])\.{_TENSOR}", name):
        return _trunk((int(match[1]), int(match[2])), match[3] + match[4], match[5])
    if match := re.fullmatch(rf"layer([1-4])\.(\d{{1,4}})\.downsample\.([01])\.{_TENSOR}", name):
        part = "shortcut_conv" if match[3] == "0" else "shortcut_bn"
        return _trunk((int(match[1]), int(match[2])), part, match[4])
    if match := re.fullmatch(r"fc\.(weight|bias)", name):
        return _classifier(match[1])
    return None


def _from_transformers(name: str) -> Path | None:
    name = name.removeprefix("resnet.")
    if match := re.fullmatch(rf"embedder\.embedder\.(convolution|normalization)\.{_TENSOR}", name):
        return _trunk(None, f"stem_{_kind(match[1])}1", match[2])
    block = r"encoder\.stages\.([0-3])\.layers\.(\d{1,4})"
    if match := re.fullmatch(rf"{block}\.layer\.([0-2])\.(convolution|normalization)\.{_TENSOR}", name):
        part = f"{_kind(match[4])}{int(match[3]) + 1}"
        return _trunk((int(match[1]) + 1, int(match[2])), part, match[5])
    if match := re.fullmatch(rf"{block}\.shortcut\.(convolution|normalization)\.{_TENSOR}", name):
        return _trunk((int(match[1]) + 1, int(match[2])), f"shortcut_{_kind(match[3])}", match[4])
    if match := re.fullmatch(r"classifier\.1\.(weight|bias)", name):
        return _classifier(match[1])
    return None


def _kind(transformers: str) -> str:
    return "conv" if transformers == "convolution" else "bn"


def _trunk(block: tuple[int, int] | None, part: str, tensor: str) -> Path | None:
    """`block` is the stage, from 1, and the block in it, from 0; None is the stem."""
    if "conv" in part:
        if tensor != "weight":
            return None
        collection, leaf = "params", "kernel"
    else:
        collection, leaf = _NORM[tensor]
    middle = () if block is None else (f"stage{block[0]}_block{block[1] + 1}",)
    return (collection, "trunk", *middle, part, leaf)


def _classifier(tensor: str) -> Path:
    return ("params", "head", "classifier", "kernel" if tensor == "weight" else "bias")


def to_torchvision(path: Path) -> str:
    """The name that torchvision has for the trunk's tensor at `path`; the inverse of `to_path`.

    Raises:
      ValueError: `path` is none of an "imagenet" trunk's.
    """
    part, leaf = path[-2:]
    torch_leaf = {our: torch for torch, (_, our) in _NORM.items()} | {"kernel": "weight"}
    name = {
        "stem_conv1": "conv1",
        "stem_bn1": "bn1",
        "shortcut_conv": "downsample.0",
        "shortcut_bn": "downsample.1",
    }
    words = [name.get(part, part), torch_leaf.get(leaf, leaf)]
    if match := re.fullmatch(r"stage(\d)_block(\d+)", path[-3]):
        words = [f"layer{match[1]}", str(int(match[2]) - 1), *words]
    full = ".".join(words)
    if to_path(full, "torchvision") != path:
        raise ValueError(f"path is {'/'.join(path)}, which torchvision's ResNets do not have.")
    return full


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_our_layout`."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
