"""Encoders: flax.linen ResNets with an embedding head. Start at `create`."""

from hap2s_jax.models.encoder import Encoder, EncoderOutput, l2_normalize, normalize_images
from hap2s_jax.models.registry import create, initialize, names

__all__ = ["Encoder", "EncoderOutput", "create", "initialize", "l2_normalize", "names", "normalize_images"]
