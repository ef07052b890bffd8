"""An encoder's layers one by one, ours and torch's; see `benchmark_encoders.py`."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

from bench.encoders import Run, settings


def layers(name: str, batch: int, size: tuple[int, int]) -> dict[str, tuple[Run, Run | None]]:
    """Each kind of layer of an encoder with its gradient, ours and torch's (None without torch).

    Args:
      name: of the encoder, see `encoders.settings`.
      batch: images.
      size: (height, width) in pixels.

    Returns:
      By what it is and how many of it the encoder has.
    """
    from hap2s_jax.models.vit_families import VITS

    return _of_transformer(VITS[name], batch, size) if name in VITS else _of_resnet(name, batch, size)


def _of_resnet(name: str, batch: int, size: tuple[int, int]) -> dict[str, tuple[Run, Run | None]]:
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from hap2s_jax import models
    from hap2s_jax.models.conv import Conv
    from hap2s_jax.models.norm import BatchNorm
    from hap2s_jax.models.pooling import max_pool
    from hap2s_jax.models.resnet import STEMS

    seen: collections.Counter[tuple[Any, ...]] = collections.Counter()

    def note(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
        module, shape = context.module, args[0].shape if args else ()
        if isinstance(module, Conv):
            seen[("conv", shape, module.features, module.kernel, module.stride, module.groups)] += 1
        elif isinstance(module, BatchNorm) and len(shape) == 4:
            seen[("norm", shape)] += 1
        return call(*args, **kwargs)

    given = settings(name)
    encoder = models.create(**given)
    images = jnp.zeros((batch, *size, 3), jnp.uint8)
    with nn.intercept_methods(note):
        jax.eval_shape(encoder.init, jax.random.key(0), images)
    found = {}
    for (kind, shape, *numbers), count in seen.items():
        sides = " x ".join(map(str, shape))
        if kind == "conv":
            features, kernel, stride, groups = numbers
            module = Conv(features, kernel, stride, groups)
            label = f"{kernel} x {kernel} / {stride} to {features}, {sides}"
        else:
            module, label = BatchNorm(), f"normalisation and ReLU, {sides}"
        variables = module.init(jax.random.key(0), jnp.zeros((1, *shape[1:])), *(() if numbers else (False,)))

        def layer(
            x: Any, params: Any, module: Any = module, variables: Any = variables, numbers: Any = numbers
        ) -> Any:
            if numbers:
                return module.apply({"params": params}, x)
            y, _ = module.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return nn.relu(y)

        found[f"{count} of {label}"] = _pair(
            layer, shape, variables["params"], _torch_layer(kind, shape, numbers)
        )
    if STEMS[given.get("stem", "imagenet")].max_pool:
        shape = next(shape for kind, shape, *_ in seen if kind == "norm")
        pool = _torch_layer("pool", shape, [])
        found[f"1 of max pooling, {' x '.join(map(str, shape))}"] = _pair(
            lambda x, _: max_pool(x), shape, {}, pool
        )
    return found


def _of_transformer(
    architecture: Any, batch: int, size: tuple[int, int]
) -> dict[str, tuple[Run, Run | None]]:
    """The layers of the blocks; attention is without the linear layers around it."""
    import jax.numpy as jnp
    from flax import linen as nn

    from hap2s_jax.models.attention import Dense, attend
    from hap2s_jax.models.vit import ACTIVATIONS

    dim, depth, heads = architecture.dim, architecture.depth, architecture.heads
    tokens = architecture.prefix + (size[0] // architecture.patch) * (size[1] // architecture.patch)
    flat, activation = batch * tokens, architecture.family.activation
    found = {}

    def add(count: int, what: str, layer: Any, shape: tuple[int, ...], params: Any, *theirs: Any) -> None:
        label = f"{count} of {what}, {' x '.join(map(str, shape))}"
        found[label] = _pair(layer, shape, params, _torch_token_layer(*theirs), channels_first=False)

    for count, width, features in ((4, dim, dim), (1, dim, 4 * dim), (1, 4 * dim, dim)):
        params = {"kernel": jnp.ones((width, features)) / width, "bias": jnp.zeros(features)}
        linear = functools.partial(_applied, Dense(features, jnp.float32))
        add(count * depth, f"linear to {features}", linear, (flat, width), params, "Linear", width, features)
    norm = functools.partial(_applied, nn.LayerNorm(architecture.family.epsilon, use_fast_variance=False))
    params = {"scale": jnp.ones(dim), "bias": jnp.zeros(dim)}
    add(2 * depth, "normalisation", norm, (flat, dim), params, "LayerNorm", dim)
    add(depth, activation, lambda x, _: ACTIVATIONS[activation](x), (flat, 4 * dim), {}, "GELU")
    heads_of_three = (batch, tokens, 3 * heads, dim // heads)
    add(depth, "attention", lambda x, _: attend(*jnp.split(x, 3, axis=2)), heads_of_three, {}, "attention")
    return found


def _applied(module: Any, x: Any, params: Any) -> Any:
    return module.apply({"params": params}, x)


def _pair(
    layer: Callable[..., Any],
    shape: tuple[int, ...],
    params: Any,
    torch_layer: Any,
    *,
    channels_first: bool = True,
) -> tuple[Run, Run | None]:
    """Value and gradient of a layer of ours and of torch's, whose images have the channels first."""
    import jax

    x = jax.random.normal(jax.random.key(1), shape)
    cotangent = jax.random.normal(jax.random.key(2), jax.eval_shape(layer, x, params).shape)

    @jax.jit
    def ours(x: Any, params: Any, cotangent: Any) -> Any:
        y, pull = jax.vjp(layer, x, params)
        return y, pull(cotangent)

    def run() -> object:
        return jax.block_until_ready(ours(x, params, cotangent))

    if torch_layer is None:
        return run, None
    import torch

    as_torch = [torch.from_numpy(jax.device_get(a).copy()) for a in (x, cotangent)]
    as_torch = [a.permute(0, 3, 1, 2) for a in as_torch] if channels_first else as_torch
    inputs = as_torch[0].requires_grad_()

    def theirs() -> None:
        inputs.grad = None
        torch_layer(inputs).backward(as_torch[1])

    return run, theirs


def _torch_layer(kind: str, shape: tuple[int, ...], numbers: list[int]) -> Any:
    try:
        from torch import channels_last, nn

        from bench.torch_encoder import conv
    except ImportError:
        return None
    if kind == "pool":
        return nn.MaxPool2d(3, 2, 1)
    if kind == "norm":
        return nn.Sequential(nn.BatchNorm2d(shape[-1]), nn.ReLU())
    made = conv(shape[-1], *numbers)
    made.weight.data = made.weight.data.contiguous(memory_format=channels_last)
    return made


def _torch_token_layer(kind: str, *numbers: int) -> Any:
    try:
        from torch import nn
    except ImportError:
        return None
    if kind != "attention":
        return getattr(nn, kind)(*numbers)

    def attention(x: Any) -> Any:
        by_head = (part.transpose(1, 2) for part in x.chunk(3, dim=2))
        return nn.functional.scaled_dot_product_attention(*by_head).transpose(1, 2)

    return attention
