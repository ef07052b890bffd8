"""Verification and open-set retrieval, against scikit-learn's curves and loops over the queries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from hap2s_jax import evaluation
from hap2s_jax.evaluation import counted_pairs
from hap2s_jax.evaluation import pairs as module
from hap2s_jax.evaluation.pairs import FALSE_ACCEPTS, intervals, roc, verification


def _data(seed=0, count=160, whole=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 12, count)
    embeddings = rng.normal(size=(12, 6))[labels] + 0.7 * rng.normal(size=(count, 6))
    embeddings = np.round(2 * embeddings) if whole else embeddings  # whole numbers tie
    labels[3:6] = -1
    return embeddings.astype(np.float32), labels


def _by_scikit_learn(embeddings, same_and_rows, distance):
    same, apart = [], []
    for i, j, is_same in same_and_rows:
        a, b = embeddings[i].astype(np.float64), embeddings[j].astype(np.float64)
        cosine = 1 - a @ b / np.sqrt((a @ a) * (b @ b))
        apart.append(cosine if distance == "cosine" else ((a - b) ** 2).sum())
        same.append(is_same)
    far, tar, _ = roc_curve(same, -np.array(apart), drop_intermediate=False)
    fine = np.linspace(0, 1, 2_000_001)
    crossing = fine[np.argmin(np.abs(1 - fine - np.interp(fine, far, tar)))]
    negatives = len(same) - sum(same)
    tars = {f"tar@{rate:.0e}": tar[far <= rate].max() for rate in FALSE_ACCEPTS if rate * negatives >= 10}
    return {"auc": roc_auc_score(same, -np.array(apart)), **tars}, crossing


def _all(labels):
    kept = np.flatnonzero(labels >= 0)
    return [(i, j, bool(labels[i] == labels[j])) for i, j in itertools.combinations(kept, 2)]


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(
    ("whole", "distance"), [(True, "euclidean"), (False, "euclidean"), (False, "cosine")]
)
def test_curves_are_scikit_learn_s(monkeypatch, whole, distance, counted):
    if counted:
        monkeypatch.setattr(module, "_EXACT", 0)
        monkeypatch.setattr(counted_pairs, "_SIDE", 64)
    embeddings, labels = _data(whole=whole)
    figures = verification(embeddings, labels, distance=distance)
    expected, eer = _by_scikit_learn(embeddings, _all(labels), distance)
    # Real distances counted in steps: two of them may share one.
    tolerance = 1e-5 if counted and not whole else 1e-9
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=tolerance)
    assert figures["eer"] == pytest.approx(eer, abs=max(tolerance, 1e-6))
    assert "tar@1e-03" in figures
    assert "tar@1e-04" not in figures  # some 11,000 pairs of two classes
    assert figures["same_pairs"] + figures["different_pairs"] == 157 * 156 / 2


def test_given_pairs(monkeypatch):
    embeddings, labels = _data(whole=True)
    rng = np.random.default_rng(1)
    rows = np.array([p for p in rng.integers(0, len(labels), (900, 2)) if p[0] != p[1]])
    kept = [(i, j, bool(labels[i] == labels[j])) for i, j in rows if labels[i] >= 0 and labels[j] >= 0]
    expected, _ = _by_scikit_learn(embeddings, kept, "euclidean")
    for pairs in (rows, np.array(kept, int)):
        figures = verification(embeddings, labels, pairs)
        assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    figures = verification(embeddings, None, np.array(kept, int))
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert figures["same_pairs"] == sum(same for *_, same in kept)


@pytest.mark.parametrize(
    ("labels", "pairs", "words"),
    [
        ([0, 1, 2], None, "none of one class"),
        ([1, 1, 1], None, "none of two classes"),
        (None, [[0, 1]], "labels must be given"),
        ([0, 0, 1], [[0, 3]], "row 3"),
        ([0, 0, 1], [[0, 1], [2, 2]], "row 2 with itself, in pair 1"),
        ([0, 0, 1], [[0, 1, 2]], "third column"),
    ],
)
def test_what_cannot_be_verified_is_one_line(labels, pairs, words):
    with pytest.raises(ValueError, match=words) as error:
        verification(np.eye(3), labels, pairs)
    assert "\n" not in str(error.value)


def test_intervals_by_class_hold_the_curve_and_both_ways_agree(monkeypatch):
    embeddings, labels = _data(2)
    rates, bounds = intervals(embeddings, labels, resamples=200)
    tar = [roc(embeddings, labels).at(rate)[0] for rate in rates]
    assert (bounds[0] <= tar).all()
    assert (tar <= bounds[1] + 1e-9).all()
    assert (bounds[1] - bounds[0])[:-2].min() > 0.01
    monkeypatch.setattr(module, "_EXACT", 0)
    monkeypatch.setattr(counted_pairs, "_SIDE", 64)
    counted = intervals(embeddings, labels, resamples=200)
    assert np.allclose(counted[1], bounds, atol=0.01)


@pytest.mark.parametrize("with_cameras", [False, True])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_open_set_by_a_loop(distance, with_cameras):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 14, 330)
    embeddings = np.round(3 * rng.normal(size=(14, 4))[labels] + 2 * rng.normal(size=(330, 4)) + 1).astype(
        np.float32
    )
    cameras = rng.integers(0, 2, 330) if with_cameras else None
    query = np.arange(220)
    gallery = np.array([i for i in range(200, 330) if labels[i] < 7])  # some rows are in both
    labels[:4], threshold = -1, 0.02 if distance == "cosine" else 2.0
    known, unknown, left_out = [], [], 0
    for q in query:
        if labels[q] < 0:
            continue
        right, wrong = [np.inf], [np.inf]
        of_class = False
        for g in gallery:
            a, b = embeddings[q].astype(float), embeddings[g].astype(float)
            apart = (
                np.sqrt(((a - b) ** 2).sum())
                if distance == "euclidean"
                else 1 - a @ b / np.sqrt((a @ a) * (b @ b))
            )
            if labels[g] != labels[q]:
                wrong.append(apart)
            elif g != q:
                of_class = True
                if cameras is None or cameras[g] != cameras[q]:
                    right.append(apart)
        if not of_class:
            unknown.append((labels[q], min(wrong)))
        elif np.isfinite(min(right)):
            known.append((labels[q], min(right), min(wrong)))
        else:
            left_out += 1
    figures = evaluation.open_set(
        embeddings, labels, cameras, query=query, gallery=gallery, threshold=threshold, distance=distance
    )
    counts = [figures[f"open_set_{name}_queries"] for name in ("known", "unknown", "left_out")]
    assert counts == [len(known), len(unknown), left_out]
    best = 0.0  # the largest share at any threshold that at most a tenth of the unknown queries reach
    for limit in {0.0, *(right for _, right, _ in known), *(wrong for _, wrong in unknown)}:
        if np.mean([wrong <= limit + 1e-9 for _, wrong in unknown]) <= 0.1:
            best = max(best, np.mean([r < w - 1e-9 and r <= limit + 1e-9 for _, r, w in known]))
    assert figures["dir@1e-01"] == pytest.approx(best)
    assert "dir@1e-02" not in figures
    by_class = [
        np.mean(
            [
                np.mean([outcome for name, outcome in outcomes if name == c])
                for c in {name for name, _ in outcomes}
            ]
        )
        for outcomes in (
            [(c, r < w - 1e-9 and r <= threshold) for c, r, w in known],
            [(c, w > threshold) for c, w in unknown],
        )
    ]
    assert [figures["baks"], figures["baus"]] == pytest.approx(by_class)
    assert figures["geometric_mean"] == pytest.approx(np.sqrt(by_class[0] * by_class[1]))
    accepts = np.mean([w <= threshold for _, w in unknown])
    rejects = np.mean([r > threshold for _, r, _ in known])
    assert [figures["false_accepts"], figures["false_rejects"]] == pytest.approx([accepts, rejects])
    assert figures["false_accepts_bound"] >= accepts
    assert figures["false_rejects_bound"] >= rejects


def test_open_set_without_one_kind_of_query():
    figures = evaluation.open_set(np.eye(4), [0, 0, 1, 1], threshold=1.0)
    assert (figures["open_set_known_queries"], figures["open_set_unknown_queries"]) == (4, 0)
    assert np.isnan([figures["baus"], figures["geometric_mean"], figures["false_accepts"]]).all()
    assert figures["baks"] == 0  # all are equally far
    figures = evaluation.open_set(np.eye(4), [0, 1, 2, 3], threshold=1.0)
    assert np.isnan(figures["baks"])
    assert figures["baus"] == 1
