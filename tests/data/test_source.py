from __future__ import annotations

import numpy as np
import pytest

from hap2s_jax.data.source import Dataset, Source, Subset


class Letters:
    name = "letters"
    labels = np.array([0, 2, 1, 2, -1, 0], np.int32)
    cameras = np.array([0, 1, 0, 1, 2, 2], np.int32)
    class_names = ("a", "b", "c")

    def __len__(self) -> int:
        return 6

    def read(self, index: int) -> bytes:
        return b"image%d" % index

    def describe(self, index: int) -> str:
        return f"letters/{index}"


def test_subset_renumbers_the_labels_that_are_left():
    subset = Subset(Letters(), [5, 3, 1, 4])
    assert isinstance(subset, Source)
    np.testing.assert_array_equal(subset.labels, [0, 1, 1, -1])
    assert subset.cameras is not None
    np.testing.assert_array_equal(subset.cameras, [2, 1, 1, 2])
    assert subset.labels.dtype == subset.cameras.dtype == np.int32
    assert subset.class_names == ("a", "c")
    assert len(subset) == 4
    assert subset.read(1) == b"image3"
    assert subset.describe(3) == "letters/4"


def test_subset_keeps_the_labels_on_request():
    subset = Subset(Letters(), np.array([3, 5]), relabel=False, name="two")
    np.testing.assert_array_equal(subset.labels, [2, 0])
    assert subset.class_names == ("a", "b", "c")
    assert subset.name == "two"


def test_subset_of_a_subset_and_the_empty_one():
    subset = Subset(Subset(Letters(), [1, 3, 5]), [2, 0])
    np.testing.assert_array_equal(subset.labels, [0, 1])
    assert [subset.read(i) for i in range(2)] == [b"image5", b"image1"]
    assert len(Subset(Letters(), [])) == 0


@pytest.mark.parametrize("indices", [[6], [-1, 0]])
def test_subset_refuses_foreign_indices(indices):
    with pytest.raises(ValueError, match="indices"):
        Subset(Letters(), indices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": np.array([0])}, "together"),
        ({"query": np.array([0]), "gallery": np.array([6])}, "gallery"),
        ({"protocols": ("klass",)}, "protocols"),
        ({"protocols": ()}, "protocols"),
    ],
)
def test_dataset_refuses_what_no_evaluation_could_read(changes, message):
    with pytest.raises(ValueError, match=message):
        Dataset("letters", Letters(), None, Letters(), **changes)
