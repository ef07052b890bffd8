"""Metric losses in JAX: HAP2S and the family it belongs to, on one engine."""

from hap2s_jax.losses import memory
from hap2s_jax.losses.batchwise import msml_loss, quadruplet_loss
from hap2s_jax.losses.classes import (
    arcface_loss,
    centre_loss,
    init_arcface_params,
    init_centre_params,
    init_proxy_params,
    init_softmax_params,
    proxy_nca_loss,
    softmax_loss,
)
from hap2s_jax.losses.engine import mean_over_anchors
from hap2s_jax.losses.given import hap2s_from_distances, mean_over_rows
from hap2s_jax.losses.hap2s import (
    batch_hard_loss,
    easy_positive_loss,
    hap2s_e_loss,
    hap2s_hardest_loss,
    hap2s_loss,
    hap2s_p_loss,
    hap2s_ranked_loss,
    point_to_set_mean_loss,
)
from hap2s_jax.losses.pairs import (
    contrastive_loss,
    lifted_structure_loss,
    n_pair_loss,
    nt_xent_loss,
    supervised_contrastive_loss,
)
from hap2s_jax.losses.registry import Loss, create, hyperparameters, names, register
from hap2s_jax.losses.rows import AnchorLoss, AnchorRow
from hap2s_jax.losses.schedules import create_schedule
from hap2s_jax.losses.similarities import circle_loss, multi_similarity_loss
from hap2s_jax.losses.triplets import (
    batch_all_loss,
    init_margin_params,
    margin_loss,
    random_triplet_loss,
    semi_hard_loss,
)
from hap2s_jax.losses.weightings import (
    Weighting,
    detached,
    easy_positive,
    exponential,
    hardest,
    polynomial,
    ranked,
    uniform,
)

register("hap2s_e", hap2s_e_loss, like=hap2s_loss)
register("hap2s_p", hap2s_p_loss, like=hap2s_loss)
register("hap2s_ranked", hap2s_ranked_loss, like=hap2s_loss)
register("hap2s_hardest", hap2s_hardest_loss, like=hap2s_loss)
register("batch_hard", batch_hard_loss, like=hap2s_loss)
register("point_to_set_mean", point_to_set_mean_loss, like=hap2s_loss)
register("easy_positive", easy_positive_loss)
register("batch_all", batch_all_loss)
register("semi_hard", semi_hard_loss)
register("random_triplet", random_triplet_loss)
register("contrastive", contrastive_loss)
register("lifted_structure", lifted_structure_loss)
register("margin", margin_loss, init_params=init_margin_params)
register("multi_similarity", multi_similarity_loss)
register("circle", circle_loss)
register("supervised_contrastive", supervised_contrastive_loss)
register("nt_xent", nt_xent_loss)
register("n_pair", n_pair_loss)
register("msml", msml_loss)
register("quadruplet", quadruplet_loss)
register("softmax", softmax_loss, init_params=init_softmax_params)
register("arcface", arcface_loss, init_params=init_arcface_params)
register("proxy_nca", proxy_nca_loss, init_params=init_proxy_params)
register("centre", centre_loss, init_params=init_centre_params)

__all__ = [
    "AnchorLoss",
    "AnchorRow",
    "Loss",
    "Weighting",
    "arcface_loss",
    "batch_all_loss",
    "batch_hard_loss",
    "centre_loss",
    "circle_loss",
    "contrastive_loss",
    "create",
    "create_schedule",
    "detached",
    "easy_positive",
    "easy_positive_loss",
    "exponential",
    "hap2s_e_loss",
    "hap2s_from_distances",
    "hap2s_hardest_loss",
    "hap2s_loss",
    "hap2s_p_loss",
    "hap2s_ranked_loss",
    "hardest",
    "hyperparameters",
    "init_margin_params",
    "lifted_structure_loss",
    "margin_loss",
    "mean_over_anchors",
    "mean_over_rows",
    "memory",
    "msml_loss",
    "multi_similarity_loss",
    "n_pair_loss",
    "names",
    "nt_xent_loss",
    "point_to_set_mean_loss",
    "polynomial",
    "proxy_nca_loss",
    "quadruplet_loss",
    "random_triplet_loss",
    "ranked",
    "register",
    "semi_hard_loss",
    "softmax_loss",
    "supervised_contrastive_loss",
    "uniform",
]
