"""Properties that hold for every batch: hypothesis looks for one where they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_batches import clustered

from hap2s_jax import exponential, hap2s_loss, polynomial

SIZE, DIM = 12, 4


@jax.jit
def _exponential(x, labels):
    return jax.value_and_grad(lambda x: hap2s_loss(x, labels, weighting=exponential(), block_size=5))(x)


@jax.jit
def _polynomial(x, labels):
    return jax.value_and_grad(lambda x: hap2s_loss(x, labels, weighting=polynomial()))(x)


@jax.jit
def _over_devices(x, labels):
    def on_device(x, labels):
        return hap2s_loss(x, labels, axis_name="devices", block_size=2)

    def mean(x):
        split = jax.vmap(on_device, axis_name="devices", in_axes=(0, 0))
        return split(x.reshape(3, -1, DIM), labels.reshape(3, -1)).mean()

    return jax.value_and_grad(mean)(x)


FORMS = {"exponential": _exponential, "polynomial": _polynomial}


@st.composite
def batches(draw):
    """Normal embeddings (some rows repeated) under any labels, ignored ones included."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = random.normal(size=(SIZE, DIM)).astype(np.float32) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    if draw(st.booleans()):
        x[draw(st.integers(0, SIZE - 1))] = x[draw(st.integers(0, SIZE - 1))]
    labels = np.array(draw(st.lists(st.integers(-1, 3), min_size=SIZE, max_size=SIZE)), np.int32)
    return x, labels, random


def close(got, wanted, x):
    np.testing.assert_allclose(got[0], wanted[0], atol=2e-5 * max(1, np.abs(x).max()))
    np.testing.assert_allclose(got[1], wanted[1], atol=2e-4)


@pytest.mark.parametrize("form", list(FORMS))
@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_permutation_relabelling_and_rotation(form, batch):
    x, labels, random = batch
    loss = FORMS[form]
    value, gradient = loss(x, labels)
    order = random.permutation(SIZE)
    close(loss(x[order], labels[order]), (value, gradient[order]), x)
    names = np.array([7, 100, 0, 3, -1], np.int32)
    close(loss(x, names[labels]), (value, gradient), x)
    rotation, _ = np.linalg.qr(random.normal(size=(DIM, DIM)))
    rotation = rotation.astype(np.float32)
    close(loss(x @ rotation, labels), (value, np.asarray(gradient) @ rotation), x)


@pytest.mark.parametrize("form", list(FORMS))
@settings(max_examples=20, deadline=None)
@given(batch=batches(), fill=st.sampled_from([0.0, 1e6, np.nan, np.inf]))
def test_padding_with_ignored_samples(form, batch, fill):
    x, labels, _ = batch
    loss = FORMS[form]
    value, gradient = loss(x, labels)
    padded = np.concatenate([np.full((3, DIM), fill, np.float32), x])
    padded_value, padded_gradient = loss(padded, np.concatenate([np.full(3, -1, np.int32), labels]))
    close((padded_value, padded_gradient[3:]), (value, gradient), x)
    assert not np.any(padded_gradient[:3])


@settings(max_examples=20, deadline=None)
@given(batch=batches())
def test_splitting_over_devices(batch):
    x, labels, _ = batch
    close(_over_devices(x, labels), _exponential(x, labels), x)


def test_weights_of_whole_numbers_repeat_anchors():
    x, labels = clustered(50, [3, 4, 2])
    weights = np.array([1, 2, 0, 1, 3, 1, 1, 2, 1], np.float32)
    each = hap2s_loss(x, labels, reduction="none")
    np.testing.assert_allclose(
        hap2s_loss(x, labels, sample_weights=weights), jnp.repeat(each, weights.astype(int)).mean(), rtol=1e-5
    )
