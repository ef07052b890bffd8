"""An encoder that compiles in a moment, for tests of whole jobs: ``encoder.name=small_encoder:make``."""

import jax.numpy as jnp
from flax import linen as nn

from hap2s_jax.models.encoder import EncoderOutput, l2_normalize, normalize_images
from hap2s_jax.models.norm import BatchNorm
from hap2s_jax.models.pooling import Pooling


class SmallEncoder(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(8, (4, 4), strides=4, use_bias=False)(normalize_images(images))
        x = nn.relu(BatchNorm(axis_name=self.axis_name)(x, train))
        features = jnp.concatenate([Pooling()(x), Pooling("gap+gmp")(x)], axis=-1)
        return EncoderOutput(embedding=l2_normalize(nn.Dense(16)(features)), features=features)


def make(axis_name=None, **options_of_other_encoders):
    return SmallEncoder(axis_name)
