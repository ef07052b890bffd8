"""Forward passes and training steps of an encoder, ours and torch's; see `benchmark_encoders.py`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[], object]
IMAGES_PER_CLASS = 4


def settings(name: str) -> dict[str, Any]:
    """Options of the encoder called `name`, without an embedding layer, or of that of the config called `name`."""
    from hap2s_jax import models

    if name in models.names():
        return {"name": name, "embedding_dim": 0}
    return dict(importlib.import_module(f"configs.{name}").get_config().encoder)


class Ours:
    """Programs of one of our encoders on random images.

    Args:
      name: of the encoder, see `settings`.
      batch: images.
      size: (height, width) in pixels.
      dtype: of the computation.
      loss: name of the loss of the training step; None for the mean square of the features, which costs nothing.
      **options: of the encoder.
    """

    def __init__(
        self,
        name: str,
        batch: int,
        size: tuple[int, int],
        dtype: str,
        loss: str | None = None,
        **options: Any,
    ):
        import jax
        import jax.numpy as jnp

        from hap2s_jax import losses, models
        from hap2s_jax.distributed.experimental import step_options

        encoder = models.create(**settings(name) | {"dtype": dtype} | options)
        pixels = np.random.default_rng(0).integers(0, 256, (batch, *size, 3)).astype(np.uint8)
        self._images = jax.device_put(pixels)
        labels = jnp.arange(batch) // IMAGES_PER_CLASS
        self._variables = models.initialize(encoder, jax.random.key(0), self._images[:1])

        def value(embedding: jax.Array) -> jax.Array:
            if loss is None:
                return jnp.square(embedding).mean()
            return losses.create(loss)(embedding, labels, with_stats=False)

        def forward(variables: Any, images: jax.Array) -> jax.Array:
            output: Any = encoder.apply(variables, images, train=False)
            return output.embedding

        def update(variables: Any, images: jax.Array) -> Any:
            def of(params: Any) -> tuple[jax.Array, Any]:
                output, state = encoder.apply(
                    {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
                )
                return value(output.embedding), state

            gradients, state = jax.grad(of, has_aux=True)(variables["params"])
            return {
                "params": jax.tree.map(lambda p, g: p - 1e-3 * g, variables["params"], gradients),
                **state,
            }

        given = self._variables, self._images
        self._lowered = {
            "forward": jax.jit(forward).lower(*given),
            "train step": jax.jit(update, compiler_options=step_options(jax.default_backend())).lower(*given),
        }
        self._compiled: dict[str, Any] = {}

    def compiled(self, what: str) -> Any:
        """The program called `what`, "forward" or "train step"."""
        if what not in self._compiled:
            self._compiled[what] = self._lowered[what].compile()
        return self._compiled[what]

    def call(self, what: str) -> Run:
        """A function that runs that program to its end."""
        import jax

        program = self.compiled(what)
        return lambda: jax.block_until_ready(program(self._variables, self._images))

    def step_needs(self) -> tuple[float, float]:
        """Floating-point operations of a training step, and GB with arguments and results."""
        needs = self.compiled("train step").memory_analysis()
        used = needs.argument_size_in_bytes + needs.output_size_in_bytes + needs.temp_size_in_bytes
        # Before XLA has turned convolutions into calls of a library, whose operations it cannot count.
        return (self._lowered["train step"].cost_analysis() or {})["flops"], used / 1e9


def theirs(
    name: str,
    batch: int,
    size: tuple[int, int],
    dtype: str,
    *,
    threads: int | None = None,
    fused: bool = False,
) -> dict[str, Run]:
    """The same of the same network in torch, on the GPU where there is one; empty without torch.

    Args:
      name, batch, size, dtype: as of `Ours`; dtypes other than float32 by autocast.
      threads: of the CPU.
      fused: whether torch.compile makes the step.
    """
    from hap2s_jax.models.vit_families import VITS

    try:
        import torch

        from bench import torch_encoder, torch_vit
    except ImportError:
        return {}
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = torch_vit.Encoder(name) if name in VITS else torch_encoder.Encoder(settings(name))
    model = made.to(device)
    run: Any = torch.compile(model) if fused else model
    images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    autocast = torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32")

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        model.eval()
        with torch.no_grad(), autocast:
            run(images)
        wait()

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        with autocast:
            value = run(images).float().square().mean()
        value.backward()
        optimizer.step()
        wait()

    return {"forward": forward, "train step": step}
