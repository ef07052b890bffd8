"""Closed and open splits of one's own images, and images of nobody known."""

from __future__ import annotations

import numpy as np
import pytest

from hap2s_jax.data import datasets, duplicates
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation import evaluate


def _read(tmp_path, rows, **options):
    """Rows are (identity, split) of images of their own, in a table as wildlife-datasets writes it."""
    lines = [
        f"{n},{n:04x},{who},images/{n}.jpg,2019-06-0{n % 9 + 1},{split}\n"
        for n, (who, split) in enumerate(rows)
    ]
    (tmp_path / "metadata.csv").write_text(",image_id,identity,path,date,split\n" + "".join(lines))
    options = {"validation_fraction": 0, **options}
    return datasets.load("folder", data_dir=tmp_path / "metadata.csv", **options)


def _part(data, rows):
    return [data.test.class_names[label] for label in data.test.labels[rows]]


CLOSED = [(who, part) for who in "abcdef" for part in ("train", "train", "train", "test")]
NOBODY = [("unknown", ""), ("Unknown", ""), ("unknown", "test"), ("unknown", "train")]


def test_a_closed_split_asks_the_training_images(tmp_path):
    data = _read(tmp_path, CLOSED)
    assert data.protocols == ("closed_set",)
    assert _part(data, data.query) == list("abcdef")
    assert _part(data, data.gallery) == [who for who in "abcdef" for _ in range(3)]
    assert data.train.labels.tolist() == np.repeat(np.arange(6), 3).tolist()
    remark = data.remarks[-1]  # before it: the images are not there
    assert remark == (
        "6 of the 6 test classes have training or validation images too: a closed split, so each test image asks "
        "those 18 (protocol closed_set; data.options.split=disjoint judges otherwise)"
    )
    # Validation classes, which are not trained on, still ask one another.
    assert _read(tmp_path, CLOSED, validation_fraction=0.4).validation_protocols == ("class",)
    disjoint = _read(tmp_path, CLOSED, split="disjoint")
    assert (disjoint.query, disjoint.protocols, len(disjoint.test)) == (None, ("class",), 6)


def test_an_open_split_and_nobody_s_images_are_left_out_or_asked(tmp_path):
    rows = [*CLOSED, *NOBODY, ("new", "test"), ("new", "test")]
    left_out = _read(tmp_path, rows)
    assert left_out.protocols == ("closed_set",)
    assert _part(left_out, left_out.query) == list("abcdef")
    assert "unknown" not in left_out.train.class_names
    assert any("4 images are of an unknown individual" in line for line in left_out.remarks)
    assert "6 of the 7 test classes" in left_out.remarks[-1]
    assert "an open split" in left_out.remarks[-1]
    assert "2 images of the other classes are left out" in left_out.remarks[-1]
    asked = _read(tmp_path, rows, unknown="open_set")
    assert asked.protocols == ("closed_set", "open_set")
    assert sorted(_part(asked, asked.query)) == sorted(
        [*"abcdef", "new", "new", "unknown", "Unknown", "unknown"]
    )
    assert len(asked.gallery) == 18
    kept = _read(tmp_path, [*CLOSED, ("unknown", "train"), ("unknown", "test")], unknown="class")
    assert "unknown" in kept.train.class_names


def test_database_and_query_are_splits(tmp_path):
    rows = [(who, part) for who in "abcdef" for part in ("database", "database", "query")] + [
        ("new_individual", "query")
    ]
    data = _read(tmp_path, rows, unknown="open_set")
    assert len(data.train) == len(data.gallery) == 12
    assert len(data.query) == 7
    assert data.protocols == ("class", "query_gallery", "closed_set", "open_set")
    with_train = [*rows[:-1], *((who, "train") for who in "ghij" for _ in range(2))]
    unseen = _read(tmp_path, with_train)
    assert unseen.protocols == ("class", "query_gallery")  # classes that training has not seen
    assert len(unseen.train) == 8


def test_what_cannot_be_judged_is_one_line(tmp_path):
    with pytest.raises(UserError, match="needs a part named train"):
        _read(tmp_path, [("a", "train"), ("a", "")])
    with pytest.raises(UserError, match=r"data\.options\.unknown: must be one of junk, open_set, class"):
        _read(tmp_path, CLOSED, unknown="drop")
    rest = _read(tmp_path, [*CLOSED, ("a", ""), ("b", "")])
    assert "2 images name no split and are left out, such as images/24.jpg" in rest.remarks


def test_training_images_in_the_database_are_no_duplicates(tmp_path):
    data = _read(tmp_path, CLOSED)
    (tmp_path / "images").mkdir()
    for n in range(len(CLOSED)):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(bytes([n]))
    assert not list(duplicates.find(data).lines())
    (tmp_path / "images" / "3.jpg").write_bytes(b"\0")  # the first test image, which training has too
    assert "1 images are in training" in "".join(duplicates.find(data).lines())


def test_closed_set_figures_by_hand():
    # On a line: databases of a at 0 and 1, of b at 10, of c at 20; queries as named.
    x = np.array([[0], [1], [10], [20], [0.2], [8], [4], [13], [16]], float)
    labels = np.array([0, 0, 1, 2, 0, 0, 0, 1, 2])
    found = evaluate(x, labels, query=np.arange(4, 9), gallery=np.arange(4), protocols=("closed_set",))
    # Right: 0.2, 4, 13 and 16; 8 is nearest to b, then come a, a.
    assert found["closed_set_top-1"] == found["closed_set_accuracy"] == pytest.approx(4 / 5)
    assert found["closed_set_balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert found["closed_set_mAP"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2 + 1 + 1 + 1) / 5)


def test_test_images_ask_a_gallery_and_no_part_is_passed_over(tmp_path):
    rows = [(who, "train") for who in "aabb"] + [
        (who, part) for who in "cd" for part in ("test", "test", "gallery")
    ]
    data = _read(tmp_path, rows)
    assert (len(data.train), _part(data, data.query), _part(data, data.gallery)) == (4, [*"ccdd"], [*"cd"])
    with pytest.raises(UserError, match="a part named test and one named query; name both query"):
        _read(tmp_path, [*rows, ("d", "query")])
