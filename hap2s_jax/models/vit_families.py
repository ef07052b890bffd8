"""Vision transformers by name: the families that weights are published for, and the sizes of each."""

from __future__ import annotations

import dataclasses

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclasses.dataclass(frozen=True)
class Family:
    """A way of building the transformer that published weights share.

    Attributes:
      statistics: (mean, std) of the channels that its images are standardised by, for pixels in [0, 1].
      epsilon: of the layer normalisations.
      activation: of the MLPs: "gelu", "gelu_tanh" or "quick_gelu".
      class_token: whether a learnt token stands before the patches.
      layer_scale: the value at which the learnt vectors begin that scale the residual branches; 0 without them.
      pre_norm: whether a layer normalisation stands before the first block; the patches then have no bias.
      antialias: whether positions are filtered before they are made fewer.
      rotary: whether queries and keys are turned by the place of their patch, in place of learnt positions; keys then
        have no bias.
    """

    statistics: tuple[tuple[float, float, float], tuple[float, float, float]]
    epsilon: float = 1e-6
    activation: str = "gelu"
    class_token: bool = True
    layer_scale: float = 0.0
    pre_norm: bool = False
    antialias: bool = False
    rotary: bool = False


DINOV2 = Family(_IMAGENET, layer_scale=1e-5)
DINOV2_REGISTERS = dataclasses.replace(DINOV2, antialias=True)
DINOV3 = Family(_IMAGENET, epsilon=1e-5, layer_scale=1e-5, rotary=True)
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
    **{f"dinov3_vit{s}16": ViTArchitecture(DINOV3, *_SIZES[s], 16, 14, 4) for s in "sbl"},
    **{f"vit_{s}16": ViTArchitecture(IMAGENET_VIT, *_SIZES[s], 16, 14) for s in "sbl"},
    "clip_vitb32": ViTArchitecture(CLIP, *_SIZES["b"], 32, 7),
    "clip_vitb16": ViTArchitecture(CLIP, *_SIZES["b"], 16, 14),
    "clip_vitl14": ViTArchitecture(CLIP, *_SIZES["l"], 14, 16),
    "siglip_vitb16": ViTArchitecture(SIGLIP, *_SIZES["b"], 16, 14),
    "siglip_vitl16": ViTArchitecture(SIGLIP, *_SIZES["l"], 16, 16),
}
