"""The state of training: arrays only, so that it can be donated, sharded and saved as it is."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
      step: int32 scalar, the number of completed updates; also the name of the checkpoint.
      params: ``{"encoder": ..., "loss": ...}``, the learnable arrays of the encoder and of the loss (an
        empty dict for the losses that have none).
      batch_stats: running statistics of the encoder's batch normalisation.
      opt_state: of the optax optimiser.
      ema_params: exponential moving average of `params`, with that of `batch_stats` under this key; None when it
        is off.
      memory: `hap2s_jax.losses.memory.Memory` of past batches, further keys of the metric loss, or None.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    ema_params: PyTree = None
    memory: PyTree = None


def start_average(params: PyTree, batch_stats: PyTree) -> PyTree:
    """The moving average before the first update. It is a copy, since donated arrays must not share buffers."""
    return jax.tree.map(jnp.copy, {**params, "batch_stats": batch_stats})


def move_average(average: PyTree, params: PyTree, batch_stats: PyTree, *, decay: float, step: Any) -> PyTree:
    """The moving average after an update.

    Statistics are averaged beside the weights, since those of the newest weights are not those of the averaged ones.
    Early on the decay is (1 + step) / (10 + step), if that is less: the first weights are soon forgotten.

    Args:
      average: the one before, as `start_average` made it.
      params, batch_stats: after the update.
      decay: in [0, 1).
      step: how many updates there were, this one included.
    """
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):  # such as counters of a custom encoder
            return new
        return old + rate.astype(new.dtype) * (new - old)

    return jax.tree.map(move, average, {**params, "batch_stats": batch_stats})


def encoder_variables(
    params: PyTree, batch_stats: PyTree, ema_params: PyTree = None, frozen: PyTree = None
) -> dict[str, PyTree]:
    """The variables to embed with, ``{"params", "batch_stats"}``: the moving average if the run keeps one.

    Those of a frozen trunk, `frozen`, which no state holds, stand beside them.

    Older runs did not average statistics; they are judged with those of the newest weights.
    """
    chosen = params if ema_params is None else ema_params
    found = {"params": chosen.get("encoder", {}), "batch_stats": chosen.get("batch_stats", batch_stats) or {}}
    return {name: {**(frozen or {}).get(name, {}), **tree} for name, tree in found.items()}


def split_frozen(variables: PyTree) -> tuple[PyTree, PyTree]:
    """The variables of an encoder's head, which a state holds, and those of its frozen trunk and pooling."""

    def part(of_head: bool) -> PyTree:
        return {
            name: {room: tree for room, tree in rooms.items() if (room == "head") == of_head}
            for name, rooms in variables.items()
        }

    return part(True), part(False)


def assemble_state(
    variables: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    loss_params: PyTree = None,
    use_ema: bool = False,
    memory: PyTree = None,
) -> TrainState:
    """The state before the first update.

    Args:
      variables: the encoder's initial variables, ``{"params", "batch_stats"}``.
      optimizer: optax gradient transformation.
      loss_params: initial learnable arrays of the loss, or None.
      use_ema: whether to keep a moving average of the parameters.
      memory: initial memory of past embeddings, or None.
    """
    params = {"encoder": variables["params"], "loss": {} if loss_params is None else loss_params}
    batch_stats = variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema_params=start_average(params, batch_stats) if use_ema else None,
        memory=memory,
    )
