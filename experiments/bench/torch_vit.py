"""Vision transformers of transformers, as our encoders have them: images in, the mean of the patches' tokens out."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from hap2s_jax.models.vit_families import VITS


class Encoder(nn.Module):
    """The transformer called `name`, one of DINOv2's or ImageNet's, with random weights and no head."""

    def __init__(self, name: str):
        super().__init__()
        self.architecture = sizes = VITS[name]
        kind = "ViT" if name.startswith("vit_") else "Dinov2WithRegisters" if sizes.registers else "Dinov2"
        config = getattr(transformers, f"{kind}Config")(
            hidden_size=sizes.dim,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            intermediate_size=4 * sizes.dim,
            patch_size=sizes.patch,
            image_size=sizes.patch * sizes.grid,
            num_register_tokens=sizes.registers,
        )
        self.model = getattr(transformers, f"{kind}Model")(config)
        self.options = {"interpolate_pos_encoding": True} if kind == "ViT" else {}
        mean, std = (255 * torch.tensor(v).reshape(1, 3, 1, 1) for v in sizes.family.statistics)
        self.pixel_mean, self.pixel_std = nn.Buffer(mean, persistent=False), nn.Buffer(std, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images `[n, h, w, 3]` to features `[n, c]`."""
        x = (images.permute(0, 3, 1, 2).float() - self.pixel_mean) / self.pixel_std
        return self.model(x, **self.options).last_hidden_state[:, self.architecture.prefix :].mean(1)
