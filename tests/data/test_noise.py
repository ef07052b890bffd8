"""Noise touches what it says, records it, and depends on the seed alone."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest

from hap2s_jax.data.noise import flip_labels, swap_images
from hap2s_jax.errors import UserError


class Plain:
    cameras = None

    def __init__(self, count=400, classes=5, name="own"):
        self.name = name
        self.labels = (np.arange(count) % classes).astype(np.int32)
        self.class_names = tuple("abcdefgh"[:classes])

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        return f"{self.name} {index}".encode()

    def describe(self, index):
        return f"{self.name}/{index}"


def test_flipped_labels_are_wrong_and_recorded(tmp_path):
    clean = Plain()
    noisy, record = flip_labels(clean, 0.25, seed=3)
    changed = np.flatnonzero(noisy.labels != clean.labels)
    assert changed.tolist() == record.indices
    assert len(changed) == 100
    np.testing.assert_array_equal(clean.labels[changed], record.before)
    np.testing.assert_array_equal(noisy.labels[changed], record.after)
    assert clean.labels.tolist() == Plain().labels.tolist()  # the clean source stays clean
    assert noisy.read(7) == b"own 7"
    record.save(tmp_path / "noise.json")
    assert json.loads((tmp_path / "noise.json").read_text())["after"] == record.after


def test_flips_go_to_every_other_class_alike():
    _, record = flip_labels(Plain(8000, 4), 1.0, seed=0)
    moves = collections.Counter(zip(record.before, record.after, strict=True))
    assert len(moves) == 12
    assert min(moves.values()) > 550
    assert max(moves.values()) < 790


def test_more_noise_contains_less_noise_and_seeds_differ():
    touched = [set(flip_labels(Plain(), f, seed=1)[1].indices) for f in (0.0, 0.1, 0.3)]
    assert touched[0] < touched[1] < touched[2]
    assert flip_labels(Plain(), 0.1, seed=2)[1].indices != sorted(touched[1])
    assert flip_labels(Plain(), 0.1, seed=1)[1] == flip_labels(Plain(), 0.1, seed=1)[1]


def test_foreign_images_keep_the_label_and_come_once_each():
    own, foreign = Plain(), Plain(150, 2, "foreign")
    own.boxes = np.ones((400, 4), int)
    noisy, record = swap_images(own, foreign, 0.25, seed=3)
    np.testing.assert_array_equal(noisy.labels, own.labels)
    assert len(set(record.after)) == 100
    for index, place in zip(record.indices, record.after, strict=True):
        assert noisy.read(index) == f"foreign {place}".encode()
        assert noisy.describe(index) == f"foreign/{place}"
        assert not noisy.boxes[index].any()
    untouched = next(i for i in range(400) if i not in record.indices)
    assert noisy.read(untouched) == f"own {untouched}".encode()
    assert own.boxes.all()


def test_impossible_noise_is_refused():
    with pytest.raises(UserError, match=r"data.noise.fraction: must lie in \[0, 1\], found 1.5"):
        flip_labels(Plain(), 1.5, seed=0)
    with pytest.raises(UserError, match="at least two classes"):
        flip_labels(Plain(10, 1), 0.5, seed=0)
    with pytest.raises(UserError, match="no foreign images"):
        swap_images(Plain(), Plain(0), 0.5, seed=0)
