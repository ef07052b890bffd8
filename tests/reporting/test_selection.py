import numpy as np
import pytest

from hap2s_jax.reporting.selection import choose_for_map, choose_queries


def test_queries_are_distinct_and_seeded() -> None:
    first = choose_queries(1000, 12, seed=1)
    assert first.dtype == np.int64
    assert len(set(first.tolist())) == 12
    np.testing.assert_array_equal(first, choose_queries(1000, 12, seed=1))
    assert set(first.tolist()) != set(choose_queries(1000, 12, seed=2).tolist())
    assert sorted(choose_queries(5, 12).tolist()) == [0, 1, 2, 3, 4]
    assert choose_queries(0, 12).shape == (0,)


def test_the_worst_come_last_and_are_the_worst() -> None:
    scores = np.linspace(0, 1, 100)
    scores[0] = np.nan
    chosen = choose_queries(100, 10, worst=0.3, scores=scores)
    assert len(set(chosen.tolist())) == 10
    assert chosen[-3:].tolist() == [1, 2, 3]
    assert sorted(choose_queries(100, 4, worst=1.0, scores=scores).tolist()) == [1, 2, 3, 4]
    only_nan = choose_queries(3, 3, worst=1.0, scores=np.full(3, np.nan))
    assert sorted(only_nan.tolist()) == [0, 1, 2]


def test_equally_bad_ones_are_drawn_not_taken_in_order() -> None:
    chosen = choose_queries(1000, 10, worst=1.0, scores=np.zeros(1000))
    assert chosen.max() > 100


def test_no_class_twice_while_there_are_others() -> None:
    labels = np.repeat(np.arange(8), 50)
    scores = np.where(labels == 3, 0.0, 0.5) + np.arange(400) * 1e-4
    chosen = choose_queries(400, 8, labels=labels, worst=0.5, scores=scores)
    assert sorted(labels[chosen].tolist()) == list(range(8))
    assert np.bincount(labels[choose_queries(400, 16, labels=labels)]).tolist() == [2] * 8


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="it should be 0 to 1, with scores"):
        choose_queries(10, 3, worst=0.5)
    with pytest.raises(ValueError, match=r"labels has shape .*; it should be \(10,\)"):
        choose_queries(10, 3, labels=np.zeros(9))


def test_a_map_takes_whole_classes() -> None:
    labels = np.random.default_rng(0).integers(0, 60, 1000)
    chosen = choose_for_map(labels, 300, seed=0)
    assert 250 < len(chosen) <= 300
    assert (np.diff(chosen) > 0).all()
    sizes = np.bincount(labels, minlength=60)
    kept = np.bincount(labels[chosen], minlength=60)
    assert np.all((kept == 0) | (kept == sizes))
    np.testing.assert_array_equal(choose_for_map(labels, 5000), np.arange(1000))
    assert choose_for_map(np.zeros(100), 10).shape == (10,)
    assert choose_for_map(np.zeros(0), 10).shape == (0,)
