"""A config's programs, each compiled for the chips of a slice: what `run.rehearsing` reports."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from hap2s_jax.distributed import tpu
from hap2s_jax.distributed.devices import AXIS
from hap2s_jax.distributed.tpu import Compiled, Topology
from hap2s_jax.run.evaluator import embedding_function
from hap2s_jax.run.learner import Learner


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """A config, its programs and the slice that they are compiled for."""

    learner: Learner
    topology: Topology
    num_classes: int
    effort: float

    @property
    def step_unit(self) -> int:
        """Number of images by which a global batch can grow: one class on every device."""
        return self.learner.config.batch.images_per_class * len(self.topology.devices)

    def _inputs(self, *sides: int) -> jax.ShapeDtypeStruct:
        """Inputs of the encoder, in this number."""
        one = self.learner.inputs
        return jax.ShapeDtypeStruct((*sides, *one.shape[1:]), one.dtype)

    def train_step(self, batch_size: int) -> Compiled:
        """The training step for a global batch."""
        shares = (len(self.topology.devices), batch_size // len(self.topology.devices))
        batch = {
            "image": self._inputs(*shares),
            "label": jax.ShapeDtypeStruct(shares, jnp.int32),
        }
        step = self.topology.parallel.compile_step(self.learner.train_step)
        state = self.learner.abstract_state(self.num_classes)
        return tpu.compile_for(self.topology, step, state, batch, effort=self.effort)

    def embed_step(self) -> tuple[int, Compiled]:
        """The program of evaluation on one host: images in its batch, and the compiler's figures."""
        host = tpu.topology(self.topology.name.partition(":")[0] + ":" + self.topology.chip.shapes[0])
        config, devices = self.learner.config, len(host.devices)
        images = -(-config.evaluate.batch_size // devices) * devices
        state = self.learner.abstract_state(self.num_classes)
        variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
        batch = self._inputs(images)
        program = host.parallel.map_program(embedding_function(self.learner.encoder, config.evaluate))
        return images, tpu.compile_for(host, program, variables, batch, effort=self.effort)

    def loss(self, topology: Topology, share: int, **settings: Any) -> Compiled:
        """The loss and its gradient by the embeddings, for `share` images a device; `settings` are the engine's."""
        state = self.learner.abstract_state(self.num_classes)
        images = self._inputs(share)
        apply = functools.partial(self.learner.encoder.apply, train=False)
        output = jax.eval_shape(
            apply, {"params": state.params["encoder"], "batch_stats": state.batch_stats}, images
        )
        objective = self.learner.objective
        if settings:
            objective = functools.partial(
                objective, loss=functools.partial(self.learner.losses["metric"], **settings)
            )

        def step(loss_params: Any, batch: Any) -> tuple[Any, Any]:
            def of(output: Any, params: Any) -> Any:
                return objective(output, batch["label"], params, AXIS, 0)[0]

            loss, grads = jax.value_and_grad(of, argnums=(0, 1))(batch["output"], loss_params)
            used = sum(jnp.sum(g) for g in jax.tree.leaves(grads))
            return loss_params, (loss, jax.lax.pmean(used, AXIS))

        n = len(topology.devices)
        batch = {
            "output": jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), output),
            "label": jax.ShapeDtypeStruct((n, share), jnp.int32),
        }
        compiled = topology.parallel.compile_step(step)
        return tpu.compile_for(topology, compiled, state.params["loss"], batch, effort=self.effort)
