"""Metric losses in JAX: HAP2S and the family it belongs to, on one engine."""

from hap2s_jax.losses.engine import mean_over_anchors
from hap2s_jax.losses.hap2s import (
    batch_hard_loss,
    hap2s_e_loss,
    hap2s_loss,
    hap2s_p_loss,
    point_to_set_mean_loss,
)
from hap2s_jax.losses.registry import Loss, create, hyperparameters, names, register
from hap2s_jax.losses.rows import AnchorLoss, AnchorRow
from hap2s_jax.losses.weightings import Weighting, detached, exponential, hardest, polynomial, uniform

register("hap2s_e", hap2s_e_loss)
register("hap2s_p", hap2s_p_loss)
register("batch_hard", batch_hard_loss)
register("point_to_set_mean", point_to_set_mean_loss)

__all__ = [
    "AnchorLoss",
    "AnchorRow",
    "Loss",
    "Weighting",
    "batch_hard_loss",
    "create",
    "detached",
    "exponential",
    "hap2s_e_loss",
    "hap2s_loss",
    "hap2s_p_loss",
    "hardest",
    "hyperparameters",
    "mean_over_anchors",
    "names",
    "point_to_set_mean_loss",
    "polynomial",
    "register",
    "uniform",
]
