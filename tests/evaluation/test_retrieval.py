"""Ranks of matches against a plain walk down the sorted gallery, scikit-learn, and invariants."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import retrieval_oracle as oracle

from hap2s_jax.evaluation import inputs, retrieval, symmetric

FIGURES = (
    "matches",
    "first_rank",
    "last_rank",
    "average_precision",
    "average_precision_trapezoid",
    "map_at_r",
    "r_precision",
)


def assert_agrees(results, expected):
    np.testing.assert_array_equal(results.query, [e["query"] for e in expected])
    for name in FIGURES:
        np.testing.assert_allclose(
            getattr(results, name), [e[name] for e in expected], atol=1e-6, err_msg=name
        )


def random_case(seed, n=90, d=4, classes=9, cameras=3, integers=False):
    rng = np.random.default_rng(seed)
    x = (
        rng.integers(-1, 2, size=(n, d)).astype(np.float32)
        if integers
        else rng.normal(size=(n, d)).astype(np.float32)
    )
    return x, rng.integers(-1, classes, n), rng.integers(0, cameras, n), rng


@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
@pytest.mark.parametrize("with_cameras", [False, True])
def test_random_case_agrees_with_a_walk_down_the_gallery(kind, with_cameras):
    x, labels, cameras, rng = random_case(0)
    order = rng.permutation(len(x))
    query, gallery = order[:30], order[25:]  # five rows are both
    cameras = cameras if with_cameras else None
    ours = retrieval.rank_matches(x, labels, cameras=cameras, query=query, gallery=gallery, distance=kind)
    assert_agrees(ours, oracle.walk(x, labels, cameras, query, gallery, kind))


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("seed", range(4))
def test_ties_on_integer_embeddings_follow_the_stated_rule(ties, seed):
    x, labels, cameras, _ = random_case(seed, integers=True)
    x += 7 * seed  # away from the origin too: the centre must keep integers exact
    ours = retrieval.rank_matches(x, labels, cameras=cameras, ties=ties)
    assert_agrees(ours, oracle.walk(x, labels, cameras, ties=ties))


def test_order_of_the_gallery_changes_nothing_not_even_among_ties():
    x, labels, cameras, rng = random_case(3, integers=True)
    order = rng.permutation(len(x))
    here = retrieval.rank_matches(x, labels, cameras=cameras)
    there = retrieval.rank_matches(x[order], labels[order], cameras=cameras[order])
    back = np.argsort(order[there.query])
    for name in FIGURES:
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name)[back])


def test_an_encoder_that_maps_all_to_one_point_scores_the_worst():
    labels = np.repeat(np.arange(5), 4)
    results = retrieval.rank_matches(np.full((20, 3), 1e3, np.float32), labels)
    assert (results.first_rank == 17).all()
    assert (results.map_at_r == 0).all()
    lucky = retrieval.rank_matches(np.full((20, 3), 1e3, np.float32), labels, ties="optimistic")
    assert (lucky.map_at_r == 1).all()


def test_average_precision_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    x, labels, _, _ = random_case(5, classes=4)
    results = retrieval.rank_matches(x, labels)
    table = oracle.distances(x, x)
    for row, q in enumerate(results.query):
        others = np.flatnonzero((np.arange(len(x)) != q) & (labels != -1))
        expected = metrics.average_precision_score(labels[others] == labels[q], -table[q, others])
        np.testing.assert_allclose(results.average_precision[row], expected, atol=1e-6)


def test_a_hand_computed_row():
    # Query at 0, keys at 1 right, 2 wrong, 3 right, 4 wrong, 5 wrong, 6 right: ranks 1, 3, 6.
    x = np.arange(7, dtype=np.float32)[:, None]
    labels = np.array([0, 0, 1, 0, 2, 3, 0])
    results = retrieval.rank_matches(x, labels, query=[0])
    np.testing.assert_allclose(results.average_precision, [(1 + 2 / 3 + 3 / 6) / 3], rtol=1e-6)
    np.testing.assert_allclose(
        results.average_precision_trapezoid,
        [((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 5 + 3 / 6) / 2) / 3],
        rtol=1e-6,
    )
    np.testing.assert_allclose(results.map_at_r, [(1 + 2 / 3) / 3], rtol=1e-6)
    np.testing.assert_allclose(results.r_precision, [2 / 3], rtol=1e-6)
    np.testing.assert_allclose(results.inverse_penalty, [3 / 6], rtol=1e-6)
    np.testing.assert_allclose(results.reciprocal_rank, [1.0], rtol=1e-6)


@pytest.mark.parametrize(
    "labels",
    [np.zeros(12, int), np.arange(12), np.array([0] * 11 + [5]), np.array([0] * 6 + [-1] * 6)],
    ids=["one class", "all distinct", "one lone image", "half junk"],
)
def test_extreme_label_sets(labels):
    x = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    assert_agrees(retrieval.rank_matches(x, labels), oracle.walk(x, labels))


def test_a_class_larger_than_a_bucket_and_blocks_of_unequal_size():
    rng = np.random.default_rng(1)
    labels = np.concatenate([np.zeros(70, int), rng.integers(1, 20, 61)])
    x = rng.normal(size=(131, 4)).astype(np.float32)
    expected = oracle.walk(x, labels)
    for block_size in (None, 17):
        assert_agrees(retrieval.rank_matches(x, labels, block_size=block_size), expected)


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
def test_counting_and_sorting_agree_to_the_last_bit(ties, monkeypatch):
    rng = np.random.default_rng(2)
    x, labels = rng.integers(-2, 3, size=(131, 4)).astype(np.float32), rng.integers(0, 3, 131)
    monkeypatch.setattr(retrieval, "MANY", 10**6)
    counted = retrieval.rank_matches(x, labels, ties=ties)
    monkeypatch.setattr(retrieval, "MANY", 0)
    by_sorting = retrieval.rank_matches(x, labels, ties=ties)
    for name in FIGURES:
        np.testing.assert_array_equal(getattr(counted, name), getattr(by_sorting, name))
    assert_agrees(by_sorting, oracle.walk(x, labels, ties=ties))


def test_results_are_equal_on_one_and_on_eight_devices():
    x, labels, cameras, _ = random_case(7, n=200)
    one = retrieval.rank_matches(x, labels, cameras=cameras, block_size=16, devices=jax.devices()[:1])
    eight = retrieval.rank_matches(x, labels, cameras=cameras, block_size=16, devices=jax.devices())
    assert len(jax.devices()) == 8
    for name in FIGURES:
        np.testing.assert_array_equal(getattr(one, name), getattr(eight, name))


def test_first_only_agrees_with_the_whole():
    x, labels, cameras, _ = random_case(8)
    whole = retrieval.rank_matches(x, labels, cameras=cameras)
    first = retrieval.rank_matches(x, labels, cameras=cameras, first_only=True)
    np.testing.assert_array_equal(first.first_rank, whole.first_rank)
    np.testing.assert_array_equal(first.matches, whole.matches)


@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("classes", [1, 3, 9, 60])
def test_ranks_among_all_agree_with_a_walk(kind, ties, classes, monkeypatch):
    """By tiles that serve both sides; classes of several tiles, of part of one, and of one image."""
    monkeypatch.setattr(symmetric, "_TILE", 32)
    monkeypatch.setattr(symmetric, "_DIMENSIONS", 0)  # however many matches
    x, labels, cameras, _ = random_case(classes, n=150, d=3, classes=classes, integers=kind == "euclidean")
    for rule in (None, cameras):
        expected = oracle.walk(x, labels, rule, kind=kind, ties=ties)
        for devices in (jax.devices()[:1], jax.devices()[:3]):
            choice = {"cameras": rule, "distance": kind, "ties": ties, "devices": devices}
            assert_agrees(retrieval.rank_matches(x, labels, **choice), expected)
            found = retrieval.rank_matches(x, labels, first_only=True, **choice)
            for name in ("query", "matches", "first_rank"):
                np.testing.assert_array_equal(getattr(found, name), [e[name] for e in expected])
            assert np.isnan(found.average_precision).all()


def test_ranks_among_a_shuffled_part_of_all(monkeypatch):
    monkeypatch.setattr(symmetric, "_TILE", 32)
    monkeypatch.setattr(symmetric, "_DIMENSIONS", 0)
    x, labels, cameras, rng = random_case(3)
    part = rng.permutation(len(x))[:50]
    for gallery in (part, part[::-1], np.sort(part)):
        expected = oracle.walk(x, labels, cameras, part, part)
        chosen = {"cameras": cameras, "query": part, "gallery": gallery}
        assert_agrees(retrieval.rank_matches(x, labels, **chosen), expected)
        first = retrieval.rank_matches(x, labels, first_only=True, **chosen)
        np.testing.assert_array_equal(first.first_rank, [e["first_rank"] for e in expected])


@pytest.mark.parametrize(
    ("images_a_class", "dimensions", "expected"), [(5, 64, True), (9, 64, False), (300, 4096, False)]
)
def test_products_serve_both_sides_where_there_are_few_matches_to_count(images_a_class, dimensions, expected):
    labels = np.repeat(np.arange(2), images_a_class)
    x = np.random.default_rng(0).normal(size=(len(labels), dimensions)).astype(np.float32)
    problem = inputs.check_problem(x, labels, None, None, None)
    assert symmetric.serves_both(problem, first_only=False) == expected
    assert symmetric.serves_both(problem, first_only=True)
    for some in (problem._replace(query=problem.query[1:]), problem._replace(gallery=problem.gallery[1:])):
        assert not symmetric.serves_both(some, first_only=True)


@pytest.mark.parametrize("far", [0.0, 1e4])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-10, 1.0, 2.0**90])
def test_ranks_do_not_depend_on_scale_or_on_where_the_origin_is(scale, far):
    x, labels, _, _ = random_case(9)
    x = (
        np.round(x * 64) / 64
    )  # so that the shifted and scaled x are exact: the distance is tested, not the sum
    base = retrieval.rank_matches(x, labels)
    moved = retrieval.rank_matches((x + np.float32(far)) * np.float32(scale), labels)
    np.testing.assert_allclose(moved.average_precision, base.average_precision, atol=1e-6)


def test_labels_and_cameras_may_be_any_64_bit_number():
    x, labels, cameras, _ = random_case(10)
    labels = np.where(labels == -1, 3, labels)
    base = retrieval.rank_matches(x, labels, cameras=cameras)
    wide = retrieval.rank_matches(x, labels + (labels % 2) * 2**40, cameras=cameras * 2**33)
    np.testing.assert_array_equal(base.first_rank, wide.first_rank)


def test_nearest_lists_the_keys_in_order_and_fills_up_with_minus_one():
    x = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]], np.float32)
    labels, cameras = np.array([0, 0, 1, 0, -1]), np.array([0, 0, 0, 1, 0])
    found = retrieval.nearest(x, labels, cameras=cameras, query=[0], k=3)
    np.testing.assert_array_equal(found, [[2, 3, -1]])  # itself, its camera's twin and the junk are gone


def test_a_distance_of_one_s_own_is_ranked_and_checked():
    x, labels, cameras, rng = random_case(11)
    table = rng.integers(0, 9, (90, 90)).astype(float)
    ours = retrieval.rank_matches(x, labels, cameras=cameras, distance=lambda q, g: table[np.ix_(q, g)])
    for row, q in enumerate(ours.query):
        kept = (labels != -1) & (np.arange(90) != q) & ~((labels == labels[q]) & (cameras == cameras[q]))
        right = kept & (labels == labels[q])
        ahead = [np.sum(kept & ~right & (table[q] <= table[q, p])) for p in np.flatnonzero(right)]
        assert ours.first_rank[row] == (1 + min(ahead) if ahead else 0)
    with pytest.raises(ValueError, match=r"distance returned shape \(1, 90\)"):
        retrieval.rank_matches(x, labels * 0, distance=lambda q, g: table[:1])
    with pytest.raises(ValueError, match="distance returned NaN or infinity"):
        retrieval.rank_matches(x, labels * 0, distance=lambda q, g: table * np.nan)


@pytest.mark.slow
def test_float64_embeddings_are_ranked_in_float64_where_jax_has_it():
    script = (
        "import numpy as np; from hap2s_jax.evaluation import retrieval;"
        "x = 1 + np.array([[0], [3e-12], [1.2e-12], [2e-12]]); found = retrieval.rank_matches(x, [0, 0, 1, 1]);"
        "assert found.first_rank.tolist() == [3, 3, 1, 1], found.first_rank"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"JAX_ENABLE_X64": "1"})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embeddings": np.zeros((4, 2, 1))}, ValueError, "embeddings must be a matrix"),
        ({"embeddings": np.full((4, 2), np.nan)}, ValueError, "NaN or infinity in 4 of 4 rows"),
        ({"embeddings": np.full((4, 2), 1e200)}, ValueError, r"reach 1e\+200, whose distances float"),
        ({"embeddings": np.full((4, 2), -1e-200)}, ValueError, "reach 1e-200, whose distances float"),
        ({"embeddings": np.array([[0, 0], [1, np.inf], [0, 0], [0, 0]])}, ValueError, "the first is row 1"),
        ({"embeddings": np.zeros((0, 2))}, ValueError, "embeddings is empty"),
        ({"embeddings": np.zeros((4, 2), complex)}, TypeError, "real numbers"),
        ({"labels": [0, 1, 0]}, ValueError, "labels has 3 entries for 4 embeddings"),
        ({"labels": [0.0, 1.0, 0.0, 1.0]}, TypeError, "labels must be integers"),
        ({"cameras": ["a", "b", "c", "d"]}, TypeError, "cameras must be integers"),
        ({"query": []}, ValueError, "query is empty"),
        ({"gallery": np.zeros(4, bool)}, ValueError, "gallery is empty"),
        ({"gallery": [1, 9]}, ValueError, "gallery names row 9"),
        ({"query": [1, 1]}, ValueError, "query names a row twice"),
        ({"labels": [-1, -1, -1, -1]}, ValueError, "query is empty: all its labels are -1"),
        ({"distance": "manhattan"}, ValueError, "it should be one of euclidean"),
        ({"ties": "random"}, ValueError, "ties must be one of"),
        ({"block_size": -1}, ValueError, "block_size must be a number of queries"),
        ({"block_size": 2.5}, ValueError, "block_size must be a number of queries"),
        ({"devices": []}, ValueError, "devices must hold at least one"),
    ],
)
def test_bad_input_is_one_clear_error(change, error, message):
    arguments = {"embeddings": np.eye(4, dtype=np.float32), "labels": [0, 0, 1, 1]} | change
    with pytest.raises(error, match=message) as caught:
        retrieval.rank_matches(arguments.pop("embeddings"), arguments.pop("labels"), **arguments)
    assert "\n" not in str(caught.value)
