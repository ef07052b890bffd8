"""Every use of `jax.experimental` in this package, in one place: any release of JAX may move it.

No other module imports it. Work-arounds for a release carry the same words, "Remove when", where they stand:
`hap2s_jax.losses.pytrees.register_dataclass`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hap2s_jax.errors import UserError


def gather(tree: Any, *, tiled: bool = False) -> Any:  # a tree of arrays, and one of the same structure
    """The arrays of all processes, on each: stacked as `[processes, ...]`, or joined along the first axis (tiled).

    Remove when `process_allgather` has a place outside jax.experimental.
    """
    return multihost_utils.process_allgather(tree, tiled=tiled)


def broadcast(array: np.ndarray | int) -> np.ndarray:
    """The first process's array, on every process. Remove when `broadcast_one_to_all` has such a place."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def wait_for_all(name: str) -> None:
    """Waits until every process has called it. Remove when `sync_global_devices` has such a place."""
    multihost_utils.sync_global_devices(name)


def preemption_reached(step: int) -> bool:
    """Whether all processes stop before this step. Remove when `reached_preemption_sync_point` has such a place."""
    return multihost_utils.reached_preemption_sync_point(step)


@functools.cache
def step_options(platform: str) -> dict[str, str]:
    """Compiler options of a training step on a platform.

    On a CPU, XLA's own gradients of 3x3 convolutions are faster than those it takes from YNNPACK. Beside torch, with 16
    images of 224 pixels, ResNet-18's step goes from 0.77 to 0.87, ResNet-50's from 0.83 to 0.91 (jax 0.12); a smaller
    ResNet's and a transformer's are as fast as before, and a forward pass is faster without. Remove when
    `experiments/benchmark_encoders.py` finds ResNets' steps as fast without it.
    """
    if platform != "cpu":
        return {}
    fusions = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    options = {"xla_cpu_experimental_ynn_fusion_type": fusions}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:  # an XLA without this option
        return {}
    return options


def with_options(mapped: Any, options: dict[str, str]) -> Callable[..., Any]:
    """A `jax.pmap` function compiled with options at its first call. Remove when `jax.pmap` takes them."""
    compiled: Any = None

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = mapped.lower(*arguments).compile(compiler_options=options)
        return compiled(*arguments)

    return call


def tpu_devices(name: str) -> tuple[Any, ...]:  # as jax.devices(), which has no type either
    """The devices of a TPU slice that need not exist. Remove when JAX describes topologies outside jax.experimental.

    Raises:
      jax.errors.JaxRuntimeError: the TPU compiler does not start.
    """
    from jax.experimental import topologies

    return tuple(topologies.get_topology_desc(name, platform="tpu").devices)


def jax2tf() -> ModuleType:
    """The converter to TensorFlow. Remove when no JAX that pyproject.toml allows has it.

    Raises:
      UserError: this JAX has none.
    """
    try:
        from jax.experimental import jax2tf
    except ImportError as error:
        raise UserError(f"--formats=saved_model needs a JAX with jax2tf: {error}") from error
    return jax2tf
