"""Files of weights that anybody may have made: read without running anything, and no number is taken unlooked at."""

from __future__ import annotations

import contextlib
import mmap
import os
import pathlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from hap2s_jax import extras
from hap2s_jax.data.places import local_file, place
from hap2s_jax.data.regular_files import allowed, check_members, open_regular, open_zip
from hap2s_jax.errors import UserError, reason
from hap2s_jax.reporting.atomic import replacing

Tensors = Mapping[str, np.ndarray]
_TORCH = (".pth", ".pt", ".bin")


def check(tensors: Tensors, source: str) -> None:
    """Raises a UserError that names the first tensor whose numbers no encoder can have: not floating, not finite, or a
    variance below 0. Counts of batches are passed over.
    """
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        if name.endswith("num_batches_tracked") or not array.size:
            continue
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"{source}: {name} holds {array.dtype}; weights are floating-point numbers")
        array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
        # The extremes carry any NaN or infinity.
        lowest, highest = array.min(), array.max()
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise UserError(
                f"{source}: {name} holds NaN or infinity; its training has diverged, or it is damaged"
            )
        if lowest < 0 and name.endswith(("running_var", "/var")):
            raise UserError(f"{source}: {name} holds the variance {lowest:.3g}, but none is below 0")


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file, by name.

    Raises:
      UserError: the file is missing, damaged or of another kind, or a package is missing that reads it.
    """
    path = place(path)
    if not path.is_file():
        raise UserError(f"pretrained weights {path} do not exist; give a .safetensors or .pth file.")
    if path.suffix not in (known := (".safetensors", *_TORCH)):
        raise UserError(f"pretrained weights {path} end in {path.suffix!r}; known: {', '.join(known)}.")
    with local_file(path) as file:
        try:
            return _read_torch(file) if path.suffix in _TORCH else _read_safetensors(file)
        except UserError as error:
            raise UserError(str(error).replace(str(file), str(path))) from error


def write_safetensors(tensors: Tensors, path: str | os.PathLike[str]) -> None:
    """Writes tensors to a safetensors file, whole or not at all."""
    numpy_format = _safetensors()
    path = place(path)
    from safetensors import SafetensorError

    try:
        with replacing(path) as temporary:
            numpy_format.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary)
    except SafetensorError as e:  # a full disk, among others
        raise UserError(f"cannot write {path}: {reason(e)}.") from e


def _safetensors() -> Any:
    return extras.load("a safetensors file", "safetensors.numpy", "use")


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    numpy_format = _safetensors()
    try:
        with open_regular(path):
            return numpy_format.load_file(path)
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} holds numbers of a kind that NumPy lacks: {reason(e)}") from e
    except Exception as e:
        raise UserError(f"{path} is damaged or not a safetensors file: {reason(e)}") from e


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as e:
        raise UserError(
            f"{path} needs torch to be read; where torch is installed convert it once: "
            "python -m hap2s_jax.convert weights.pth weights.safetensors."
        ) from e
    try:
        _check_torch_file(path)
        with warnings.catch_warnings(action="ignore"):  # about old ways to write tensors
            # Without weights_only a file may run any code it likes.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:  # torch advises to load it unsafely
        raise UserError(
            f"{path} is damaged or not a file of plain weights: anything else might be code, which is not run; "
            "save model.state_dict() alone where it was made"
        ) from e
    except Exception as e:  # torch raises whatever its unpickler, zip reader or tensor code stumble over
        raise UserError(f"{path} is damaged or not a file of plain weights: {reason(e)}") from e
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path} is not a state dict: it holds {type(state).__name__}, not tensors by name.")
    for name, value in state.items():
        try:
            fault = _fault(value, torch)
        except Exception as e:  # kinds of tensors that torch itself cannot count
            fault = f"is of an unusual kind ({reason(e)})"
        if fault:
            raise UserError(f"{path}: {name} {fault}; save it as a plain tensor")
    if sum(4 * value.numel() for value in state.values()) > allowed(path.stat().st_size):
        raise UserError(f"{path} claims more numbers than it holds")
    return {
        # What many training scripts leave in front of every name.
        str(name).removeprefix("module."): (value.float() if value.is_floating_point() else value)
        .resolve_neg()
        .numpy()
        for name, value in ((name, value.detach()) for name, value in state.items())
    }


def _check_torch_file(path: pathlib.Path) -> None:
    """Raises an error for what torch would take memory for without end."""
    with open_regular(path) as file, contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(file):
            archive = stack.enter_context(open_zip(file))
            check_members(archive.infolist(), os.fstat(file.fileno()).st_size)
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
        else:
            pickles = [stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))]
        # The only thing that torch's own reader of plain weights makes as long as a number says.
        if any(text.find(b"bytearray") >= 0 for text in pickles):
            raise pickle.UnpicklingError("a bytearray")


def _fault(tensor: Any, torch: Any) -> str | None:
    """Why a tensor cannot be taken as it is."""
    if tensor.is_meta:
        return "is a meta tensor, without numbers"
    if tensor.is_nested:
        return "is nested"
    if tensor.layout is not torch.strided:
        return "is sparse"
    if tensor.is_quantized:
        return "is quantised"
    if tensor.is_complex():
        return "is complex"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "is expanded: it repeats the few numbers that it holds"
    return None
