"""Protocols against pytorch-metric-learning, plain loops and each other."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import retrieval_oracle as oracle

from hap2s_jax.data import matches
from hap2s_jax.evaluation import evaluate, protocols, retrieval, special
from hap2s_jax.evaluation.neighbors import ExactIndex
from hap2s_jax.evaluation.reranking import KReciprocal
from hap2s_jax.evaluation.thresholds import error_rates


def case(seed=0, n=90, classes=9, cameras=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = (rng.normal(size=(classes, 4))[labels] + rng.normal(size=(n, 4))).astype(np.float32)
    order = rng.permutation(n)
    return x, labels, rng.integers(0, cameras, n), order[:30], order[30:]


def test_figures_are_means_over_the_right_queries():
    x, labels, cameras, query, gallery = case()
    labels[0] = 77  # a lone image: a miss for recall@k, left out elsewhere
    figures = evaluate(
        x, labels, cameras, query=query, gallery=gallery, protocols=("class", "query_gallery", "in_shop")
    )
    rows = oracle.walk(x, labels)
    ranked = [r for r in rows if r["matches"]]
    assert len(ranked) == 89
    for k in (1, 2, 4, 8):
        assert figures[f"recall@{k}"] == pytest.approx(sum(r["first_rank"] <= k for r in ranked) / 90)
    assert figures["map@r"] == pytest.approx(np.mean([r["map_at_r"] for r in ranked]), abs=1e-6)
    assert figures["r_precision"] == pytest.approx(np.mean([r["r_precision"] for r in ranked]), abs=1e-6)
    assert figures["mrr"] == pytest.approx(np.mean([1 / r["first_rank"] for r in ranked]), abs=1e-6)
    assert (figures["class_queries"], figures["class_queries_without_match"]) == (90, 1)
    assert 0 < figures["nmi"] < 1

    ranked = [r for r in oracle.walk(x, labels, cameras, query, gallery) if r["matches"]]
    for k in (1, 5, 10):
        assert figures[f"rank-{k}"] == pytest.approx(np.mean([r["first_rank"] <= k for r in ranked]))
    assert figures["mAP"] == pytest.approx(np.mean([r["average_precision"] for r in ranked]), abs=1e-6)
    trapezoid = np.mean([r["average_precision_trapezoid"] for r in ranked])
    assert figures["mAP_trapezoid"] == pytest.approx(trapezoid, abs=1e-6)
    assert figures["mINP"] == pytest.approx(
        np.mean([r["matches"] / r["last_rank"] for r in ranked]), abs=1e-6
    )
    assert figures["query_gallery_queries_without_match"] == 30 - len(ranked)

    rows = oracle.walk(x, labels, None, query, gallery)
    found = [0 < r["first_rank"] <= 10 for r in rows]
    assert figures["in_shop_recall@10"] == pytest.approx(np.mean(found))


@pytest.mark.parametrize("seed", range(3))
def test_class_retrieval_equals_pytorch_metric_learning(seed):
    torch = pytest.importorskip("torch")
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    knn = pytest.importorskip("pytorch_metric_learning.utils.inference").CustomKNN
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    x, labels, _, _, _ = case(seed)
    theirs = calculator.AccuracyCalculator(
        include=(
            "precision_at_1",
            "mean_average_precision_at_r",
            "mean_average_precision",
            "r_precision",
            "mean_reciprocal_rank",
        ),
        k=89,
        knn_func=knn(distances.LpDistance(normalize_embeddings=False)),
    ).get_accuracy(torch.tensor(x), torch.tensor(labels))
    ours = evaluate(x, labels, cluster=False)
    assert ours["recall@1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert ours["map@r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)
    assert ours["r_precision"] == pytest.approx(theirs["r_precision"], abs=1e-6)
    assert ours["mrr"] == pytest.approx(theirs["mean_reciprocal_rank"], abs=1e-6)
    average_precision = np.nanmean(retrieval.rank_matches(x, labels).average_precision)
    assert average_precision == pytest.approx(theirs["mean_average_precision"], abs=1e-6)


def test_no_query_at_all_with_a_match_is_nan_and_counted():
    x, _, cameras, _, _ = case()
    figures = evaluate(x, np.arange(90), cameras, protocols=("class", "query_gallery"), cluster=False)
    assert figures["recall@1"] == 0
    assert all(np.isnan(figures[name]) for name in ("map@r", "mrr", "rank-1", "mAP", "mINP"))
    assert figures["class_queries_without_match"] == figures["query_gallery_queries_without_match"] == 90


def test_cameras_that_are_not_known_are_no_image_s_own():
    x, labels = np.eye(3)[[0, 0, 1, 1, 2, 2]], [0, 0, 1, 1, 2, 2]
    for cameras, missing in (([-1] * 6, 0), ([-1, -1, -1, 0, 0, 0], 2)):
        figures = evaluate(x, labels, cameras, protocols=("query_gallery",))
        assert (figures["mAP"], figures["query_gallery_queries_without_match"]) == (1.0, missing)


def test_queries_without_a_match_are_told_with_the_reason():
    labels, cameras = np.array([0, 0, 1, 1, 2, -1]), np.array([0, 1, 2, 2, 3, 0])
    lone, own = matches.describe(labels, cameras, protocols=("class", "query_gallery"))
    assert lone.startswith(
        "class: 1 of 5 queries have no valid match and count as misses, in recall@k alone: 1 are"
    )
    assert own.startswith("query_gallery: 3 of 5 queries have no valid match and are left out: 1 have no")
    assert "2 have such images of their own camera only" in own
    assert matches.describe(labels[:4], protocols=("class", "query_gallery")) == ()
    absent = matches.describe(labels, cameras, query=[0, 2], gallery=[1], protocols=("query_gallery",))
    assert "1 of 2 queries have no valid match and are left out: 1 have no other image" in absent[0]
    asked = np.isin(np.arange(6), [0, 2])
    assert absent == matches.describe(labels, cameras, query=asked, gallery=[1], protocols=("query_gallery",))


def test_a_single_camera_is_no_camera_rule():
    x, labels, _, query, gallery = case()
    rows = {"query": query, "gallery": gallery, "protocols": ("query_gallery",)}
    assert evaluate(x, labels, np.full(90, 7), **rows) == evaluate(x, labels, **rows)
    assert "judged without the camera rule" in matches.describe(labels, np.full(90, 7), **rows)[0]
    with_junk = np.where(np.arange(90) == query[0], -1, labels), np.where(np.arange(90) == query[0], 3, 7)
    assert evaluate(x, *with_junk, **rows) == evaluate(x, with_junk[0], **rows)


def test_a_gallery_smaller_than_the_usual_ranks():
    x, labels, _, _, _ = case()
    figures = evaluate(x, labels, query=np.arange(80), gallery=[80, 81, 82], protocols=("query_gallery",))
    expected = oracle.walk(x, labels, None, range(80), [80, 81, 82])
    assert figures["rank-10"] == 1.0
    assert figures["query_gallery_queries_without_match"] == sum(r["matches"] == 0 for r in expected)


def test_one_image_is_a_miss():
    figures = evaluate(np.ones((1, 3), np.float32), [0])
    assert figures["recall@1"] == 0
    assert np.isnan(figures["map@r"])


def test_single_gallery_shot_is_what_its_definition_says_on_average():
    x, labels, cameras, query, gallery = case()
    rows = {"cameras": cameras, "query": query, "gallery": gallery}
    ranks = special.rank_single_gallery_shot(x, labels, repeats=400, **rows)
    table = oracle.distances(x, x)
    for i, q in enumerate(query):
        valid = [g for g in gallery if labels[g] == labels[q] and cameras[g] != cameras[q]]
        if not valid:
            assert (ranks[:, i] == 0).all()
            continue
        # Chance that the match beats every other identity's one random image, averaged over the match drawn.
        chance = 0.0
        for match in valid:
            alone = 1.0
            for other in set(labels[gallery]) - {labels[q]}:
                images = [g for g in gallery if labels[g] == other]
                alone *= np.mean([table[q, g] > table[q, match] for g in images])
            chance += alone / len(valid)
        assert np.mean(ranks[:, i] == 1) == pytest.approx(chance, abs=0.11)
    again = special.rank_single_gallery_shot(x, labels, repeats=400, **rows)
    np.testing.assert_array_equal(ranks, again)


def test_single_gallery_shot_counts_ties_as_it_is_told():
    x, labels = np.zeros((6, 2), np.float32), np.array([0, 1, 2, 0, 1, 2])
    rows = {"query": np.arange(3), "gallery": np.arange(3, 6)}
    for ties, rank in (("pessimistic", 3), ("optimistic", 1)):
        assert (special.rank_single_gallery_shot(x, labels, ties=ties, **rows) == rank).all()
        figures = evaluate(x, labels, protocols=("single_gallery_shot",), ties=ties, ranks=(1,), **rows)
        assert figures["single_gallery_shot_rank-1"] == (rank == 1)
    with pytest.raises(ValueError, match="ties must be one of"):
        special.rank_single_gallery_shot(x, labels, ties="random", **rows)


@pytest.mark.parametrize("chosen", [("class",), ("query_gallery",), ("class", "query_gallery")])
def test_names_are_those_of_the_figures(chosen):
    x, labels, cameras, query, gallery = case()
    figures = evaluate(x, labels, cameras, query=query, gallery=gallery, protocols=chosen)
    assert set(protocols.names(chosen)) == {name for name in figures if "_queries" not in name}


def test_single_gallery_shot_with_one_image_each_is_plain_cmc():
    x, _, _, _, _ = case()
    labels = np.concatenate([np.arange(45), np.arange(45)])
    rows = {"query": np.arange(45), "gallery": np.arange(45, 90)}
    ranks = special.rank_single_gallery_shot(x, labels, repeats=2, **rows)
    plain = retrieval.rank_matches(x, labels, **rows)
    np.testing.assert_array_equal(ranks, np.stack([plain.first_rank] * 2))
    figures = evaluate(x, labels, protocols=("single_gallery_shot",), ranks=(1, 5), **rows)
    assert figures["single_gallery_shot_rank-5"] == pytest.approx(np.mean(plain.first_rank <= 5))


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_multi_query_pools_an_identity_s_images_by_its_camera(pool):
    x, labels, cameras, query, gallery = case()
    views = np.arange(90)
    ours = special.rank_multi_query(x, labels, cameras, query=query, gallery=gallery, views=views, pool=pool)
    np.testing.assert_array_equal(ours.query, query)
    for place, q in enumerate(query):
        alike = (labels == labels[q]) & (cameras == cameras[q])
        pooled = getattr(np, pool)(x[alike].astype(np.float64), axis=0)
        table = np.concatenate([x, pooled[None]])
        expected = oracle.walk(
            table, np.append(labels, labels[q]), np.append(cameras, cameras[q]), [90], gallery
        )
        assert ours.matches[place] == expected[0]["matches"]
        assert ours.average_precision[place] == pytest.approx(
            expected[0]["average_precision"], abs=1e-6, nan_ok=True
        )
    with pytest.raises(ValueError, match="pool must be one of"):
        special.rank_multi_query(x, labels, cameras, query=query, pool="sum")


def test_multi_query_of_single_images_is_query_gallery():
    x, labels, cameras, query, gallery = case()
    query = query[np.unique(labels[query] * 3 + cameras[query], return_index=True)[1]]
    figures = evaluate(
        x,
        labels,
        cameras,
        query=query,
        gallery=gallery,
        protocols=("multi_query", "query_gallery"),
        cluster=False,
    )
    for name in ("rank-1", "mAP", "mINP"):
        assert figures[f"multi_query_{name}"] == figures[name]


def test_strict_promotion_of_types_and_ranks():
    x, labels, cameras, query, gallery = case()
    rows = {"query": query, "gallery": gallery}
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        evaluate(x, labels, cameras, protocols=protocols.PROTOCOLS, **rows)
        retrieval.rank_matches(x, labels, distance=KReciprocal(x, distance="cosine"))
        retrieval.rank_matches(x, labels, first_only=True)
        retrieval.nearest(x, labels, k=3)
        error_rates(x, labels, cameras)
        ExactIndex(x).search(x[:2], 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocols": ("cub",)}, "protocols must be a list out of class"),
        ({"protocols": "class"}, "protocols must be a list out of class"),
        ({"recall_at": (1, 90)}, "a rank k of 90 was asked for, but the gallery holds 89"),
        ({"recall_at": (0,)}, "a rank k must be a whole number of at least 1"),
        ({"protocols": ("query_gallery",), "gallery": [0, 1], "ranks": (5,)}, "the gallery holds 2 images"),
        ({"protocols": ("multi_query",)}, "cameras must be given"),
        ({"protocols": ("single_gallery_shot",), "repeats": 0}, "repeats must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    x, labels, _, _, _ = case()
    with pytest.raises(ValueError, match=message):
        evaluate(x, labels, **arguments)


def test_views_must_cover_the_queries():
    x, labels, cameras, query, gallery = case()
    with pytest.raises(ValueError, match="views holds no image of the identity and camera of query row"):
        special.rank_multi_query(x, labels, cameras, query=query, gallery=gallery, views=query[:1])
