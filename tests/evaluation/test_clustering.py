"""Clustering measures against scikit-learn and pair counting; k-means against known clusters."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax.evaluation import clustering

metrics = pytest.importorskip("sklearn.metrics")

rng = np.random.default_rng(0)
PARTITIONS = {
    "random": (rng.integers(0, 7, 200), rng.integers(0, 9, 200)),
    "related": (np.repeat(np.arange(20), 6), np.repeat(np.arange(20), 6)[rng.permutation(120)] // 2),
    "equal": (np.repeat(np.arange(5), 3), np.repeat(np.arange(5), 3)),
    "one class": (np.zeros(9, int), np.arange(9)),
    "one cluster": (np.arange(9) // 3, np.zeros(9, int)),
    "both trivial": (np.zeros(6, int), np.zeros(6, int)),
    "all single": (np.arange(8), np.arange(8)[::-1]),
    "one image": (np.array([3]), np.array([0])),
    "unequal sizes": (np.repeat([0, 1, 2, 3], [1, 50, 7, 200]), rng.integers(0, 40, 258)),
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_nmi_and_ami_equal_scikit_learn(name):
    labels, assignment = PARTITIONS[name]
    expected = metrics.normalized_mutual_info_score(labels, assignment)
    np.testing.assert_allclose(clustering.nmi(labels, assignment), expected, atol=1e-9)
    expected = metrics.adjusted_mutual_info_score(labels, assignment)
    np.testing.assert_allclose(clustering.ami(labels, assignment), expected, atol=1e-9)


@pytest.mark.parametrize("count", [2, 3, 7, 100, 1000, 5000])
def test_classes_of_one_image_each_are_found_by_clusters_of_one(count):
    labels = np.arange(count)
    assert clustering.ami(labels, labels[::-1]) == clustering.nmi(labels, labels[::-1]) == 1.0
    expected = metrics.adjusted_mutual_info_score(labels, labels // 2)
    np.testing.assert_allclose(clustering.ami(labels, labels // 2), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["random", "related", "equal", "one class"])
def test_f1_counts_pairs(name):
    labels, assignment = PARTITIONS[name]
    right = found = wanted = 0
    for i, j in itertools.combinations(range(len(labels)), 2):
        wanted += labels[i] == labels[j]
        found += assignment[i] == assignment[j]
        right += labels[i] == labels[j] and assignment[i] == assignment[j]
    precision, recall = right / max(found, 1), right / wanted
    expected = 2 * precision * recall / (precision + recall) if right else 0
    np.testing.assert_allclose(clustering.f1(labels, assignment), expected, atol=1e-12)


def blobs(n=120, classes=12, noise=0.05):
    draw = np.random.default_rng(1)
    labels = np.arange(n) % classes
    return (draw.normal(size=(classes, 8))[labels] + noise * draw.normal(size=(n, 8))).astype(
        np.float32
    ), labels


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("far", [0.0, 1e4])
def test_kmeans_finds_separate_clusters_wherever_they_lie(distance, far):
    x, labels = blobs()
    if distance == "cosine":
        x = x * np.exp(np.random.default_rng(2).normal(size=(len(x), 1))).astype(np.float32)
    else:
        x = x + np.float32(far)
    assert clustering.nmi(labels, clustering.kmeans(x, 12, distance=distance)) > 0.999


def test_kmeans_is_about_as_good_as_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    x, _ = blobs(noise=1.0)
    ours = clustering.kmeans(x, 12, restarts=5)
    spread = sum(((x[ours == c] - x[ours == c].mean(axis=0)) ** 2).sum() for c in np.unique(ours))
    assert len(np.unique(ours)) == 12
    assert spread < 1.05 * cluster.KMeans(12, n_init=5, random_state=0).fit(x).inertia_


def test_kmeans_is_a_function_of_its_seed():
    x, _ = blobs(noise=1.0)
    np.testing.assert_array_equal(clustering.kmeans(x, 12, seed=4), clustering.kmeans(x, 12, seed=4))
    assert (clustering.kmeans(x, 12, seed=4) != clustering.kmeans(x, 12, seed=5)).any()


def test_the_first_centre_is_drawn_evenly():
    x, _ = blobs(noise=1.0)
    points = jnp.asarray(x)
    squares = jnp.sum(points**2, axis=1)
    keys = jax.random.split(jax.random.key(0), 300)
    first = jax.vmap(lambda key: clustering._seed_centres(key, points, squares, 1)[0])(keys)
    drawn = np.argmin(((np.asarray(first)[:, None] - x[None]) ** 2).sum(-1), axis=1)
    # Of 120 even chances, 300 draws take 110 on average.
    assert len(np.unique(drawn)) > 95
    assert np.bincount(drawn).max() < 15


def test_kmeans_with_as_many_clusters_as_images_and_with_duplicates():
    x, _ = blobs()
    assert len(np.unique(clustering.kmeans(x, len(x)))) == len(x)
    same = np.zeros((10, 3), np.float32)
    assert clustering.kmeans(same, 4).shape == (10,)
    assert (clustering.kmeans(x, 1) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": 0}, "clusters must lie between 1 and the 120"),
        ({"clusters": 121}, "clusters must lie between 1 and the 120"),
        ({"clusters": 2, "restarts": 0}, "restarts and iterations must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        clustering.kmeans(blobs()[0], **arguments)
