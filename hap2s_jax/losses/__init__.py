"""Metric losses in JAX: HAP2S and the family it belongs to, on one engine."""

from hap2s_jax.losses import memory
from hap2s_jax.losses.batchwise import msml_loss, quadruplet_loss
from hap2s_jax.losses.class_sets import adasp_loss, centroid_triplet_loss
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
    weighted_regularised_triplet_loss,
)
from hap2s_jax.losses.margin import init_margin_params, margin_loss
from hap2s_jax.losses.pairs import (
    contrastive_loss,
    lifted_structure_loss,
    n_pair_loss,
    nt_xent_loss,
    supervised_contrastive_loss,
)
from hap2s_jax.losses.proxies import (
    centre_loss,
    init_centre_params,
    init_proxy_params,
    proxy_anchor_loss,
    proxy_nca_loss,
)
from hap2s_jax.losses.rankings import recall_at_k_surrogate_loss, smooth_ap_loss
from hap2s_jax.losses.registry import Loss, create, hyperparameters, names, register
from hap2s_jax.losses.rows import AnchorLoss, AnchorRow
from hap2s_jax.losses.schedules import create_schedule
from hap2s_jax.losses.similarities import circle_loss, multi_similarity_loss
from hap2s_jax.losses.softmaxes import (
    arcface_loss,
    cosface_loss,
    init_kernel_params,
    init_softmax_params,
    soft_triple_loss,
    softmax_loss,
    subcenter_arcface_loss,
)
from hap2s_jax.losses.triplets import batch_all_loss, random_triplet_loss, semi_hard_loss
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

# These never count the anchor among its own positives; with it they would be different losses.
for _name, _function in {
    "hap2s_e": hap2s_e_loss,
    "hap2s_p": hap2s_p_loss,
    "hap2s_ranked": hap2s_ranked_loss,
    "hap2s_hardest": hap2s_hardest_loss,
    "batch_hard": batch_hard_loss,
    "point_to_set_mean": point_to_set_mean_loss,
}.items():
    register(_name, _function, like=hap2s_loss, with_anchor=False)
register("weighted_regularised_triplet", weighted_regularised_triplet_loss)
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
register("adasp", adasp_loss)
register("centroid_triplet", centroid_triplet_loss)
register("smooth_ap", smooth_ap_loss)
register("recall_at_k_surrogate", recall_at_k_surrogate_loss)
register("softmax", softmax_loss, init_params=init_softmax_params)
register("arcface", arcface_loss, init_params=init_kernel_params)
register("subcenter_arcface", subcenter_arcface_loss, init_params=init_kernel_params)
register("cosface", cosface_loss, init_params=init_kernel_params)
register("soft_triple", soft_triple_loss, init_params=init_kernel_params, rate=100.0)
register("proxy_nca", proxy_nca_loss, init_params=init_proxy_params)
register("proxy_anchor", proxy_anchor_loss, init_params=init_proxy_params, rate=100.0)
register("centre", centre_loss, init_params=init_centre_params)

__all__ = [
    "AnchorLoss",
    "AnchorRow",
    "Loss",
    "Weighting",
    "adasp_loss",
    "arcface_loss",
    "batch_all_loss",
    "batch_hard_loss",
    "centre_loss",
    "centroid_triplet_loss",
    "circle_loss",
    "contrastive_loss",
    "cosface_loss",
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
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "quadruplet_loss",
    "random_triplet_loss",
    "ranked",
    "recall_at_k_surrogate_loss",
    "register",
    "semi_hard_loss",
    "smooth_ap_loss",
    "soft_triple_loss",
    "softmax_loss",
    "subcenter_arcface_loss",
    "supervised_contrastive_loss",
    "uniform",
    "weighted_regularised_triplet_loss",
]
