"""HAP2S: hard-aware point-to-set deep metric learning in JAX."""

from hap2s_jax import losses
from hap2s_jax.distances import pairwise_distances
from hap2s_jax.losses import (
    Weighting,
    exponential,
    hap2s_from_distances,
    hap2s_loss,
    hardest,
    polynomial,
    uniform,
)

__version__ = "0.1.0"

__all__ = [
    "Weighting",
    "exponential",
    "hap2s_from_distances",
    "hap2s_loss",
    "hardest",
    "losses",
    "pairwise_distances",
    "polynomial",
    "uniform",
]
