"""The one training step, a pure function that knows of devices only the name of an axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hap2s_jax.training.state import TrainState

PyTree = Any
Objective = Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]]


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    encoder: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    axis_name: str,
    ema_decay: float | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from one global batch.

    Args:
      state: the current state, equal on all devices.
      batch: this device's share: ``image [b, h, w, 3]`` and ``label [b]``.
      encoder: flax module whose batch normalisation is synchronised over `axis_name`.
      objective: ``objective(output, labels, loss_params, axis_name, step) -> (loss, stats)``, both being those
        of the **global** batch. Its loss must be the global mean on every device: the mean over devices of the
        gradients of a global mean is the gradient of the global batch.
      optimizer: optax gradient transformation.
      axis_name: the axis over which devices are reduced.
      ema_decay: decay of the moving average of the parameters, None without one.

    Returns:
      The new state, and float32 scalars: ``loss``, ``grad_norm`` (before clipping), ``param_norm``,
      ``embedding_spread``, and the objective's stats.
    """

    def loss_function(params):
        output, updates = encoder.apply(
            {"params": params["encoder"], "batch_stats": state.batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
        )
        loss, stats = objective(output, batch["label"], params["loss"], axis_name, state.step)
        return loss, (stats, updates.get("batch_stats", state.batch_stats), output.embedding)

    (loss, (stats, batch_stats, embedding)), grads = jax.value_and_grad(loss_function, has_aux=True)(
        state.params
    )
    grads = jax.lax.pmean(grads, axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_decay is not None:
        ema_params = optax.incremental_update(params, ema_params, 1.0 - ema_decay)

    metrics = {
        "loss": loss,
        "grad_norm": optax.global_norm(grads),
        "param_norm": optax.global_norm(params),
        "embedding_spread": embedding_spread(embedding, axis_name),
        **stats,
    }
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema_params=ema_params,
    )
    return new_state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}


def embedding_spread(embedding: jax.Array, axis_name: str) -> jax.Array:
    """Root mean square distance of the global batch's embeddings from their mean, over their root mean
    square norm: about 1 for embeddings spread around the origin, 0 for a batch collapsed into one point.

    Args:
      embedding: ``[b, d]``, this device's share.
      axis_name: the axis over which devices are reduced.
    """
    x = jax.lax.stop_gradient(embedding).astype(jnp.promote_types(embedding.dtype, jnp.float32))
    mean = jax.lax.pmean(jnp.mean(x, axis=0), axis_name)
    variance = jax.lax.pmean(jnp.mean(jnp.sum((x - mean) ** 2, axis=-1)), axis_name)
    square_norm = jax.lax.pmean(jnp.mean(jnp.sum(x**2, axis=-1)), axis_name)
    return jnp.sqrt(variance / jnp.maximum(square_norm, jnp.finfo(x.dtype).tiny))


def embed_step(variables: PyTree, images: jax.Array, *, encoder: Any) -> jax.Array:
    """Embeds ``images [b, h, w, 3]`` to what retrieval compares, ``[b, d]``; rows are independent."""
    return encoder.apply(variables, images, train=False).retrieval
