"""Vision transformers up to their tokens: DINOv2, ImageNet's ViT, and the vision towers of CLIP and SigLIP.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021; DINOv2: Oquab et al., 2023; registers: Darcet et al., 2024;
CLIP: Radford et al., 2021; SigLIP: Zhai et al., 2023. The families differ in what `Family` lists and in nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from hap2s_jax.models.bicubic import resize_matrix

POOLINGS = ("cls", "gap", "cls+gap", "attention")

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": _quick_gelu,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A way of building the transformer that published weights share.

    Attributes:
      statistics: (mean, std) of the channels that its images are standardised by, for pixels in [0, 1].
      epsilon: of the layer normalisations.
      activation: of the MLPs: "gelu", "gelu_tanh" or "quick_gelu".
      class_token: whether a learnt token stands before the patches.
      layer_scale: whether each residual branch is scaled by a learnt vector.
      pre_norm: whether a layer normalisation stands before the first block; the patches then have no bias.
      antialias: whether positions are filtered before they are made fewer.
    """

    statistics: tuple[tuple[float, float, float], tuple[float, float, float]]
    epsilon: float = 1e-6
    activation: str = "gelu"
    class_token: bool = True
    layer_scale: bool = False
    pre_norm: bool = False
    antialias: bool = False


DINOV2 = Family(_IMAGENET, layer_scale=True)
DINOV2_REGISTERS = dataclasses.replace(DINOV2, antialias=True)
IMAGENET_VIT = Family(_HALF, epsilon=1e-12)
CLIP = Family(_CLIP, epsilon=1e-5, activation="quick_gelu", pre_norm=True)
SIGLIP = Family(_HALF, activation="gelu_tanh", class_token=False)


@dataclasses.dataclass(frozen=True)
class ViTArchitecture:
    """One transformer: its family and sizes.

    Attributes:
      family: how it is built.
      dim: channels of a token.
      depth: blocks.
      heads: of the attention.
      patch: side of a patch, pixels.
      grid: patches along a side of the images that it was trained on.
      registers: further learnt tokens.
    """

    family: Family
    dim: int
    depth: int
    heads: int
    patch: int
    grid: int
    registers: int = 0

    @property
    def prefix(self) -> int:
        """Tokens that stand before those of the patches."""
        return int(self.family.class_token) + self.registers


_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}

VITS = {
    **{f"dinov2_vit{s}14": ViTArchitecture(DINOV2, *_SIZES[s], 14, 37) for s in "sbl"},
    **{f"dinov2_vit{s}14_reg": ViTArchitecture(DINOV2_REGISTERS, *_SIZES[s], 14, 37, 4) for s in "sbl"},
    **{f"vit_{s}16": ViTArchitecture(IMAGENET_VIT, *_SIZES[s], 16, 14) for s in "sbl"},
    "clip_vitb32": ViTArchitecture(CLIP, *_SIZES["b"], 32, 7),
    "clip_vitb16": ViTArchitecture(CLIP, *_SIZES["b"], 16, 14),
    "clip_vitl14": ViTArchitecture(CLIP, *_SIZES["l"], 14, 16),
    "siglip_vitb16": ViTArchitecture(SIGLIP, *_SIZES["b"], 16, 14),
    "siglip_vitl16": ViTArchitecture(SIGLIP, *_SIZES["l"], 16, 16),
}


