"""Vision transformers up to their tokens: DINOv2 and 3, ImageNet's ViT, and the vision towers of CLIP and SigLIP.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021; DINOv2: Oquab et al., 2023; registers: Darcet et al., 2024;
DINOv3: Siméoni et al., 2025; CLIP: Radford et al., 2021; SigLIP: Zhai et al., 2023. They differ in what `Family` lists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from hap2s_jax.models.attention import Attention, Dense
from hap2s_jax.models.bicubic import resize_matrix
from hap2s_jax.models.rotary import angles_of
from hap2s_jax.models.vit_families import Family, ViTArchitecture

POOLINGS = ("cls", "gap", "cls+gap", "attention")


def _gelu(x: jax.Array) -> jax.Array:
    # jax.nn.gelu takes erfc, on a CPU four times as slow, for digits that the product with x does not keep.
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": _quick_gelu,
}


class ViT(nn.Module):
    """The trunk: patches, positions and blocks, up to the normalised tokens.

    Attributes:
      architecture: one of `VITS`.
      frozen_blocks: that many first blocks, and everything before them, are kept from training.
      remat: recompute the insides of each block in the backward pass, which trades a third more time for memory.
      drop_path: rate at which the last block's branches are left out in training, image by image (stochastic depth:
        Huang et al., 2016); it rises from 0 at the first block in equal steps.
      dtype: of the computation; parameters, normalisations and the softmax are float32.
    """

    architecture: ViTArchitecture
    frozen_blocks: int = 0
    remat: bool = False
    drop_path: float = 0.0
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
    def __call__(self, x: jax.Array, train: bool, keys: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """Maps normalised images `[n, h, w, 3]` to tokens `[n, prefix + patches, dim]`: before the first block, after
        each block, and last after the final normalisation.

        Args:
          x: the images.
          train: whether branches are left out.
          keys: `[n]` random keys, which say for each image which ones.

        Raises:
          ValueError: the sides are no multiples of the patch's, or keys are missing.
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
        kept = self._kept(keys) if train and self.drop_path else [None] * arch.depth
        tokens = [x]
        for number in range(arch.depth):
            tokens.append(block(arch, grid, self.dtype, name=f"block{number + 1}")(tokens[-1], kept[number]))
        return (*tokens, _layer_norm(family, self.dtype, "norm")(tokens[-1]))

    def _kept(self, keys: jax.Array | None) -> list[jax.Array]:
        """For each block `[2, n]`, what its two branches are multiplied by: 0, or 1 over the share that is kept."""
        if keys is None:
            raise ValueError("drop_path is above 0; in training give the encoder keys, one for each image")
        depth = self.architecture.depth
        share = 1 - np.linspace(0, self.drop_path, depth, dtype=np.float32).reshape(-1, 1, 1)
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (depth, 2), jnp.float32), out_axes=2)(keys)
        return list(jnp.where(drawn < share, 1 / share, 0))

    def _with_tokens(self, patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """The patches with their positions, behind the class token (with its own position) and the registers."""
        arch = self.architecture
        init = nn.initializers.truncated_normal(0.02)
        lead = int(arch.family.class_token)
        if arch.family.rotary:
            positions = jnp.zeros((lead + patches.shape[1], arch.dim), jnp.float32)
        else:
            positions = self.param("position_embedding", init, (lead + arch.grid**2, arch.dim), jnp.float32)
        table = positions[lead:]
        if not arch.family.rotary and grid != (arch.grid, arch.grid):
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
    grid: tuple[int, int]
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        """Maps `[n, t, dim]` to the same shape; `kept` `[2, n]` is what the branches are multiplied by."""
        arch, family, shape = self.architecture, self.architecture.family, x.shape

        def branch(y: jax.Array, number: int) -> jax.Array:
            if kept is not None:
                y = y.reshape(shape) * kept[number].astype(y.dtype).reshape(-1, 1, 1)
            return y.reshape(-1, shape[-1])

        # One table of all tokens: between shapes, XLA on a CPU makes the sums of residual branches anew for each use.
        x = x.reshape(-1, shape[-1])
        normalised = _layer_norm(family, self.dtype, "norm1")(x).reshape(shape)
        attention = Attention(arch.heads, self.dtype, not family.rotary, name="attention")
        angles = angles_of(self.grid, arch.dim // arch.heads) if family.rotary else None
        x = x + branch(attention(normalised, normalised, self._scale("scale1"), angles), 0)
        normalised = _layer_norm(family, self.dtype, "norm2")(x)
        mlp = MLP(family.activation, self.dtype, name="mlp")
        return (x + branch(mlp(normalised, self._scale("scale2")), 1)).reshape(shape)

    def _scale(self, name: str) -> jax.Array | None:
        first = self.architecture.family.layer_scale
        if not first:
            return None
        return self.param(name, nn.initializers.constant(first), (self.architecture.dim,), jnp.float32)


class MLP(nn.Module):
    """A hidden layer four times as wide."""

    activation: str
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """Maps `[n, t, dim]` to the same shape, times `scale` `[dim]`."""
        hidden = Dense(4 * x.shape[-1], self.dtype, name="fc1")(x)
        return Dense(x.shape[-1], self.dtype, name="fc2")(ACTIVATIONS[self.activation](hidden), scale)


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
