"""Our ResNets written out in torch, with our names, so that weights pass from one to the other."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hap2s_jax.models.encoder import IMAGE_MEAN, IMAGE_STD
from hap2s_jax.models.resnet import ARCHITECTURES, STEMS, Architecture


def conv(channels: int, features: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution with our padding."""
    return nn.Conv2d(channels, features, kernel, stride, kernel // 2, groups=groups, bias=False)


class Block(nn.Module):
    """A residual block, basic or bottleneck."""

    def __init__(self, channels: int, features: int, inner: int, stride: int, architecture: Architecture):
        super().__init__()
        plan = [(channels, inner, 3, stride, 1), (inner, features, 3, 1, 1)]
        if architecture.bottleneck:
            plan = [
                (channels, inner, 1, 1, 1),
                (inner, inner, 3, stride, architecture.groups),
                (inner, features, 1, 1, 1),
            ]
        self.depth = len(plan)
        for number, layer in enumerate(plan, 1):
            self.add_module(f"conv{number}", conv(*layer))
            self.add_module(f"bn{number}", nn.BatchNorm2d(layer[1]))
        self.shortcut_conv = None
        if stride != 1 or channels != features:
            self.shortcut_conv, self.shortcut_bn = (
                conv(channels, features, 1, stride),
                nn.BatchNorm2d(features),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[n, c, h, w]` to `[n, features, h / stride, w / stride]`."""
        y = x
        for number in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y))
            y = torch.relu(y) if number < self.depth else y
        return torch.relu(y + (x if self.shortcut_conv is None else self.shortcut_bn(self.shortcut_conv(x))))


class Encoder(nn.Module):
    """The encoder of a config: a ResNet with pooling "gap" or "grid2" and a linear head.

    Args:
      settings: `config.encoder`, or as many of its keys as are set.
      classes: of the softmax beside the metric loss; 0 for none.
    """

    def __init__(self, settings: Any, classes: int = 0):
        super().__init__()
        architecture, width = ARCHITECTURES[settings["name"]], settings.get("width") or 64
        self.grid = {"gap": 1, "grid2": 2}[settings.get("pooling", "gap")]
        self.stem, channels = nn.Sequential(), 3
        for number, (kernel, stride, share) in enumerate(
            STEMS[settings.get("stem", "imagenet")].convolutions, 1
        ):
            features = max(1, int(width * share))
            self.stem.add_module(f"stem_conv{number}", conv(channels, features, kernel, stride))
            self.stem.add_module(f"stem_bn{number}", nn.BatchNorm2d(features))
            self.stem.append(nn.ReLU())
            channels = features
        if STEMS[settings.get("stem", "imagenet")].max_pool:
            self.stem.append(nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential()
        strides = (1, 2, 2, settings.get("last_stride", 2))
        for stage, (blocks, stride) in enumerate(zip(architecture.stage_sizes, strides, strict=True)):
            inner = width * 2**stage * architecture.group_width // 64 * architecture.groups
            features = width * 2**stage * (4 if architecture.bottleneck else 1)
            for block in range(blocks):
                made = Block(channels, features, inner, stride if block == 0 else 1, architecture)
                self.stages.add_module(f"stage{stage + 1}_block{block + 1}", made)
                channels = features
        d, channels = settings.get("embedding_dim", 128), channels * self.grid**2
        unit, norm = settings.get("normalize", False), settings.get("embedding_bn", False)
        self.embedding = nn.Linear(channels, d, bias=unit and not norm) if d else nn.Identity()
        self.embedding_bn = nn.BatchNorm1d(d) if norm else nn.Identity()
        if norm:
            self.embedding_bn.register_parameter("bias", None)
        self.unit = unit
        self.kernel: nn.Parameter | None = nn.Parameter(torch.zeros(d, classes)) if classes else None
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        self.pixel_mean, self.pixel_std = nn.Buffer(mean, persistent=False), nn.Buffer(std, persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 4:  # the layout that suits torch's convolutions best
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images `[n, h, w, 3]` to embeddings `[n, d]`."""
        x = (images.permute(0, 3, 1, 2).float() - self.pixel_mean) / self.pixel_std
        x = self.stages(self.stem(x))
        # The quarters of a map with an odd side overlap, as ours do.
        x = functional.adaptive_avg_pool2d(x, self.grid).permute(0, 2, 3, 1).flatten(1)
        x = self.embedding_bn(self.embedding(x))
        return functional.normalize(x) if self.unit else x

    def take(self, variables: Any) -> None:
        """Takes the weights and statistics of our encoder's `variables`."""
        found: dict[str, torch.Tensor] = {}
        kinds = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            *_, layer, kind = keys = [key.key for key in path]
            owner = "" if keys[1] == "head" else "stem." if layer.startswith("stem") else "stages."
            block = f"{keys[2]}." if len(keys) == 5 else ""
            array = np.asarray(leaf)
            array = array.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim])
            found[f"{owner}{block}{layer}.{kinds.get(kind, kind)}"] = torch.from_numpy(array.copy())
        rest = self.load_state_dict(found, strict=False)
        left = [key for key in rest.missing_keys if key != "kernel" and "num_batches" not in key]
        if left or rest.unexpected_keys:
            raise ValueError(f"the two encoders differ in {left + rest.unexpected_keys}")
