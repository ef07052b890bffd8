"""Re-ranking and expansion against dense float64 versions written from the papers."""

from __future__ import annotations

import numpy as np
import pytest
import retrieval_oracle as oracle

from hap2s_jax.evaluation import protocols, retrieval
from hap2s_jax.evaluation.expansion import expand
from hap2s_jax.evaluation.reranking import KReciprocal


def case(seed=0, n=90, queries=20):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 9, n)
    x = (rng.normal(size=(9, 6))[labels] + 0.7 * rng.normal(size=(n, 6))).astype(np.float32)
    order = rng.permutation(n)
    return x, labels, order[:queries], order[queries:]


def dense_reranking(x, kind, k1, k2, mixing):
    """All images to all, by sets: R(i, k), its expansion R*(i), the weights, the Jaccard distance."""
    if kind == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        d = np.array([[(1 - float(a @ b)) ** 2 for b in x] for a in x.astype(np.float64)])
    else:
        d = oracle.distances(x, x) ** 2
    n = len(d)
    d /= d.max(axis=1, keepdims=True)
    np.fill_diagonal(d, 0)
    ranked = [sorted(range(n), key=lambda j, i=i: (j != i, d[i, j])) for i in range(n)]

    def reciprocal(i, k):
        return {j for j in ranked[i][: k + 1] if i in ranked[j][: k + 1]}

    v = np.zeros((n, n))
    for i in range(n):
        members = set(reciprocal(i, k1))
        for j in reciprocal(i, k1):
            half = reciprocal(j, round(k1 / 2))
            if 3 * len(half & reciprocal(i, k1)) > 2 * len(half):
                members |= half
        for j in members:
            v[i, j] = np.exp(-d[i, j])
        v[i] /= v[i].sum()
    v = np.stack([v[ranked[i][:k2]].mean(axis=0) for i in range(n)])
    shared = np.array([[np.minimum(a, b).sum() for b in v] for a in v])
    return (1 - mixing) * (1 - shared / (2 - shared)) + mixing * d


@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
@pytest.mark.parametrize(("k1", "k2", "mixing"), [(20, 6, 0.3), (7, 1, 0.0), (6, 3, 0.5)])
def test_sparse_reranking_equals_the_dense_definition(kind, k1, k2, mixing):
    x, _, query, gallery = case()
    ours = KReciprocal(x, query=query, gallery=gallery, distance=kind, k1=k1, k2=k2, mixing=mixing)
    expected = dense_reranking(x, kind, k1, k2, mixing)
    np.testing.assert_allclose(ours(query, gallery), expected[np.ix_(query, gallery)], atol=2e-6)


def test_only_query_and_gallery_take_part():
    x, _, query, gallery = case()
    far = np.concatenate([x, 100 + np.zeros((5, 6), np.float32), x[query]])
    whole = KReciprocal(x, query=query, gallery=gallery, k1=8)(query, gallery)
    np.testing.assert_allclose(
        KReciprocal(far, query=query, gallery=gallery, k1=8)(query, gallery), whole, atol=1e-5
    )
    with pytest.raises(ValueError, match="neither query nor gallery"):
        KReciprocal(far, query=query, gallery=gallery, k1=8)(query, np.array([92]))


def test_reranked_distances_go_through_the_ranking_engine_and_help():
    x, labels, query, gallery = case(1)
    rows = {"query": query, "gallery": gallery}
    plain = retrieval.rank_matches(x, labels, **rows)
    again = retrieval.rank_matches(x, labels, distance=KReciprocal(x, k1=8, k2=3, **rows), **rows)
    table = np.full((len(x), len(x)), np.inf)
    table[np.ix_(query, gallery)] = KReciprocal(x, k1=8, k2=3, **rows)(query, gallery)
    by_hand = retrieval.rank_matches(x, labels, distance=lambda q, g: table[np.ix_(q, g)], **rows)
    np.testing.assert_array_equal(again.average_precision, by_hand.average_precision)
    better = protocols.means(protocols.query_gallery_values(again))["mAP"]
    assert better > protocols.means(protocols.query_gallery_values(plain))["mAP"]


def test_coincident_images_give_finite_distances():
    x = np.zeros((12, 3), np.float32)
    assert np.isfinite(KReciprocal(x, k1=4, k2=2)(np.arange(3), np.arange(12))).all()


def test_expansion_is_the_weighted_mean_of_neighbours():
    x, _, query, gallery = case(2)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    ours = expand(x, query=query, gallery=gallery, k=4, alpha=2.0)
    for i in range(len(x)):
        similarity = unit.astype(np.float64) @ unit[i]
        near = np.argsort(-similarity)[:4]
        expected = np.mean(np.maximum(similarity[near], 0)[:, None] ** 2 * unit[near], axis=0)
        np.testing.assert_allclose(ours[i], expected, atol=1e-6)
    np.testing.assert_allclose(expand(x, k=1), unit, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k1": 90}, "k1 is 90, but query and gallery together hold 90 images"),
        ({"k1": 5, "k2": 7}, "k1 and k2 must satisfy"),
        ({"mixing": 1.5}, "mixing must lie between 0 and 1"),
        ({"query": [100]}, "query names row 100"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        KReciprocal(case()[0], **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"k": 91}, "k must lie between"), ({"alpha": -1}, "alpha must be")]
)
def test_bad_expansion_is_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        expand(case()[0], **arguments)
