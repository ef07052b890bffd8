"""Inputs that people really have: CSV files of seventeen kinds are read and trained on."""

from __future__ import annotations

import csv
import importlib
import io

import numpy as np
import pytest
import trees

from hap2s_jax import main
from hap2s_jax.data import duplicates
from hap2s_jax.data.augment import Augmentation
from hap2s_jax.data.batches import Reading, train_batches
from hap2s_jax.data.pk import PKPlan
from hap2s_jax.errors import UserError
from hap2s_jax.run import evaluator
from hap2s_jax.run.settle import settle

CLASSES, IMAGES = 12, 4
PLAIN, CAMERA = ["path", "label", "split"], ["path", "label", "split", "camera"]
# (path, class, number of the class, number of the image)
WHOLE = [(f"img/{c:02d}/{k}.png", f"class {c:02d}", c, k) for c in range(CLASSES) for k in range(IMAGES)]
TRAIN, TEST = WHOLE[: len(WHOLE) // 2], WHOLE[len(WHOLE) // 2 :]


def split(image):
    return "query" if image[3] == 0 else "gallery"


def seen_by(test_camera, train_camera=lambda image: image[3]):
    rows = [(i[0], i[1], "train", train_camera(i)) for i in TRAIN]
    return rows + [(i[0], i[1], split(i), test_camera(i)) for i in TEST]


LISTED = [(i[0], i[1], "train") for i in TRAIN] + [(i[0], i[1], "test") for i in TEST]
# Header, rows, how they are written, and what is said of them; None: nothing.
CASES = {
    "one_camera": (CAMERA, seen_by(lambda i: 0, lambda i: 0), {}, "all test images are of one camera"),
    "a_camera_per_person": (CAMERA, seen_by(lambda i: i[2]), {}, "6 of 6 queries have no valid match"),
    "queries_not_in_gallery": (
        CAMERA,
        [(i[0], i[1], "train", i[3]) for i in TRAIN]
        + [(i[0], i[1], "query" if i[2] < 9 else "gallery", i[3]) for i in TEST],
        {},
        "12 of 12 queries have no valid match, so nothing can be measured: 12 have no other image of their class",
    ),
    "camera_names": (CAMERA, seen_by(lambda i: f"cam0{i[3]}", lambda i: f"cam0{i[3]}"), {}, None),
    "camera_sometimes_empty": (
        CAMERA,
        [(i[0], i[1], "train", "") for i in TRAIN] + [(i[0], i[1], "test", i[3]) for i in TEST],
        {},
        None,
    ),
    "semicolons": (PLAIN, LISTED, {"delimiter": ";"}, None),
    "bom_crlf": (PLAIN, LISTED, {"encoding": "utf-8-sig", "end": "\r\n"}, None),
    "utf16": (PLAIN, LISTED, {"encoding": "utf-16"}, None),
    "blank_lines": (PLAIN, [*LISTED[:20], (), *LISTED[20:], ()], {}, None),
    "backslashes": (PLAIN, [(p.replace("/", "\\"), c, s) for p, c, s in LISTED], {}, None),
    "identity_and_path": (
        ["image_id", "identity", "path", "split"],
        [(n, c, p, s) for n, (p, c, s) in enumerate(LISTED)],
        {},
        None,
    ),
    "classes_in_both": (
        PLAIN,
        [(p, c, "train" if k < 2 else "test") for p, c, _, k in WHOLE],
        {},
        "12 of the 12 test classes have training or validation images too",
    ),
    "missing_file": (
        PLAIN,
        [*LISTED, ("img/none.png", "class 00", "train")],
        {},
        "1 of 49 images are not there, such as img/none.png",
    ),
    "one_image_a_class": (
        PLAIN,
        [row for row, i in zip(LISTED, WHOLE, strict=True) if i[3] == 0 or i[2] >= CLASSES // 2],
        {},
        "no training class has two images",
    ),
    "one_test_image_a_class": (
        PLAIN,
        [row for row, i in zip(LISTED, WHOLE, strict=True) if i[3] == 0 or i[2] < CLASSES // 2],
        {},
        "class: 6 of 6 queries have no valid match, so nothing can be measured: 6 are alone in their class",
    ),
    "listed_twice": (PLAIN, LISTED[:9] + LISTED, {}, None),
    "two_labels": (PLAIN, [*LISTED, (WHOLE[0][0], "class 02", "train")], {}, None),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    for path, _, c, k in WHOLE:
        trees.put(folder / path, trees.encoded(trees.picture(10 * c + k, 64, 64), "PNG"))
    return folder


def tiny(root, name):
    """The config of a folder for the CSV of this case, which is written."""
    head, rows, how, _ = CASES[name]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=how.get("delimiter", ","), lineterminator=how.get("end", "\n"))
    writer.writerow(head)
    writer.writerows(rows)
    path = root / f"{name}.csv"
    path.write_bytes(text.getvalue().encode(how.get("encoding", "utf-8")))
    config = importlib.import_module("configs.folder").get_config("tiny,scratch")
    config.data.data_dir = str(path)
    config.batch.classes, config.num_devices = 3, 1
    if name == "identity_and_path":
        config.data.options.columns = "label=identity"
    return config


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_csv_gives_batches_and_a_remark_where_something_is_wrong(root, name, tmp_path):
    config = tiny(root, name)
    settle(config, tmp_path)
    dataset = evaluator.load_dataset(config)
    expected = CASES[name][3]
    assert any(expected in remark for remark in dataset.remarks) if expected else not dataset.remarks
    plan = PKPlan(dataset.train.labels, classes_per_batch=3, images_per_class=4, seed=0)
    reading = Reading((32, 32), decoding=evaluator.decoding(config), num_workers=1, cache_bytes=0)
    batches = train_batches(dataset.train, plan, reading, augmentation=Augmentation(**config.augment), seed=0)
    if name == "missing_file":
        with pytest.raises(UserError, match=r"cannot read the image .*img/none.png: .*on_unreadable=skip"):
            [next(batches) for _ in range(50)]
        return
    batch = next(batches)
    assert batch["image"].shape == (12, 32, 32, 3)
    assert np.bincount(batch["label"]).tolist().count(4) == 3
    if name == "camera_names":
        assert dataset.test.cameras.tolist() == [0] * 6 + [1, 2, 3] * 6
    if name == "camera_sometimes_empty":
        assert (dataset.train.cameras, dataset.test.cameras.tolist()) == (None, [0, 1, 2, 3] * 6)
    lines = list(duplicates.find(dataset).lines())
    assert any("listed more than once" in line for line in lines) == (name == "listed_twice")
    assert any("more than one label" in line for line in lines) == (name == "two_labels")


def test_a_run_on_one_of_them_says_at_its_end_what_could_not_be_measured(root, tmp_path, capsys):
    config = tiny(root, "a_camera_per_person")
    config.encoder.width, config.encoder.stem, config.data.image_size = 4, "small32", (32, 32)
    config.steps, config.evaluate.untrained, config.log.tensorboard = 2, False, False
    results = main.run(config, tmp_path / "run")
    printed = capsys.readouterr().out
    for word in ("warning: ", "note: "):  # before anything is trained, and beside the figures
        assert (
            f"{word}query_gallery: 6 of 6 queries have no valid match, so nothing can be measured" in printed
        )
    assert results["test"]["mAP"] is None
    assert results["test"]["recall@1"] is not None
    assert "raw pixels" in printed
    assert f"open model_card.md, retrievals.png and curves.png in {tmp_path / 'run'}" in printed
    assert f"next: python -m hap2s_jax.embed --workdir={tmp_path / 'run'} --images=FOLDER" in printed
