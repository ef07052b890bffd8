"""The training step: a pure function that knows only the name of the devices' axis."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hap2s_jax.distances import squares
from hap2s_jax.losses.memory import push
from hap2s_jax.training.state import TrainState, move_average

PyTree = Any
FEATURES = ("retrieval", "embedding", "features")
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
    pieces: int = 1,
    seed: int = 0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from one global batch.

    Args:
      state: the current state, equal on all devices.
      batch: this device's share: ``image [b, h, w, 3]`` and ``label [b]``.
      encoder: flax module whose batch normalisation is synchronised over `axis_name`; if it is not, each device
        normalises by its own share, and the running statistics are the devices' mean.
      objective: ``objective(output, labels, loss_params, axis_name, step, memory) -> (loss, stats)``, both being those
        of the **global** batch. Its loss must be the global mean on every device: the mean over devices of the
        gradients of a global mean is the gradient of the global batch.
      optimizer: optax gradient transformation.
      axis_name: the axis over which devices are reduced.
      ema_decay: decay of the moving average, see `move_average`; None without one.
      pieces: in how many pieces each device's share goes through the encoder, one after another, with the
        same gradient and the memory of one piece; see `encode`.
      seed: of the random keys of an encoder that takes them.

    Returns:
      The new state, and float32 scalars (float64 where they were computed so): ``loss``, ``grad_norm`` (before
      clipping), ``param_norm``, ``embedding_spread``, and the objective's stats.
    """

    keys = {}
    if getattr(encoder, "needs_keys", False):
        keys["keys"] = image_keys(seed, state.step, len(batch["label"]), axis_name)
    output, batch_stats, pull_back = encode(
        encoder, state.params["encoder"], state.batch_stats, (batch["image"], keys), pieces
    )
    differentiate = jax.value_and_grad(objective, argnums=(0, 2), has_aux=True)
    (loss, stats), (by_output, by_loss_params) = differentiate(
        output, batch["label"], state.params["loss"], axis_name, state.step, state.memory
    )
    # The mean of the devices' parts is the gradient of the global batch.
    grads = jax.lax.pmean({"encoder": pull_back(by_output), "loss": by_loss_params}, axis_name)
    # Already equal on all devices, unless a custom encoder does not synchronise them.
    batch_stats = jax.tree.map(
        lambda s: jax.lax.pmean(s, axis_name) if jnp.issubdtype(s.dtype, jnp.floating) else s, batch_stats
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_decay is not None:
        ema_params = move_average(ema_params, params, batch_stats, decay=ema_decay, step=state.step + 1)

    metrics = {
        "loss": loss,
        "grad_norm": optax.global_norm(grads),
        "param_norm": optax.global_norm(params),
        "embedding_spread": embedding_spread(output.embedding, axis_name),
        **stats,
    }
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema_params=ema_params,
        # After the loss: a batch in the memory would be its own positives.
        memory=state.memory
        if state.memory is None
        else push(state.memory, output.embedding, batch["label"], axis_name=axis_name),
    )
    # Narrower types are too coarse for a log; float64 stays float64.
    return new_state, {
        k: jnp.asarray(v, jnp.promote_types(jnp.result_type(v), jnp.float32)) for k, v in metrics.items()
    }


def image_keys(seed: int, step: jax.Array, count: int, axis_name: str) -> jax.Array:
    """Random keys of this device's `count` images: a function of seed, step and place in the global batch."""
    first = jax.lax.axis_index(axis_name) * count
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(count))


def encode(
    encoder: Any, params: PyTree, batch_stats: PyTree, inputs: tuple[jax.Array, PyTree], pieces: int = 1
) -> tuple[Any, PyTree, Callable[[Any], PyTree]]:
    """Encodes this device's share of a batch in training.

    A metric loss is no sum over pieces, so gradients of pieces' own losses would be those of another loss. Here (as in
    GradCache, Gao et al. 2021) all pieces are embedded first, the loss of the whole batch and its gradient by the
    output are computed once, and each piece is encoded again to carry its share back: in the memory of one piece, at
    the price of a second forward pass.

    Exact where an image's embedding depends on that image alone. Batch normalisation that is not frozen takes
    its statistics from a piece (of all devices), in both passes alike, and the running ones move by the mean
    over the pieces.

    Args:
      encoder: flax module.
      params: its parameters.
      batch_stats: its running statistics.
      inputs: images ``[b, h, w, 3]`` and further arguments by name, all ``[b, ...]``.
      pieces: a divisor of b.

    Returns:
      The output, the new batch statistics, and a function that carries a gradient by the output back to one by
      `params`.
    """

    def encode_piece(params: PyTree, piece: tuple[jax.Array, PyTree]) -> tuple[Any, PyTree]:
        # Every piece starts from the same running statistics: the second pass then repeats the first.
        variables = {"params": params, "batch_stats": batch_stats}
        output, updates = encoder.apply(variables, piece[0], train=True, mutable=["batch_stats"], **piece[1])
        return output, updates.get("batch_stats", batch_stats)

    if pieces == 1:
        output, back, new_stats = jax.vjp(lambda p: encode_piece(p, inputs), params, has_aux=True)
        return output, new_stats, lambda by_output: back(by_output)[0]
    split = jax.tree.map(lambda x: x.reshape(pieces, x.shape[0] // pieces, *x.shape[1:]), inputs)
    _, (outputs, new_stats) = jax.lax.scan(lambda _, piece: (None, encode_piece(params, piece)), None, split)

    def pull_back(by_output: Any) -> PyTree:
        by_outputs = jax.tree.map(lambda x, like: x.reshape(like.shape), by_output, outputs)

        def add_piece(total: PyTree, piece: tuple[Any, Any]) -> tuple[PyTree, None]:
            _, back = jax.vjp(lambda p: encode_piece(p, piece[0])[0], params)
            return jax.tree.map(jnp.add, total, back(piece[1])[0]), None

        return jax.lax.scan(add_piece, jax.tree.map(jnp.zeros_like, params), (split, by_outputs))[0]

    output = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
    new_stats = jax.tree.map(lambda x: jnp.mean(x, axis=0, dtype=x.dtype), new_stats)
    return output, new_stats, pull_back


def embedding_spread(embedding: jax.Array, axis_name: str) -> jax.Array:
    """Root mean square distance of the global batch's embeddings from their mean, over their root mean
    square norm: about 1 for embeddings spread around the origin, 0 for a batch collapsed into one point.

    Args:
      embedding: ``[b, d]``, this device's share.
      axis_name: the axis over which devices are reduced.
    """
    x = jax.lax.stop_gradient(embedding).astype(jnp.promote_types(embedding.dtype, jnp.float32))
    mean = jax.lax.pmean(jnp.mean(x, axis=0), axis_name)
    variance = jax.lax.pmean(jnp.mean(squares(x - mean)), axis_name)
    square_norm = jax.lax.pmean(jnp.mean(squares(x)), axis_name)
    return jnp.sqrt(variance / jnp.maximum(square_norm, jnp.finfo(x.dtype).tiny))


def embed_step(
    variables: PyTree, images: jax.Array, *, encoder: Any, feature: str = "retrieval"
) -> jax.Array:
    """Embeds ``images [b, h, w, 3]`` to what retrieval compares, ``[b, d]``; rows are independent.

    Args:
      variables: of the encoder.
      images: uint8, or float in [0, 255].
      encoder: flax module.
      feature: which of FEATURES: "retrieval" is the embedding, after BNNeck where there is one; "embedding" is
        the one before it, which the metric loss compares; "features" are pooled, before the head.
    """
    return getattr(encoder.apply(variables, images, train=False), feature)
