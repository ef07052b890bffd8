"""The encoder: image normalisation, trunk, pooling and embedding head in one module."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from hap2s_jax.models.norm import BatchNorm
from hap2s_jax.models.pooling import Pooling
from hap2s_jax.models.resnet import ResNet
from hap2s_jax.models.vit import TokenPooling, ViT

# ImageNet's channel statistics, which every published ResNet's weights expect, for pixels in [0, 255].
IMAGE_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGE_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

_dense_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


@flax.struct.dataclass
class EncoderOutput:
    """The output of an encoder for n images; all float32.

    Attributes:
      embedding: `[n, d]`, what the metric loss compares.
      features: `[n, c]`, the pooled features before the head.
      logits: `[n, classes]` of the identification classifier, None without one.
      neck: `[n, d]`, the embedding after BNNeck's batch normalisation, None without one.
    """

    embedding: jax.Array
    features: jax.Array
    logits: jax.Array | None = None
    neck: jax.Array | None = None

    @property
    def retrieval(self) -> jax.Array:
        """The vector that test images are compared by, `[n, d]`: the embedding, or with BNNeck its normalised neck.

        Rows of the neck have length 1, so Euclidean and cosine distance rank alike (BNNeck asks for cosine).
        """
        return self.embedding if self.neck is None else l2_normalize(self.neck)


def l2_normalize(x: jax.Array) -> jax.Array:
    """Scales each row of `x` `[n, d]` to length 1; a row of zeros stays zero, with gradient zero."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # Guarded on both sides of the where: the gradient of the branch not taken must be finite too.
    is_long = square > jnp.finfo(x.dtype).tiny
    return jnp.where(is_long, x * jax.lax.rsqrt(jnp.where(is_long, square, 1.0)), 0.0)