class ViT(nn.Module):
    """The trunk: patches, positions and blocks, up to the normalised tokens.

    Attributes:
      architecture: one of `VITS`.
      frozen_blocks: that many first blocks, and everything before them, are kept from training.
      remat: recompute the insides of each block in the backward pass, which trades a third more time for memory.
      dtype: of the computation; parameters, normalisations and the softmax are float32.
    """

    architecture: ViTArchitecture
    frozen_blocks: int = 0
    remat: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) of the channels that images are standardised by, for pixels in [0, 1]."""
        return self.architecture.family.statistics

    @property
    def frozen_parameters(self) -> tuple[str, ...]:
        """Regular expressions of the parameters' paths that no optimiser may touch."""
        return self.layers[: self.frozen_blocks + 1] if self.frozen_blocks else ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Regular expressions of the parameters' paths before the first block, and of each block."""
        before = "(?:patch_embedding|position_embedding|class_token|register_tokens|norm_pre)"
        return (before, *(f"block{n + 1}" for n in range(self.architecture.depth)))

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """Maps normalised images `[n, h, w, 3]` to tokens `[n, prefix + patches, dim]`: before the first block, after
        each block, and last after the final normalisation.

        Raises:
          ValueError: the sides are no multiples of the patch's.
        """
        arch, family = self.architecture, self.architecture.family
        height, width = x.shape[1:3]
        if height % arch.patch or width % arch.patch:
            near = [max(round(side / arch.patch), 1) * arch.patch for side in (height, width)]
            raise ValueError(
                f"images are {height}x{width}; the patches of this transformer need multiples of {arch.patch}, such as "
                f"{near[0]}x{near[1]}"
            )
        x = nn.Conv(
            arch.dim,
            (arch.patch, arch.patch),
            (arch.patch, arch.patch),
            "VALID",
            use_bias=not family.pre_norm,
            dtype=self.dtype,
            name="patch_embedding",
        )(x)
        grid = (x.shape[1], x.shape[2])
        x = x.reshape(x.shape[0], -1, arch.dim)
        x = self._with_tokens(x, grid)
        if family.pre_norm:
            x = _layer_norm(family, self.dtype, "norm_pre")(x)
        block = nn.remat(Block) if self.remat else Block
        tokens = [x]
        for number in range(arch.depth):
            tokens.append(block(arch, self.dtype, name=f"block{number + 1}")(tokens[-1]))
        return (*tokens, _layer_norm(family, self.dtype, "norm")(tokens[-1]))

    def _with_tokens(self, patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """The patches with their positions, behind the class token (with its own position) and the registers."""
        arch = self.architecture
        init = nn.initializers.truncated_normal(0.02)
        lead = int(arch.family.class_token)
        positions = self.param("position_embedding", init, (lead + arch.grid**2, arch.dim), jnp.float32)
        table = positions[lead:]
        if grid != (arch.grid, arch.grid):
            rows, columns = (resize_matrix(arch.grid, n, arch.family.antialias) for n in grid)
            table = table.reshape(arch.grid, arch.grid, arch.dim)
            table = jnp.einsum("ab,bcd->acd", rows.astype(table.dtype), table, precision="highest")
            table = jnp.einsum("ec,acd->aed", columns.astype(table.dtype), table, precision="highest")
            table = table.reshape(-1, arch.dim)
        parts = [patches + jnp.asarray(table, self.dtype)[None]]
        if arch.registers:
            registers = self.param("register_tokens", init, (arch.registers, arch.dim), jnp.float32)
            parts.insert(0, self._for_each(patches, registers))
        if lead:
            token = self.param("class_token", init, (1, arch.dim), jnp.float32)
            parts.insert(0, self._for_each(patches, token + positions[:1]))
        return jnp.concatenate(parts, axis=1)

    def _for_each(self, patches: jax.Array, tokens: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(tokens, self.dtype)[None], (patches.shape[0], *tokens.shape))


class Block(nn.Module):
    """Attention and MLP, each on normalised tokens and added to them."""

    architecture: ViTArchitecture
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[n, t, dim]` to the same shape."""
        arch, family = self.architecture, self.architecture.family
        normalised = _layer_norm(family, self.dtype, "norm1")(x)
        x = x + self._scaled(
            Attention(arch.heads, self.dtype, name="attention")(normalised, normalised), "scale1"
        )
        normalised = _layer_norm(family, self.dtype, "norm2")(x)
        return x + self._scaled(MLP(family.activation, self.dtype, name="mlp")(normalised), "scale2")

    def _scaled(self, x: jax.Array, name: str) -> jax.Array:
        if not self.architecture.family.layer_scale:
            return x
        scale = self.param(name, nn.initializers.constant(1e-5), (x.shape[-1],), jnp.float32)
        return x * scale.astype(x.dtype).reshape(1, 1, -1)


class Attention(nn.Module):
    """Attention of several heads of queries `[n, s, dim]` to tokens `[n, t, dim]`."""

    heads: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, queries: jax.Array, tokens: jax.Array) -> jax.Array:
        """Maps them to `[n, s, dim]`."""
        dim = tokens.shape[-1]
        inputs = {"query": queries, "key": tokens, "value": tokens}
        split = [
            nn.Dense(dim, dtype=self.dtype, name=name)(x).reshape(*x.shape[:2], self.heads, dim // self.heads)
            for name, x in inputs.items()
        ]
        mixed = jax.nn.dot_product_attention(*split)
        return nn.Dense(dim, dtype=self.dtype, name="output")(mixed.reshape(queries.shape))


class MLP(nn.Module):
    """A hidden layer four times as wide."""

    activation: str
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[n, t, dim]` to the same shape."""
        hidden = nn.Dense(4 * x.shape[-1], dtype=self.dtype, name="fc1")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(_ACTIVATIONS[self.activation](hidden))


class TokenPooling(nn.Module):
    """From a transformer's tokens to one vector per image, float32.

    Attributes:
      architecture: of the transformer.
      kind: "cls", the class token; "gap", the mean of the patches; "cls+gap", both, `2 dim` wide; "attention",
        SigLIP's learnt query and MLP.
    """

    architecture: ViTArchitecture
    kind: str = "cls"

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Pools `tokens` `[n, t, dim]` to `[n, dim]`, or `[n, 2 dim]`."""
        x = tokens.astype(np.promote_types(tokens.dtype, np.float32))
        if self.kind == "attention":
            arch = self.architecture
            query = self.param("query", nn.initializers.truncated_normal(0.02), (1, arch.dim), jnp.float32)
            queries = jnp.broadcast_to(query.astype(x.dtype)[None], (x.shape[0], 1, arch.dim))
            pooled = Attention(arch.heads, x.dtype, name="attention")(queries, x)
            normalised = _layer_norm(arch.family, x.dtype, "norm")(pooled)
            return (pooled + MLP(arch.family.activation, x.dtype, name="mlp")(normalised))[:, 0]
        mean = x[:, self.architecture.prefix :].mean(1)
        if self.kind == "gap":
            return mean
        return x[:, 0] if self.kind == "cls" else jnp.concatenate([x[:, 0], mean], axis=-1)


def _layer_norm(family: Family, dtype: Any, name: str) -> nn.LayerNorm:
    # The two-pass variance, as published models compute it: tokens far from the origin cancel in the other.
    return nn.LayerNorm(family.epsilon, dtype=dtype, use_fast_variance=False, name=name)
