"""Fifty steps of a tiny encoder in float64 on the devices there are, in one process or several; prints the losses.

`python many_steps.py HOST:PORT PROCESSES PROCESS_ID` is one of several processes.
"""

from __future__ import annotations

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from hap2s_jax import losses
from hap2s_jax.distributed import devices
from hap2s_jax.models.encoder import EncoderOutput, normalize_images
from hap2s_jax.models.norm import BatchNorm
from hap2s_jax.training.objective import objective
from hap2s_jax.training.state import assemble_state
from hap2s_jax.training.step import train_step

STEPS = 50
BATCH = 16


class TinyEncoder(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = normalize_images(images, jnp.float64)
        x = nn.Conv(4, (3, 3), strides=2, use_bias=False, dtype=jnp.float64)(x)
        x = nn.relu(BatchNorm(axis_name=devices.AXIS, dtype=jnp.float64)(x, train))
        features = x.mean((1, 2))
        return EncoderOutput(nn.Dense(8, use_bias=False, dtype=jnp.float64)(features), features)


def batch(step):
    """The global batch of a step, unequally many images a class: a function of the step alone."""
    rng = np.random.default_rng(step)
    labels = np.sort(rng.integers(0, 5, BATCH)).astype(np.int32)
    return {"image": rng.integers(0, 256, (BATCH, 8, 8, 3)).astype(np.uint8), "label": labels}


def run(num_devices=None):
    """The losses of all steps, and the last state."""
    with jax.enable_x64(True):
        data = devices.DataParallel.create(num_devices)
        optimizer = optax.adam(1e-2)
        variables = TinyEncoder().init(jax.random.key(0), batch(0)["image"])
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        step = functools.partial(
            train_step,
            encoder=TinyEncoder(),
            objective=functools.partial(objective, loss=losses.create("hap2s_p")),
            optimizer=optimizer,
            axis_name=devices.AXIS,
        )
        update = data.compile_step(step)
        state = data.replicate(assemble_state(variables, optimizer))
        share = BATCH // jax.process_count()
        own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        values = []
        for number in range(STEPS):
            state, metrics = update(state, data.split(jax.tree.map(lambda x, own=own: x[own], batch(number))))
            values.append(float(metrics["loss"]))
        return values, jax.device_get(state)


if __name__ == "__main__":
    devices.initialize_processes(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), join_timeout=900)
    print(json.dumps(run()[0]))