def normalize_images(
    images: jax.Array,
    dtype: jax.typing.DTypeLike = jnp.float32,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
) -> jax.Array:
    """Standardises `images` `[n, h, w, 3]`, uint8 or floating in [0, 255], by ImageNet's statistics or others."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images has shape {images.shape}; an encoder takes [n, height, width, 3].")
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images has dtype {images.dtype}; an encoder takes uint8, or floating in [0, 255].")
    x = images.astype(np.promote_types(dtype, np.float32))
    centre, scale = (jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape) for v in (mean, std))
    return ((x - centre) / scale).astype(dtype)


class EmbeddingHead(nn.Module):
    """From pooled features to embedding, neck and logits, in float32.

    Attributes:
      embedding_dim: d; 0 takes the pooled features themselves as the embedding.
      hidden_dim: size of a hidden layer with batch normalisation and ReLU; 0 leaves it out. 1024 with
        `embedding_dim` 128 is the head of HAP2S's paper (Yu et al., 2018).
      embedding_bn: batch normalisation without bias as the last layer before `normalize`: hard mining pulls
        embeddings of length 1 into one point at first, which takes long to undo; this keeps them apart.
      normalize: scale each embedding to length 1.
      bnneck: put a batch normalisation without bias between embedding and classifier (Luo et al., "Bag of
        Tricks", 2019).
      num_classes: outputs of the identification classifier; 0 for none.
      axis_name: see `BatchNorm`.
    """

    embedding_dim: int = 128
    hidden_dim: int = 0
    embedding_bn: bool = False
    normalize: bool = False
    bnneck: bool = False
    num_classes: int = 0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> EncoderOutput:
        """Maps `features` `[n, c]` to an `EncoderOutput`."""
        x = features
        dense = functools.partial(nn.Dense, dtype=x.dtype)  # by name, where promotion is strict
        if self.hidden_dim:
            x = dense(self.hidden_dim, use_bias=False, kernel_init=_dense_init, name="hidden")(x)
            x = nn.relu(BatchNorm(axis_name=self.axis_name, name="hidden_bn")(x, train))
        if self.embedding_dim:
            # Distances, and the neck, do not see a shift of all embeddings: an unnormalised embedding's bias
            # would have gradient zero up to rounding, which Adam turns into noise. Nor does batch normalisation.
            use_bias = self.normalize and not self.embedding_bn
            x = dense(self.embedding_dim, use_bias=use_bias, kernel_init=_dense_init, name="embedding")(x)
        if self.embedding_bn:
            x = BatchNorm(axis_name=self.axis_name, use_bias=False, name="embedding_bn")(x, train)
        embedding = l2_normalize(x) if self.normalize else x
        neck = None
        if self.bnneck:
            neck = BatchNorm(axis_name=self.axis_name, use_bias=False, name="neck_bn")(embedding, train)
        logits = None
        if self.num_classes:
            logits = dense(
                self.num_classes,
                use_bias=not self.bnneck,
                kernel_init=nn.initializers.normal(0.001) if self.bnneck else _dense_init,
                name="classifier",
            )(embedding if neck is None else neck)
        return EncoderOutput(embedding=embedding, features=features, logits=logits, neck=neck)


class Encoder(nn.Module):
    """Images in, embeddings out. The image normalisation is inside, so that an export carries its preprocessing.

    Attributes:
      trunk: maps normalised images and `train` to feature maps, or a transformer's tokens; the last one is pooled. Its
        `dtype` is that of the normalised images, and its `frozen_parameters` name what no optimiser may touch.
      pooling: maps that feature map, or those tokens, to one vector per image.
      mean, std: of the channels that images are standardised by, for pixels in [0, 255].
      head: maps the vectors and `train` to an `EncoderOutput`.
      frozen: whether trunk and pooling are kept as they are: they compute as in evaluation, and get no gradient. The
        encoder then takes features in the place of images too, as `pooled` gives them.
    """

    trunk: ResNet | ViT
    pooling: Pooling | TokenPooling
    head: EmbeddingHead
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD
    frozen: bool = False

    @property
    def frozen_parameters(self) -> tuple[str, ...]:
        """Regular expressions of the parameters' paths that no optimiser may touch."""
        if self.frozen:
            return ("(?:trunk|pooling)",)
        return tuple(f"trunk/{path}" for path in self.trunk.frozen_parameters)

    @property
    def layers(self) -> tuple[str, ...]:
        """Regular expressions of the paths of a transformer's layers, the first first; none for other trunks."""
        return tuple(f"trunk/{path}" for path in getattr(self.trunk, "layers", ()))

    @property
    def needs_keys(self) -> bool:
        """Whether a call in training takes `keys`, one for each image."""
        return not self.frozen and getattr(self.trunk, "drop_path", 0) > 0

    @property
    def normalize(self) -> bool:
        """Whether embeddings have length 1, so that their mean over views is to have it too."""
        return self.head.normalize

    @property
    def bnneck(self) -> bool:
        """Whether test images are compared by a neck of length 1."""
        return self.head.bnneck

    def pooled(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """The features `[n, c]` that the head gets of `images` `[n, h, w, 3]`; keys and errors are those of a call."""
        normalised = normalize_images(images, self.trunk.dtype, self.mean, self.std)
        given = () if keys is None else (keys,)
        features = self.pooling(self.trunk(normalised, train and not self.frozen, *given)[-1])
        return jax.lax.stop_gradient(features) if self.frozen else features

    def __call__(
        self, images: jax.Array, train: bool = False, keys: jax.Array | None = None
    ) -> EncoderOutput:
        """Encodes `images` `[n, h, w, 3]`, uint8 or floating in [0, 255]; with `frozen` also their features `[n, c]`.

        A transformer with `drop_path` takes random keys `[n]` in training.

        Raises:
          ValueError: images of another shape, or keys are missing.
          TypeError: images of another dtype.
        """
        is_features = self.frozen and images.ndim == 2
        return self.head(images if is_features else self.pooled(images, train, keys), train)
