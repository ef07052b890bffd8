"""Images per second of our encoders beside torch's, forward and train step, same threads and shapes.

    python experiments/benchmark_encoders.py --names=resnet18,resnet50 --batch=16 --size=224 --threads=2

Both sides take turns, round by round, so that a busy machine slows both; the ratio is the median over rounds. torch
runs transformers' ResNet (needs the bench extra; without it only our side is timed), on the GPU where both have one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], object]


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", default="resnet18,resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", help="of our computation and, by autocast, of torch's")
    options = parser.parse_args()
    # XLA's CPU client sizes its pool by the CPUs the process may use, which is what torch is given too.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    print("| encoder | what | ours, img/s | torch, img/s | ratio |\n|---|---|---|---|---|")
    for name in options.names.split(","):
        ours = _ours(name, options.batch, options.size, options.dtype)
        theirs = _theirs(name, options.batch, options.size, options.threads, options.dtype)
        for what in ours:
            print(f"| {name} | {what} | {_compare(ours[what], theirs.get(what), options)} |", flush=True)


def _compare(ours: Run, theirs: Run | None, options: argparse.Namespace) -> str:
    sides = [ours] if theirs is None else [ours, theirs]
    for side in sides:
        side()
    rates: list[list[float]] = [[] for _ in sides]
    for _ in range(options.rounds):
        for side, found in zip(sides, rates, strict=True):
            start = time.perf_counter()
            side()
            found.append(options.batch / (time.perf_counter() - start))
    medians = [f"{statistics.median(found):.1f}" for found in rates]
    if theirs is None:
        return f"{medians[0]} | - | -"
    ratio = statistics.median(a / b for a, b in zip(*rates, strict=True))
    return f"{medians[0]} | {medians[1]} | {ratio:.2f}"


def _ours(name: str, batch: int, size: int, dtype: str) -> dict[str, Run]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from hap2s_jax import models

    encoder = models.create(name, embedding_dim=0, dtype=dtype)
    images = jax.device_put(
        np.random.default_rng(0).integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
    )
    variables = models.initialize(encoder, jax.random.key(0), images[:1])

    @jax.jit
    def forward(variables):
        output: Any = encoder.apply(variables, images, train=False)
        return output.embedding

    def update(variables):
        def loss(params):
            output, state = encoder.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.square(output.embedding).mean(), state

        gradients, state = jax.grad(loss, has_aux=True)(variables["params"])
        return {"params": jax.tree.map(lambda p, g: p - 1e-3 * g, variables["params"], gradients), **state}

    step = jax.jit(update)
    return {
        "forward": lambda: jax.block_until_ready(forward(variables)),
        "train step": lambda: jax.block_until_ready(step(variables)),
    }


def _theirs(name: str, batch: int, size: int, threads: int, dtype: str) -> dict[str, Run]:
    from hap2s_jax.models.resnet import ARCHITECTURES

    try:
        import torch
        from transformers import ResNetConfig, ResNetModel
    except ImportError:
        return {}
    architecture = ARCHITECTURES[name]
    if (architecture.groups, architecture.group_width) != (1, 64):
        return {}
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    expansion = 4 if architecture.bottleneck else 1
    config = ResNetConfig(
        depths=list(architecture.stage_sizes),
        layer_type="bottleneck" if architecture.bottleneck else "basic",
        hidden_sizes=[64 * expansion * 2**stage for stage in range(4)],
    )
    model = torch.nn.Sequential(ResNetModel(config)).to(device)
    # The layout that suits torch's convolutions best, on both kinds of device.
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    autocast = torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32")

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        model.eval()
        with torch.no_grad(), autocast:
            model(images)
        wait()

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        with autocast:
            value = model(images).pooler_output.float().square().mean()
        value.backward()
        optimizer.step()
        wait()

    return {"forward": forward, "train step": step}


if __name__ == "__main__":
    main()
