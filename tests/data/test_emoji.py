"""The shipped emoji set: that it is clean, that its split is fair, and that its baseline is what it says."""

from __future__ import annotations

import csv
import io
import itertools
import zipfile
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from experiments.emoji_build.curate import near_pairs
from experiments.emoji_build.names import CAMERA_OF_SET, read_table
from hap2s_jax.data import emoji
from hap2s_jax.data.emoji.baseline import decode, figures_of_query, pixel_baseline
from hap2s_jax.data.source import Source
from hap2s_jax.evaluation.protocols import evaluate


@pytest.fixture(scope="module")
def everything() -> emoji.EmojiSource:
    return emoji.EmojiSource()


@pytest.fixture(scope="module")
def pixels(everything) -> np.ndarray:
    return decode(everything)


def by(everything, column) -> dict[str, list[dict[str, str]]]:
    groups = defaultdict(list)
    for row in everything.rows:
        groups[row[column]].append(row)
    return groups


# Counts and shapes.


def test_counts():
    data = emoji.load()
    assert data.validation is not None
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    counts = {name: (len(part), len(part.class_names)) for name, part in parts.items()}
    assert counts == {"train": (2739, 482), "validation": (313, 53), "test": (3011, 531)}


def test_index_and_archive_agree(everything):
    with zipfile.ZipFile(emoji.FOLDER / emoji.ARCHIVE) as archive:
        assert [row["file"] for row in everything.rows] == archive.namelist()
        assert archive.testzip() is None
    with open(emoji.FOLDER / emoji.INDEX, encoding="utf-8", newline="") as file:
        assert tuple(next(csv.reader(file))) == emoji.INDEX_FIELDS
    for row in everything.rows:
        assert row["file"] == f"{row['class']}/{row['set']}.{row['icon']}.png"
        assert row["camera"] == CAMERA_OF_SET[row["set"]]
    assert sorted(CAMERA_OF_SET.values()) == sorted([*emoji.CAMERAS, "google"])


def test_images_are_64_by_64_png(everything, pixels):
    assert pixels.shape == (len(everything), 64, 64, 3)
    for i in range(0, len(everything), 500):
        assert Image.open(io.BytesIO(everything.read(i))).format == "PNG"
        assert everything.describe(i) == f"emoji.zip:{everything.rows[i]['file']}"


def test_the_package_stays_small():
    assert (emoji.FOLDER / emoji.ARCHIVE).stat().st_size < 11e6


# Cleanliness.


def test_no_two_classes_are_alike_in_any_set(everything, pixels):
    for name, rows in by(everything, "set").items():
        members = [i for i, row in enumerate(everything.rows) if row["set"] == name]
        assert len(members) == len(rows)
        near = near_pairs(pixels[members], 2.0)
        assert not [(rows[i]["file"], rows[j]["file"], d) for i, j, d in near]


def test_drawings_of_a_class_differ(everything, pixels):
    for label, name in enumerate(everything.class_names):
        members = pixels[everything.labels == label].astype(np.float64)
        least = min(np.abs(a - b).mean() for a, b in itertools.combinations(members, 2))
        assert least >= 10, name


def test_no_drawing_is_used_twice(everything, pixels):
    assert len({image.tobytes() for image in pixels}) == len(pixels)
    assert len({(row["set"], row["icon"]) for row in everything.rows}) == len(everything)


def test_classes_have_four_images_from_three_cameras_and_one_of_each_set(everything):
    for name, rows in by(everything, "class").items():
        assert len(rows) >= 4, name
        assert len({row["camera"] for row in rows}) >= 3, name
        assert len({row["set"] for row in rows}) == len(rows), name


def test_reviewed_exceptions_are_carried_out(everything):
    drawings = {(row["set"], row["icon"]) for row in everything.rows}
    for row in read_table("exceptions.csv"):
        assert (row["set"], row["name"]) not in drawings
        if row["kind"] != "drop_drawing":
            assert row["name"] not in everything.class_names
    assert {row["target"] for row in read_table("exceptions.csv")} - {""} <= set(everything.class_names)


def test_no_drawing_is_all_but_blank(everything, pixels):
    ink = (255 - pixels.astype(np.float32)).mean((1, 2, 3))
    assert ink.min() >= 3, everything.rows[int(ink.argmin())]["file"]


# The split.


def test_no_family_stands_on_both_sides(everything):
    for family, rows in by(everything, "family").items():
        assert len({row["split"] for row in rows}) == 1, family
    for name, rows in by(everything, "class").items():
        assert len({row["family"] for row in rows}) == 1, name


