"""ResNets as torchvision defines them (v1.5), and small ones, up to the last feature map.

He et al., "Deep Residual Learning for Image Recognition", 2016; wide: Zagoruyko & Komodakis, 2016; ResNeXt:
Xie et al., 2017. "v1.5" puts a bottleneck's stride on its 3x3 convolution.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from hap2s_jax.models.conv import Conv
from hap2s_jax.models.norm import BatchNorm
from hap2s_jax.models.pooling import max_pool


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The structure of one member of the family; the width is an option of each.

    Attributes:
      stage_sizes: residual blocks in each of the four stages.
      bottleneck: 1x1 - 3x3 - 1x1 blocks that end four times as wide, instead of two 3x3 convolutions.
      groups: groups of the bottleneck's 3x3 convolution.
      group_width: channels per group in the first stage at width 64.
    """

    stage_sizes: tuple[int, int, int, int]
    bottleneck: bool
    groups: int = 1
    group_width: int = 64


ARCHITECTURES = {
    "resnet10": Architecture((1, 1, 1, 1), bottleneck=False),
    "resnet18": Architecture((2, 2, 2, 2), bottleneck=False),
    "resnet26": Architecture((2, 2, 2, 2), bottleneck=True),
    "resnet34": Architecture((3, 4, 6, 3), bottleneck=False),
    "resnet50": Architecture((3, 4, 6, 3), bottleneck=True),
    "resnet101": Architecture((3, 4, 23, 3), bottleneck=True),
    "resnet152": Architecture((3, 8, 36, 3), bottleneck=True),
    "wide_resnet50_2": Architecture((3, 4, 6, 3), bottleneck=True, group_width=128),
    "wide_resnet101_2": Architecture((3, 4, 23, 3), bottleneck=True, group_width=128),
    "resnext50_32x4d": Architecture((3, 4, 6, 3), bottleneck=True, groups=32, group_width=4),
    "resnext101_32x8d": Architecture((3, 4, 23, 3), bottleneck=True, groups=32, group_width=8),
    "resnext101_64x4d": Architecture((3, 4, 23, 3), bottleneck=True, groups=64, group_width=4),
}


@dataclasses.dataclass(frozen=True)
class Stem:
    """The layers before the first stage: convolutions (kernel, stride, share of the width), then a pool."""

    convolutions: tuple[tuple[int, int, float], ...]
    max_pool: bool


STEMS = {
    "imagenet": Stem(((7, 2, 1.0),), max_pool=True),
    "small64": Stem(((3, 2, 0.5), (3, 2, 1.0)), max_pool=False),
    "small32": Stem(((3, 1, 1.0),), max_pool=False),
}


class ResidualBlock(nn.Module):
    """One residual block, basic or bottleneck.

    Attributes:
      features: channels that come out.
      inner: channels of the 3x3 convolutions inside.
      stride: of the block.
      bottleneck: which of the two kinds.
      groups: of the bottleneck's 3x3 convolution.
      norm: makes a batch normalisation.
      zero_init_residual: the last scale of the branch starts at 0, so that the block starts as its shortcut.
      dtype: of the computation.
    """

    features: int
    inner: int
    stride: int
    bottleneck: bool
    groups: int
    norm: Callable[..., BatchNorm]
    zero_init_residual: bool
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, ceil(h / stride), ceil(w / stride), features]`."""
        last_scale = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        # (features, kernel, stride, groups) of each convolution of the branch
        if self.bottleneck:
            plan = [
                (self.inner, 1, 1, 1),
                (self.inner, 3, self.stride, self.groups),
                (self.features, 1, 1, 1),
            ]
        else:
            plan = [(self.inner, 3, self.stride, 1), (self.features, 3, 1, 1)]

        y = x
        for number, (features, kernel, stride, groups) in enumerate(plan, 1):
            y = Conv(features, kernel, stride, groups, self.dtype, name=f"conv{number}")(y)
            if number < len(plan):
                y = nn.relu(self.norm(name=f"bn{number}")(y, train))
            else:
                y = self.norm(name=f"bn{number}", scale_init=last_scale)(y, train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The trunk: stem and four stages, without pooling.

    Attributes:
      architecture: one of `ARCHITECTURES`.
      width: channels of the stem and of the first stage's 3x3 convolutions; doubled in each later stage.
      stem: one of `STEMS`.
      last_stride: stride of the last stage, 1 or 2.
      zero_init_residual: see `ResidualBlock`.
      remat_stages: numbers (1 to 4) of the stages whose blocks recompute their insides in the backward pass,
        which trades about a third more time for memory.
      axis_name: see `BatchNorm`.
      freeze_bn_stats, freeze_bn_affine: its `freeze_stats` and `freeze_affine`.
      dtype: of the computation; parameters and statistics are float32.
    """

    architecture: Architecture
    width: int = 64
    stem: str = "imagenet"
    last_stride: int = 2
    zero_init_residual: bool = False
    remat_stages: Sequence[int] = ()
    axis_name: str | None = None
    freeze_bn_stats: bool = False
    freeze_bn_affine: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    @property
    def frozen_parameters(self) -> tuple[str, ...]:
        """Regular expressions of the parameters' paths that no optimiser may touch."""
        return (r"(?:.*/)?\w*bn\d?",) if self.freeze_bn_affine else ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """Maps normalised images `[n, h, w, 3]` to five maps: the stem's and the four stages'."""
        architecture = self.architecture

        norm = functools.partial(
            BatchNorm,
            axis_name=self.axis_name,
            freeze_stats=self.freeze_bn_stats,
            freeze_affine=self.freeze_bn_affine,
            dtype=self.dtype,
        )
        x = self._stem(x, norm, train)
        maps = [x]
        for stage, blocks in enumerate(architecture.stage_sizes):
            width = self.width * 2**stage
            inner = width * architecture.group_width // 64 * architecture.groups
            features = 4 * width if architecture.bottleneck else width
            block_class = (
                nn.remat(ResidualBlock, static_argnums=(2,))
                if stage + 1 in self.remat_stages
                else ResidualBlock
            )
            for block in range(blocks):
                stride = (1, 2, 2, self.last_stride)[stage] if block == 0 else 1
                x = block_class(
                    features=features,
                    inner=inner,
                    stride=stride,
                    bottleneck=architecture.bottleneck,
                    groups=architecture.groups,
                    norm=norm,
                    zero_init_residual=self.zero_init_residual,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train)
            maps.append(x)
        return tuple(maps)

    def _stem(self, x: jax.Array, norm: Callable[..., BatchNorm], train: bool) -> jax.Array:
        stem = STEMS[self.stem]
        for number, (kernel, stride, share) in enumerate(stem.convolutions, 1):
            features = max(1, int(self.width * share))
            x = Conv(features, kernel, stride, dtype=self.dtype, name=f"stem_conv{number}")(x)
            x = nn.relu(norm(name=f"stem_bn{number}")(x, train))
        if stem.max_pool:
            x = max_pool(x)
        return x
