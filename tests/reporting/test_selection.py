import numpy as np

from hap2s_jax.reporting.selection import choose_for_map, choose_queries


def test_queries_are_distinct_and_seeded() -> None:
    labels = np.arange(1000)
    first = choose_queries(labels, 12, seed=1)
    assert first.dtype == np.int64
    assert len(set(first.tolist())) == 12
    np.testing.assert_array_equal(first, choose_queries(labels, 12, seed=1))
    assert set(first.tolist()) != set(choose_queries(labels, 12, seed=2).tolist())
    assert sorted(choose_queries(labels[:5], 12).tolist()) == [0, 1, 2, 3, 4]
    assert choose_queries(labels[:0], 12).shape == (0,)


def test_no_class_twice_while_there_are_others() -> None:
    labels = np.repeat(np.arange(8), 50)
    assert sorted(labels[choose_queries(labels, 8)].tolist()) == list(range(8))
    assert np.bincount(labels[choose_queries(labels, 16)]).tolist() == [2] * 8


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
