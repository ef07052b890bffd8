"""The margin loss, with negatives drawn evenly over their distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from hap2s_jax.distances import COMPUTED_IN, FLOAT32, check_embeddings, clean_rows, whole
from hap2s_jax.losses.draws import drawn, key_data, uniforms
from hap2s_jax.losses.engine import counted, mean_over_anchors
from hap2s_jax.losses.pytrees import register_dataclass
from hap2s_jax.losses.rows import AnchorRow, EngineCall, LossTree, Result
from hap2s_jax.losses.weightings import Scalar, check_range

_DRAWS = 16  # of an anchor at a time


@register_dataclass
@dataclass(frozen=True)
class Margin:
    """Pairs on either side of a learnt boundary; each positive brings a negative drawn evenly over
    distances."""

    beta: jax.Array  # [c], or [] for one boundary
    alpha: Scalar
    nu: Scalar
    cutoff: Scalar
    key: jax.Array
    dimensions: int = field(metadata={"static": True})

    def of_rows(self, rows: AnchorRow) -> tuple[jax.Array, jax.Array]:
        """Losses of anchors `[n]` and their numbers of active pairs."""
        dtype = rows.distances.dtype
        beta = self.beta if self.beta.ndim == 0 else self.beta[rows.label]
        beta = jnp.broadcast_to(beta.astype(dtype), rows.index.shape)
        alpha, nu = (jnp.asarray(number, dtype) for number in (self.alpha, self.nu))
        positives = jnp.where(jnp.any(rows.is_negative, axis=1), jnp.sum(rows.is_positive, axis=1), 0)
        both = rows.is_positive & (positives > 0)[:, None]
        pull = jnp.where(both, jax.nn.relu(rows.distances - (beta - alpha)[:, None]), 0)
        times = self._active_draws(*lax.stop_gradient((rows, beta + alpha)), positives)
        push = jnp.sum(times * ((beta + alpha)[:, None] - rows.distances), axis=1)
        active = jnp.sum(pull > 0, axis=1).astype(dtype) + jnp.sum(times, axis=1)
        return jnp.sum(pull, axis=1) + push + nu * beta * positives.astype(dtype), active

    def _active_draws(self, rows: AnchorRow, reach: jax.Array, positives: jax.Array) -> jax.Array:
        """How often each key `[n, m]` is drawn as a negative nearer than `reach` `[n]`, once for every positive."""
        shares, most = self.shares(rows), jnp.max(positives)
        near = rows.is_negative & (rows.distances < reach[:, None])
        anchors = jnp.arange(len(shares))[:, None]

        def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            number, times = carry
            places = self.draw(shares, rows.index, number)
            wanted = number * _DRAWS + jnp.arange(_DRAWS, dtype=positives.dtype)[None, :] < positives[:, None]
            return number + 1, times.at[anchors, places].add(wanted.astype(times.dtype))

        start = (jnp.zeros_like(most), jnp.zeros_like(shares))
        return jnp.where(near, lax.while_loop(lambda carry: carry[0] * _DRAWS < most, step, start)[1], 0)

    def shares(self, rows: AnchorRow) -> jax.Array:
        """Probabilities `[n, m]` of the keys, but for a factor: uniform in distance on the unit sphere up to 1.4."""
        distances = rows.distances
        # The paper's code leaves out negatives beyond 1.4; where there are no others, all may be drawn.
        candidates = rows.is_negative & (distances < 1.4)
        candidates = jnp.where(jnp.any(candidates, axis=1, keepdims=True), candidates, rows.is_negative)
        cutoff, last = (lax.stop_gradient(jnp.asarray(x, distances.dtype)) for x in (self.cutoff, 1.99))

        def bend(distances: jax.Array) -> jax.Array:
            """r^2 (1 - r^2 / 4): the density at r is r times its power of (d - 3) / 2, but for a factor."""
            squares = jnp.square(jnp.clip(distances, cutoff, last))
            return squares * (1 - squares / 4)

        # It rises up to a distance of root 2 and falls from there, so it is least at the nearest or the farthest.
        nearest = jnp.min(jnp.where(candidates, distances, jnp.inf), axis=1, keepdims=True)
        farthest = jnp.max(jnp.where(candidates, distances, 0), axis=1, keepdims=True)
        least = lax.optimization_barrier(jnp.minimum(bend(nearest), bend(farthest)))
        # By products, which cost less than a logarithm and an exponential.
        ratio, exponent = least / bend(distances), self.dimensions - 3
        power = lax.integer_pow(ratio, exponent // 2) * (jnp.sqrt(ratio) if exponent % 2 else 1)
        return jnp.where(candidates, power / jnp.clip(distances, cutoff, last), 0)

    def draw(self, shares: jax.Array, index: jax.Array, number: jax.Array) -> jax.Array:
        """The keys `[n, 16]` of the anchors' `number`-th draws."""
        key = jax.random.fold_in(self.key, number)
        return drawn(shares, uniforms(key, index, _DRAWS, shares.dtype))


