"""Thresholds and exact search, against float64 loops."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hap2s_jax.evaluation import neighbors
from hap2s_jax.evaluation.bounds import classes_for, upper_bound
from hap2s_jax.evaluation.neighbors import ExactIndex, distances_between
from hap2s_jax.evaluation.thresholds import ErrorRates, error_rates, nearest_right_and_wrong


def _data(seed=0, count=90, classes=8):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    embeddings = rng.normal(size=(classes, 5))[labels] + 0.6 * rng.normal(size=(count, 5)) + 40
    return embeddings.astype(np.float32), labels, rng.integers(0, 3, count)


def _one(a, b, distance):
    a, b = a.astype(np.float64), b.astype(np.float64)
    if distance == "cosine":
        return 1 - a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)
    return np.sqrt(((a - b) ** 2).sum()) ** (2 if distance == "squared_euclidean" else 1)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("with_cameras", [False, True])
def test_nearest_right_and_wrong_by_a_loop(monkeypatch, distance, with_cameras):
    from hap2s_jax.evaluation import thresholds

    monkeypatch.setattr(thresholds, "_ROWS", 32)
    embeddings, labels, cameras = _data()
    labels[5:8] = -1
    labels[40] = 77  # alone in its class
    cameras = cameras if with_cameras else None
    right, wrong = nearest_right_and_wrong(embeddings, labels, cameras, distance=distance)
    kept = np.flatnonzero(labels >= 0)
    for place, i in enumerate(kept):
        best = {True: np.inf, False: np.inf}
        for j in kept:
            same = labels[i] == labels[j]
            if i == j or (same and cameras is not None and cameras[i] == cameras[j]):
                continue
            best[bool(same)] = min(best[bool(same)], _one(embeddings[i], embeddings[j], distance))
        assert right[place] == pytest.approx(best[True], rel=1e-6)
        assert wrong[place] == pytest.approx(best[False], rel=1e-6)


def test_shares_by_counting():
    embeddings, labels, cameras = _data(1)
    rates = error_rates(embeddings, labels, cameras)
    right, wrong = nearest_right_and_wrong(embeddings, labels, cameras)
    every_right, right = right, right[np.isfinite(right)]
    for threshold, accepts, rejects in zip(
        rates.thresholds, rates.false_accepts, rates.false_rejects, strict=True
    ):
        assert accepts == pytest.approx(np.mean([w <= threshold for w in wrong]))
        assert rejects == pytest.approx(np.mean([r > threshold for r in right]))
    assert (np.diff(rates.false_accepts) >= 0).all()
    assert (np.diff(rates.false_rejects) <= 0).all()
    assert (rates.known, rates.unknown, rates.gallery) == (len(right), 90, 89)
    equal = rates.at(rates.equal())
    assert abs(equal[0] - equal[1]) < 0.05
    for place in (0, 40, -1):
        at = rates.thresholds[place]
        assert rates.accepting_classes[place] == len(set(labels[wrong <= at]))
        known = np.isfinite(every_right)
        assert rates.rejecting_classes[place] == len(set(labels[known & (every_right > at)]))
    assert (rates.known_classes, rates.unknown_classes, rates.default()) == (8, 8, None)
    threshold = rates.for_false_accepts(0.6)
    assert rates.bounds(threshold)[0] <= 0.6
    with pytest.raises(
        ValueError, match=r"less than 8 classes can show.*may be 0\.528.*no number of classes"
    ):
        rates.for_false_accepts(0.0)
    with pytest.raises(ValueError, match=r"118 classes can show 0\.05"):
        rates.for_false_accepts(0.05)
    again = ErrorRates.from_json(json.loads(json.dumps(rates.to_json())))
    np.testing.assert_array_equal(again.thresholds, rates.thresholds)
    assert again.at(threshold) == rates.at(threshold)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("thresholds", value)
            for value in ("abc", {}, None, 3, [], [[1, 2]], ["a"], [1.0], [3, 2, 1], [np.nan] * 3)
        ),
        *(("false_accepts", value) for value in ([0.5], {}, [-1, 0, 1], [1, 0, 0])),
        *(("accepting_classes", value) for value in ([0, 0, -5], [2**70] * 3, [3, 2, 1])),
        *(
            (name, value)
            for name in ("known", "unknown_classes", "gallery")
            for value in ("x", None, -1, 1.5, 2**70)
        ),
        ("data", 7),
    ],
)
def test_a_calibration_that_somebody_made_up_is_refused(name, value):
    honest = {"thresholds": [1, 2, 3], "false_accepts": [0, 0.5, 1], "false_rejects": [1, 0.5, 0]}
    honest |= {"accepting_classes": [0, 1, 2], "rejecting_classes": [2, 1, 0], "data": "x", "gallery": 9}
    honest |= dict.fromkeys(("known", "unknown", "known_classes", "unknown_classes"), 2)
    assert ErrorRates.from_json(honest).equal() == 2
    with pytest.raises((ValueError, TypeError, OverflowError)):
        ErrorRates.from_json(honest | {name: value})


def test_bounds_of_ever_so_many_classes_take_no_time():
    stats = pytest.importorskip("scipy.stats")
    for errors, count in ((10**6, 10**7), (10**7 - 1, 10**7), (3, 10**7)):
        assert upper_bound(errors, count) == pytest.approx(
            stats.beta.ppf(0.95, errors + 1, count - errors), abs=1e-6
        )


def test_classes_far_apart_have_a_threshold_without_errors():
    labels = np.repeat(np.arange(5), 4)
    embeddings = np.eye(5)[labels] + 0.01 * np.random.default_rng(0).normal(size=(20, 5))
    rates = error_rates(embeddings.astype(np.float32), labels)
    assert rates.at(rates.equal()) == (0.0, 0.0)


def test_bounds_by_the_binomial_distribution():
    stats = pytest.importorskip("scipy.stats")
    for errors, count in ((0, 59), (0, 299), (1, 20), (7, 60), (60, 60)):
        expected = stats.beta.ppf(0.95, errors + 1, count - errors) if errors < count else 1
        assert upper_bound(errors, count) == pytest.approx(expected, abs=1e-9)
    assert (classes_for(0.05), classes_for(0.01)) == (2 * 59, 2 * 299)
    assert upper_bound(0, 59) <= 0.05 < upper_bound(0, 58)
    assert upper_bound(0, 299) <= 0.01 < upper_bound(0, 298)


@pytest.mark.parametrize(("classes", "share"), [(40, 0.15)])
def test_bounds_hold_as_often_as_they_promise(classes, share):
    """Classes are pairs of points on a circle: both true shares are known, and classes err in twos."""
    held, rng = np.zeros(3), np.random.default_rng(classes)
    for _ in range(500):
        first = rng.uniform(0, 2 * np.pi, classes)
        angles = np.stack([first, first + rng.exponential(2e-3, classes)], axis=1).reshape(-1)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        rates = error_rates(points, np.repeat(np.arange(classes), 2))
        for number, threshold in enumerate((rates.for_false_accepts(share), rates.equal())):
            reach = 2 * np.arcsin(max(threshold, 0) / 2)
            gaps = np.diff(np.sort(angles % (2 * np.pi)), append=angles.min() + 2 * np.pi)
            accepts = np.minimum(gaps, 2 * reach).sum() / (2 * np.pi)
            bounds = rates.bounds(threshold)
            held[number] += accepts <= bounds[0]
            held[2] += np.exp(-reach / 2e-3) <= bounds[1] if number == 0 else 0
    assert held[0] >= 0.93 * 500
    assert held[1] >= 0.93 * 500
    assert held[2] >= 0.93 * 500


def test_one_class_cannot_be_calibrated_on():
    with pytest.raises(ValueError, match="two classes"):
        error_rates(np.eye(3, dtype=np.float32), [0, 0, 0])


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
def test_exact_search_by_sorting(monkeypatch, distance):
    monkeypatch.setattr(neighbors, "_QUERIES_AT_ONCE", 8)
    monkeypatch.setattr(neighbors, "_TILE_BYTES", 32 * 4 * 8)  # blocks of 32 rows
    keys, queries = _data(2)[0], _data(3, 20)[0]
    distances, rows = ExactIndex(keys, distance).search(queries, 70)
    table = np.array([[_one(q, k, distance) for k in keys] for q in queries])
    order = np.argsort(table, axis=1, kind="stable")[:, :70]
    np.testing.assert_allclose(distances, np.take_along_axis(table, rows, axis=1), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(distances, np.take_along_axis(table, order, axis=1), rtol=1e-4, atol=1e-5)
    assert np.mean(rows == order) > 0.95  # float32 cannot tell some apart
    assert all(len(set(line)) == 70 for line in rows.tolist())
    # Some rows alone: as in a table of their own, whether there are as many as are asked for or not.
    for share in (0.9, 0.2):
        allowed = np.random.default_rng(5).random(90) < share
        distances, rows = ExactIndex(keys, distance).search(queries, 30, allowed)
        own = np.flatnonzero(allowed)
        expected, places = ExactIndex(keys[own], distance).search(queries, min(30, len(own)))
        np.testing.assert_array_equal(rows[:, : len(own)], own[places])
        np.testing.assert_array_equal(distances[:, : len(own)], expected)
        assert (rows[:, len(own) :] == -1).all()
        assert np.isinf(distances[:, len(own) :]).all()
    assert ExactIndex(keys).search(queries, 3, np.zeros(90, bool))[1].tolist() == [[-1] * 3] * 20


def test_copies_are_found_at_distance_zero_the_lower_row_first():
    keys = _data(4)[0]
    keys[[3, 50]] = keys[80]
    distances, rows = ExactIndex(keys).search(keys[[80]], 4)
    assert rows[0, :3].tolist() == [3, 50, 80]
    assert distances[0, :3].tolist() == [0, 0, 0]
    assert distances_between(keys[:1], keys[:1], "cosine") == pytest.approx(0, abs=1e-12)


def test_what_lies_close_together_is_told_apart():
    rng = np.random.default_rng(0)
    keys = (10 * rng.normal(size=(2000, 128))).astype(np.float32)
    keys[:30] = keys[0] * (1 + 1e-3 * rng.normal(size=(30, 1)))
    distances, rows = ExactIndex(keys).search(keys[[0]], 10)
    table = np.linalg.norm(keys.astype(np.float64) - keys[0], axis=1)
    np.testing.assert_array_equal(rows[0], np.argsort(table, kind="stable")[:10])
    np.testing.assert_allclose(distances[0], np.sort(table)[:10])


def test_questions_that_do_not_fit():
    index = ExactIndex(_data()[0])
    for queries, k in ((np.zeros((1, 4), np.float32), 1), (np.zeros((1, 5), np.float32), 91)):
        with pytest.raises(ValueError, match="k is"):
            index.search(queries, k)
