"""Published ImageNet weights in our encoders: torchvision's, timm's and Hugging Face transformers' files.

    variables = models.initialize(encoder, key, images)
    variables, report = pretrained.load("resnet50.safetensors", encoder, variables)

Every tensor's name and shape is checked before any is used. Only the trunk comes from a file; the embedding head
stays as it was initialised, and so does a classifier of another size. torch is needed for `.pth` files only:

    python -m hap2s_jax.convert resnet50.pth resnet50.safetensors
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from hap2s_jax import extras
from hap2s_jax.data.places import local, place
from hap2s_jax.errors import UserError, reason
from hap2s_jax.models import torch_names, vit_names
from hap2s_jax.models.weight_files import Tensors, check, read_tensors, write_safetensors

Path = tuple[str, ...]

__all__ = ["HUB", "Report", "from_tensors", "from_variables", "load", "read_tensors", "write_safetensors"]

# How names on the Hugging Face hub begin.
HUB = "hf://"


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of an import.

    Attributes:
      source: where the weights came from.
      naming: whose names the file uses: "torchvision" (timm's are the same) or "transformers"; "hap2s_jax" for
        own parameters.
      taken: number of tensors taken over.
      remarks: one line for each thing left out that need not worry, such as a classifier of another size.
      initial: parameters that stay as they were initialised, by their paths.
    """

    source: str
    naming: str
    taken: int
    remarks: tuple[str, ...]
    initial: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line: what was loaded, dropped and left at random."""
        names = "our own" if self.naming == "hap2s_jax" else f"{self.naming}'s"
        parts = [f"weights from {self.source} ({names} names): {self.taken} arrays taken", *self.remarks]
        parts.append(
            f"at random stay {', '.join(self.initial)}" if self.initial else "nothing stays at random"
        )
        return "; ".join(parts)


def load(
    source: str | os.PathLike[str],
    encoder: nn.Module,
    variables: Mapping[str, Any],
    *,
    cache_dir: str | None = None,
    offline: bool = False,
) -> tuple[dict[str, Any], Report]:
    """Fills the trunk of `variables` from a file of published weights.

    Args:
      source: a `.safetensors` file, a torch `.pth`, `.pt` or `.bin` file (read by torch with
        `weights_only=True`), or a name on the Hugging Face hub: "hf://owner/repository" or
        "hf://owner/repository/file.safetensors" (model.safetensors otherwise).
      encoder: an `Encoder` with the "imagenet" stem.
      variables: its variables as initialised, `{"params", "batch_stats"}`; not changed.
      cache_dir: where hub files are kept; None is huggingface_hub's own cache.
      offline: take hub files from the cache only.

    Returns:
      New variables, and a report of what was taken and left.

    Raises:
      UserError: in one line: a file that is missing, damaged or foreign; or names and shapes that do not fit the
        encoder, with those missing, left over and of another shape.
    """
    name = os.fspath(source)
    path = _from_hub(name, cache_dir, offline) if name.startswith(HUB) else place(name)
    return from_tensors(read_tensors(path), encoder, variables, source=name)


def from_tensors(
    tensors: Tensors, encoder: nn.Module, variables: Mapping[str, Any], *, source: str = "state dict"
) -> tuple[dict[str, Any], Report]:
    """Fills the trunk of `variables` from tensors by name, as a torch state dict has them, in NumPy.

    Arguments, returns and errors are those of `load`.
    """
    naming = torch_names.recognise(tensors)
    if naming is None:
        some = ", ".join(sorted(tensors)[:3]) or "no tensor at all"
        raise UserError(
            f"{source} holds no ResNet or vision transformer of torchvision, timm or transformers; it has {some}."
        )
    if naming == "vit":
        tensors = vit_names.prepare(tensors)
    check(tensors, source)
    flat = _flatten(variables)
    classifier_fits = _classifier_fits(tensors, naming, flat)
    left_over, misshaped, remarks = [], [], []
    taken: dict[Path, np.ndarray] = {}
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):
            continue
        path = torch_names.to_path(name, naming)
        if path is None:
            left_over.append(name)
            continue
        value = np.asarray(tensors[name])
        if path[-1] == "kernel":
            value = torch_names.to_our_layout(value)
        if path[1] == "head" and not classifier_fits:
            if path[-1] == "kernel":
                remarks.append(
                    f"classifier {name} {list(tensors[name].shape)} dropped: the encoder's differs"
                )
            continue
        if path not in flat:
            if path[1] == "pooling":
                remarks.append(f"{name} dropped: the encoder pools in another way")
            else:
                left_over.append(name)
        elif flat[path].shape != value.shape:
            misshaped.append(f"{name} {list(value.shape)} where the encoder has {list(flat[path].shape)}")
        else:
            taken[path] = value
    wanted = {path for path in flat if path[1] == "trunk"}
    # Whatever is misshaped has a name, so it is not missing.
    named = {torch_names.to_path(name, naming) for name in tensors}
    missing = ["/".join(path) for path in sorted(wanted - set(taken) - named)]
    _refuse(source, encoder, missing, left_over, misshaped)
    for path, value in taken.items():
        flat[path] = value.astype(flat[path].dtype)
    report = Report(source, naming, len(taken), tuple(remarks), _initial(flat, taken))
    return traverse_util.unflatten_dict(flat), report


def from_variables(
    saved: Mapping[str, Any], variables: Mapping[str, Any], *, source: str = "workdir"
) -> tuple[dict[str, Any], Report]:
    """Fills `variables` from those of an encoder of our own, such as a checkpoint's, trunk and head.

    The trunk must fit whole; a head parameter that is missing or of another shape stays as initialised, with a
    remark. Returns and errors are those of `load`.
    """
    ours, theirs = _flatten(variables), _flatten(saved)
    check({"/".join(path): leaf for path, leaf in theirs.items()}, source)
    missing, left_over, misshaped, remarks = [], [], [], []
    result, taken = dict(ours), set()
    for path in sorted(set(ours) | set(theirs)):
        name, in_head = "/".join(path), path[1:2] == ("head",)
        if path not in theirs:
            if not in_head:
                missing.append(name)
        elif path not in ours:
            (remarks if in_head else left_over).append(f"{name} dropped" if in_head else name)
        elif np.shape(theirs[path]) != ours[path].shape:
            line = f"{name} {list(np.shape(theirs[path]))} {{}} {list(ours[path].shape)}"
            if in_head:
                remarks.append(line.format("dropped: the encoder's is"))
            else:
                misshaped.append(line.format("where the encoder has"))
        else:
            result[path] = np.asarray(theirs[path], ours[path].dtype)
            taken.add(path)
    _refuse(source, None, missing, left_over, misshaped)
    report = Report(source, "hap2s_jax", len(taken), tuple(remarks), _initial(ours, taken))
    return traverse_util.unflatten_dict(result), report


def _from_hub(name: str, cache_dir: str | None, offline: bool) -> pathlib.Path:
    parts = name.removeprefix(HUB).split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise UserError(f"pretrained {name!r} should read hf://owner/repository[/file.safetensors].")
    file = parts[2] if len(parts) == 3 else "model.safetensors"
    cache_dir = cache_dir and str(local(cache_dir))
    user = "a pretrained source on the hub"
    huggingface_hub = extras.load(user, "huggingface_hub", "hub")
    # It warns of every further try.
    extras.load(user, "huggingface_hub.utils.logging", "hub").set_verbosity_error()
    try:
        return pathlib.Path(
            huggingface_hub.hf_hub_download(
                "/".join(parts[:2]), file, cache_dir=cache_dir, local_files_only=offline
            )
        )
    except (OSError, ValueError, RuntimeError) as e:
        where = "is not in the cache and offline is set" if offline else "cannot be had from the hub"
        raise UserError(f"{name} ({file}) {where}: {reason(e)}") from e


def _flatten(tree: Mapping[str, Any]) -> dict[Path, Any]:
    flat: dict[Path, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {(key, *path): leaf for path, leaf in _flatten(value).items()}
        else:
            flat[(key,)] = value
    return flat


def _initial(variables: Iterable[Path], taken: Container[Path]) -> tuple[str, ...]:
    return tuple(
        "/".join(path[1:]) for path in sorted(variables) if path[0] == "params" and path not in taken
    )


def _classifier_fits(tensors: Tensors, naming: str, flat: Mapping[Path, Any]) -> bool:
    """A file's classifier takes pooled features: one after an embedding layer or a neck is another thing."""
    head = {path[2] for path in flat if path[:2] == ("params", "head")}
    shapes = {torch_names.to_path(name, naming): tensors[name].shape[::-1] for name in tensors}
    return head == {"classifier"} and all(
        shapes.get(path) == flat[path].shape for path in flat if path[:2] == ("params", "head")
    )


def _refuse(
    source: str, encoder: nn.Module | None, missing: list[str], left_over: list[str], misshaped: list[str]
) -> None:
    found = {"missing": missing, "left over": left_over, "of another shape": misshaped}
    lists = [
        f"{len(v)} {k} ({', '.join(v[:4])}{', ...' if len(v) > 4 else ''})" for k, v in found.items() if v
    ]
    if lists:
        stem = getattr(getattr(encoder, "trunk", None), "stem", "imagenet")
        remedy = (
            ""
            if stem == "imagenet"
            else f" The encoder's stem is {stem!r}; published weights need 'imagenet'."
        )
        raise UserError(f"{source} does not fit this encoder: {'; '.join(lists)}.{remedy}")