def margin_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    params: Mapping[str, ArrayLike] | None = None,
    alpha: Scalar = 0.2,
    nu: Scalar = 0.0,
    cutoff: Scalar = 0.5,
    key: jax.Array | None = None,
    **arguments: Unpack[EngineCall],
) -> Result:
    """Margin loss with distance-weighted sampling (Wu et al., "Sampling Matters", ICCV 2017).

    For each positive pair max(0, d_p - beta + alpha), and for a negative drawn with probability inverse to
    the density of distances on the sphere, max(0, beta - d_n + alpha); summed and divided by the number of
    pairs above 0. pytorch-metric-learning's MarginLoss divides in the same way.

    Args:
        embeddings: `[n, d]`, normalised here.
        labels: `[n]`, 0 to c - 1 where beta is per class.
        params: {"beta": `[c]` or `[]`}, the boundaries, to be learnt; 1.2 where not given.
        alpha: half the width of the boundary.
        nu: weight of the penalty on beta.
        cutoff: distances below it are drawn as if they were it.
        key: random key for this step, see `random_triplet_loss`.
        **arguments: the engine's, see `mean_over_anchors`; further `keys` are normalised here too.
    """
    check_range("alpha", alpha, positive=None)
    check_range("nu", nu, positive=False)
    check_range("cutoff", cutoff)
    beta = whole(jnp.asarray(1.2 if params is None else params["beta"]))
    ignore_label = arguments.get("ignore_label", -1)
    vectors, labels = check_embeddings("embeddings", embeddings, "labels", labels)
    given, given_labels = arguments.get("keys"), arguments.get("key_labels")
    if given is not None or given_labels is not None:
        keys, key_labels = check_embeddings("keys", given, "key_labels", given_labels)
        arguments["keys"] = _unit_rows(keys, key_labels, ignore_label)
    loss: LossTree = Margin(beta, alpha, nu, cutoff, key_data(key), vectors.shape[-1])
    return mean_over_anchors(loss, _unit_rows(vectors, labels, ignore_label), labels, **arguments)


def init_margin_params(key: jax.Array, num_classes: int, embedding_dim: int) -> dict[str, jax.Array]:
    """The boundaries of `margin_loss`, one per class, at the paper's 1.2."""
    del key, embedding_dim
    return {"beta": jnp.full(num_classes, 1.2)}


def _unit_rows(embeddings: jax.Array, labels: jax.Array, ignore_label: int | None) -> jax.Array:
    """Rows `[n, d]` of unit length; ignored ones are zero, so that a NaN there reaches no gradient."""
    vectors = embeddings.astype(COMPUTED_IN.get(embeddings.dtype, FLOAT32))
    return clean_rows(vectors, counted(labels, ignore_label), "cosine", None)
