# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # HAP2S in your own training loop
#
# A loss of `hap2s_jax` is a pure function of embeddings and labels, so it fits into any training loop of JAX. Here the
# same small network learns with it in flax linen, flax nnx and equinox. You need
# `pip install "hap2s_jax[train,notebooks]"`.

# %% [markdown]
# ## The data
#
# The package includes drawings of emoji: an emoji is a class, drawn by several teams. They become arrays of 32 x 32
# pixels.

# %%
import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hap2s_jax import hap2s_loss
from hap2s_jax.data import emoji
from hap2s_jax.data.pk import PKPlan
from hap2s_jax.evaluation import evaluate

data = emoji.load()


def arrays(part, classes):
    """The first `classes` classes of a part of the data: images in [-1, 1] and labels."""
    kept = np.flatnonzero(np.isin(part.labels, np.unique(part.labels)[:classes]))
    pictures = [cv2.imdecode(np.frombuffer(part.read(i), np.uint8), cv2.IMREAD_COLOR) for i in kept]
    small = np.stack([cv2.resize(p, (32, 32), interpolation=cv2.INTER_AREA) for p in pictures])
    return small.astype(np.float32) / 127.5 - 1, part.labels[kept]


images, labels = arrays(data.train, 300)
test_images, test_labels = arrays(data.test, 100)
print(images.shape, test_images.shape)

# %% [markdown]
# A batch has P classes with K images each, or most anchors would have no positive. `PKPlan` chooses the
# images.

# %%
plan = PKPlan(labels, classes_per_batch=16, images_per_class=4, seed=0)
STEPS = 60


def batches():
    for step in range(STEPS):
        chosen = plan.batch(step)
        yield images[chosen], labels[chosen]


def score(embed):
    """MAP@R and Recall@1 on classes that were never trained on."""
    figures = evaluate(embed(test_images), test_labels, cluster=False)
    return {name: round(figures[name], 3) for name in ("map@r", "recall@1")}


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


optimizer = optax.adam(1e-3)

# %% [markdown]
# ## flax linen

# %%
from flax import linen


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        for width in (16, 32, 64):
            x = linen.relu(linen.Conv(width, (3, 3), (2, 2))(x))
        return unit(linen.Dense(32)(x.reshape(len(x), -1)))


model = LinenNet()
params = model.init(jax.random.key(0), images[:1])
state = optimizer.init(params)


@jax.jit
def linen_step(params, state, images, labels):
    value, gradient = jax.value_and_grad(lambda p: hap2s_loss(model.apply(p, images), labels))(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


before = score(lambda x: model.apply(params, x))
for batch in batches():
    params, state, value = linen_step(params, state, *batch)
after = score(lambda x: model.apply(params, x))
print("untrained", before, "trained", after, "loss", float(value))
assert after["map@r"] > before["map@r"]

# %% [markdown]
# ## flax nnx

# %%
from flax import nnx


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        sizes = (3, 16, 32, 64)
        self.convs = nnx.List(
            [nnx.Conv(a, b, (3, 3), strides=(2, 2), rngs=rngs) for a, b in itertools.pairwise(sizes)]
        )
        self.head = nnx.Linear(4 * 4 * 64, 32, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return unit(self.head(x.reshape(len(x), -1)))


net = NnxNet(nnx.Rngs(0))
nnx_optimizer = nnx.Optimizer(net, optimizer, wrt=nnx.Param)


@nnx.jit
def nnx_step(net, nnx_optimizer, images, labels):
    value, gradient = nnx.value_and_grad(lambda net: hap2s_loss(net(images), labels))(net)
    nnx_optimizer.update(net, gradient)
    return value


before = score(net)
for batch in batches():
    value = nnx_step(net, nnx_optimizer, *batch)
after = score(net)
print("untrained", before, "trained", after, "loss", float(value))
assert after["map@r"] > before["map@r"]

# %% [markdown]
# ## equinox
#
# Equinox writes a module for one image, channels first, and maps it over the batch.

# %%
import equinox as eqx


class EqxNet(eqx.Module):
    convs: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys, sizes = jax.random.split(key, 4), (3, 16, 32, 64)
        self.convs = [
            eqx.nn.Conv2d(a, b, 3, 2, 1, key=k) for a, b, k in zip(sizes, sizes[1:], keys, strict=False)
        ]
        self.head = eqx.nn.Linear(4 * 4 * 64, 32, key=keys[3])

    def __call__(self, x):
        x = jnp.moveaxis(x, -1, 0)
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return unit(self.head(x.reshape(-1)))


module = EqxNet(jax.random.key(0))
state = optimizer.init(eqx.filter(module, eqx.is_array))


@eqx.filter_jit
def eqx_step(module, state, images, labels):
    value, gradient = eqx.filter_value_and_grad(lambda m: hap2s_loss(jax.vmap(m)(images), labels))(module)
    updates, state = optimizer.update(gradient, state)
    return eqx.apply_updates(module, updates), state, value


before = score(jax.vmap(module))
for batch in batches():
    module, state, value = eqx_step(module, state, *batch)
after = score(jax.vmap(module))
print("untrained", before, "trained", after, "loss", float(value))
assert after["map@r"] > before["map@r"]

# %% [markdown]
# ## From here
#
# - `hap2s_loss(..., weighting=polynomial(10.0))` is the other form; [all losses](../losses.md) have the same signature.
# - On several devices add `axis_name="devices"` inside `shard_map` or `pmap`: loss and gradient are then those of the
#   global batch.
# - `hap2s_loss(..., with_stats=True)` also says how hard the batch was.
