"""HAP2S: hard-aware point-to-set deep metric learning in JAX."""

# First, so that a command ends while all else loads.
from hap2s_jax.distributed import signals as _signals  # noqa: F401 # pyright: ignore[reportUnusedImport]

# isort: split
import importlib
from typing import TYPE_CHECKING, Any

from hap2s_jax import losses
from hap2s_jax.distances import pairwise_distances
from hap2s_jax.losses import (
    Weighting,
    exponential,
    hap2s_from_distances,
    hap2s_loss,
    hardest,
    polynomial,
    ranked,
    uniform,
)

if TYPE_CHECKING:
    from hap2s_jax.serving.loading import load as load

__version__ = "0.2.0"

__all__ = [
    "Weighting",
    "exponential",
    "hap2s_from_distances",
    "hap2s_loss",
    "hardest",
    "load",
    "losses",
    "pairwise_distances",
    "polynomial",
    "ranked",
    "uniform",
]


def __getattr__(name: str) -> Any:  # of any attribute's type
    # `load` needs flax and orbax. Users of the losses alone need not install them or wait for their import.
    if name == "load":
        return importlib.import_module("hap2s_jax.serving.loading").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