def test_families_and_splits_are_the_reviewed_ones(everything):
    family_of = {row["class"]: row["family"] for row in read_table("families.csv")}
    split_of = {row["family"]: row["split"] for row in read_table("splits.csv")}
    assert set(family_of) == set(everything.class_names)
    for row in everything.rows:
        assert row["family"] == family_of[row["class"]]
        assert row["split"] == split_of[row["family"]]


def test_near_look_alikes_share_a_family(everything, pixels):
    """Drawings of one set that differ by under 6 grey levels never stand on two sides, as training or test."""
    for name in CAMERA_OF_SET:
        members = [i for i, row in enumerate(everything.rows) if row["set"] == name]
        for i, j, difference in near_pairs(pixels[members], 6.0):
            one, two = everything.rows[members[i]], everything.rows[members[j]]
            assert one["family"] == two["family"], (one["file"], two["file"], difference)


def test_half_the_classes_train_and_a_tenth_of_these_validate(everything):
    classes = Counter(rows[0]["split"] for rows in by(everything, "class").values())
    training = classes["train"] + classes["validation"]
    assert training / classes.total() == pytest.approx(0.5, abs=0.01)
    assert classes["validation"] / training == pytest.approx(0.1, abs=0.01)


# Loading.


def test_load_gives_sources_with_labels_in_sorted_order():
    data = emoji.load()
    assert data.query is None
    assert data.gallery is None
    assert data.protocols == ("class", "query_gallery")
    assert data.baselines == {"raw pixels": emoji.PIXEL_BASELINE}
    assert data.validation is not None
    names = []
    for part in (data.train, data.validation, data.test):
        assert isinstance(part, Source)
        assert part.cameras is not None
        assert part.labels.dtype == part.cameras.dtype == np.int32
        assert sorted(set(part.labels.tolist())) == list(range(len(part.class_names)))
        assert set(part.cameras.tolist()) == set(range(5))
        assert list(part.class_names) == sorted(part.class_names)
        member = part.describe(7).removeprefix("emoji.zip:")
        assert member.startswith(part.class_names[part.labels[7]] + "/")
        with zipfile.ZipFile(emoji.FOLDER / emoji.ARCHIVE) as archive:
            assert archive.read(member) == part.read(7)
        names += part.class_names
    assert len(set(names)) == len(names), "no class in two parts"


def test_validation_classes_may_join_training():
    apart, joined = emoji.load(), emoji.load(validation=False)
    assert joined.validation is None
    assert apart.validation is not None
    assert len(joined.train) == len(apart.train) + len(apart.validation)
    assert set(joined.train.class_names) == {*apart.train.class_names, *apart.validation.class_names}
    assert joined.test.class_names == apart.test.class_names


# The baseline.


def test_figures_of_a_query_by_hand():
    #                      other  mine   mine   other  mine   (nearest first)
    distances = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    same_class = np.array([False, True, True, False, True])
    same_camera = np.array([True, True, False, False, False])
    figures = figures_of_query(distances, same_class, same_camera)
    assert figures["recall@1"] == 0
    assert figures["recall@2"] == 1
    assert figures["r_precision"] == pytest.approx(2 / 3)
    assert figures["map@r"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    # Without the match of the same camera: other, mine, other, mine.
    assert figures["rank-1"] == 0
    assert figures["rank-5"] == 1
    assert figures["mAP"] == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_ties_count_against_the_query():
    figures = figures_of_query(np.zeros(3), np.array([True, False, False]), np.zeros(3, bool))
    assert figures["recall@2"] == 0
    assert figures["mAP"] == pytest.approx(1 / 3)
    nothing = figures_of_query(np.ones(2), np.zeros(2, bool), np.zeros(2, bool))
    assert nothing["recall@1"] == 0
    assert np.isnan(nothing["mAP"])


@pytest.mark.slow
def test_the_pinned_baseline_is_what_pixels_reach(everything, pixels):
    rows = [i for i, split in enumerate(everything.splits) if split == "test"]
    figures = pixel_baseline(pixels[rows], everything.labels[rows], everything.cameras[rows])
    assert set(figures) == set(emoji.PIXEL_BASELINE)
    for name, value in emoji.PIXEL_BASELINE.items():
        assert round(figures[name], 3) == value, (name, figures[name])


@pytest.mark.slow
def test_the_evaluation_of_this_package_finds_the_same(everything, pixels):
    rows = np.array([i for i, split in enumerate(everything.splits) if split == "test"])
    small = pixels[rows].reshape(len(rows), -1).astype(np.float32) / 255
    figures = evaluate(
        small,
        everything.labels[rows],
        everything.cameras[rows],
        protocols=("class", "query_gallery"),
        cluster=False,
    )
    for name, value in emoji.PIXEL_BASELINE.items():
        assert abs(figures[name] - value) < 1e-3, (name, figures[name])
