"""The options for small aligned images: pooling over quarters, batch normalisation before unit length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax.models.encoder import EmbeddingHead
from hap2s_jax.models.pooling import Pooling


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (3, 5), (1, 1)])
def test_quarters_against_numpy(size):
    x = np.random.default_rng(0).normal(size=(3, *size, 5)).astype(np.float32)
    pooled = Pooling("grid2").apply({}, jnp.asarray(x))
    h, w = -(-size[0] // 2), -(-size[1] // 2)
    expected = [
        x[n, rows, :][:, columns].reshape(-1, 5).mean(0)
        for n in range(3)
        for rows in (slice(0, h), slice(size[0] - h, None))
        for columns in (slice(0, w), slice(size[1] - w, None))
    ]
    np.testing.assert_allclose(pooled, np.reshape(expected, (3, 20)), rtol=1e-5, atol=1e-6)


def test_quarters_see_where_things_are_and_the_mean_does_not():
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 0, 0, 0] = 1
    moved = np.flip(x, (1, 2))
    np.testing.assert_array_equal(Pooling("gap").apply({}, x), Pooling("gap").apply({}, moved))
    assert not np.array_equal(Pooling("grid2").apply({}, x), Pooling("grid2").apply({}, moved))


def test_embedding_bn_spreads_features_that_point_one_way():
    features = 10 + np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)

    def mean_cosine(embedding_bn):
        head = EmbeddingHead(embedding_dim=8, normalize=True, embedding_bn=embedding_bn)
        variables = head.init(jax.random.key(0), features, train=False)
        output, _ = head.apply(variables, features, train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(np.linalg.norm(output.embedding, axis=1), 1, rtol=1e-5)
        return float(jnp.mean(output.embedding @ output.embedding.T))

    assert mean_cosine(False) > 0.9
    assert abs(mean_cosine(True)) < 0.05
