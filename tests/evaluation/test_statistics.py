"""Intervals, tables and the worst queries."""

from __future__ import annotations

import numpy as np
import pytest

from hap2s_jax.evaluation import protocols, statistics
from hap2s_jax.evaluation.retrieval import rank_matches


def test_interval_has_the_width_of_the_mean_s_standard_error():
    values = {"x": np.random.default_rng(0).normal(size=400), "y": np.full(400, 0.5)}
    bounds = statistics.confidence_intervals(values, resamples=4000)
    error = values["x"].std() / 20
    np.testing.assert_allclose(
        bounds["x"], values["x"].mean() + 1.96 * error * np.array([-1, 1]), atol=0.15 * error
    )
    np.testing.assert_allclose(bounds["y"], 0.5)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).binomial(1, 0.3, 150).astype(float)
        low, high = statistics.confidence_intervals({"x": sample}, level=0.9, resamples=300, seed=seed)["x"]
        hits += low <= 0.3 <= high
    assert 165 <= hits <= 195


def test_drawing_whole_classes_widens_the_interval_where_queries_of_a_class_agree():
    classes = np.repeat(np.arange(20), 10)
    values = {"x": np.random.default_rng(1).normal(size=20)[classes]}
    single = np.ptp(statistics.confidence_intervals(values)["x"])
    whole = np.ptp(statistics.confidence_intervals(values, groups=classes)["x"])
    assert 2 < whole / single < 4.5  # sqrt(10) for full agreement


def test_queries_that_do_not_count_stay_out_and_none_at_all_is_nan():
    values = {"x": np.array([1.0, np.nan, 0.0]), "none": np.full(3, np.nan)}
    assert statistics.means(values)["x"] == 0.5
    bounds = statistics.confidence_intervals(values)
    assert bounds["x"] == (0.0, 1.0)
    assert np.isnan(bounds["none"]).all()
    np.testing.assert_array_equal(statistics.worst(values["x"], 3), [2, 0])


def test_table_by_group():
    table = statistics.by_group({"x": np.array([1.0, 0.0, np.nan, 0.5])}, np.array([7, 7, 7, 3]))
    assert list(table) == [3, 7]
    assert table[7] == {"queries": 3.0, "x": 0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 95}, "level must lie"),
        ({"resamples": 0}, "resamples must be"),
        ({"groups": [1]}, "groups must have"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        statistics.confidence_intervals({"x": np.zeros(3)}, **arguments)


def test_values_of_two_encoders_can_be_subtracted_query_by_query():
    labels = np.array([0, 0, 1, 1])
    better, worse = (
        protocols.class_values(rank_matches(np.array(points)[:, None], labels), ks=(1,))["recall@1"]
        for points in ([0.0, 0.1, 1.0, 1.1], [0.0, 1.0, 0.1, 1.1])
    )
    np.testing.assert_array_equal(better - worse, 1.0)  # which numpy refuses for truth values
