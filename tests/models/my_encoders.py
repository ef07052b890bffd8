"""The two encoders of docs/encoders.md, as a user would write them, one of unit length, and two that are wrong."""

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class Tiny(nn.Module):
    """A linen module of one's own."""

    embedding_dim: int = 32

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.float32) / 255
        x = nn.relu(nn.Conv(16, (5, 5), strides=4)(x))
        return nn.Dense(self.embedding_dim)(x.mean((1, 2)))


class TinyUnit(Tiny):
    """One whose embeddings have length 1."""

    normalize: bool = True

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.float32).mean((1, 2))
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)


class TinyNnx(nnx.Module):
    """An nnx module."""

    def __init__(self, embedding_dim, *, rngs):
        self.conv = nnx.Conv(3, 16, (5, 5), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dense = nnx.Linear(16, embedding_dim, rngs=rngs)

    def __call__(self, images, train):
        x = self.norm(self.conv(images.astype(jnp.float32) / 255), use_running_average=not train)
        return self.dense(nnx.relu(x).mean((1, 2)))


def tiny_nnx(embedding_dim=32):
    """The nnx module through flax's bridge: what a config names."""
    return nnx.bridge.to_linen(TinyNnx, embedding_dim)


def no_module():
    return 3


class Maps(nn.Module):
    """Forgets to pool."""

    def __call__(self, images, train):
        return images.astype(jnp.float32)


class Careful(Tiny):
    """Keeps its convolution as it is."""

    frozen_parameters = ("Conv_0",)
