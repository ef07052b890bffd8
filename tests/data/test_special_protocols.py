"""A run judges each data set by the protocols that it is known for, and validation classes by the plain ones."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import trees

from hap2s_jax.run.trainer import Trainer


def market(root):
    trees.market(root, people=6)
    for person in (3, 5, 7, 9, 11, 13):
        for number in range(2):
            trees.put(root / "gt_bbox" / f"{person:04d}_c1s1_00000{number}_00.jpg")


@pytest.mark.parametrize(
    ("name", "make", "options", "special"),
    [
        ("market1501", market, {"multi_query": True}, "multi_query_mAP"),
        (
            "cuhk03",
            lambda root: trees.cuhk03_mat(root, people=(6, 4)),
            {"protocol": "old", "detection": "labeled"},
            "single_gallery_shot_rank-1",
        ),
        ("inshop", lambda root: trees.inshop(root), {}, "in_shop_recall@1"),
    ],
)
def test_the_figures_of_a_data_set(tmp_path, name, make, options, special):
    make(tmp_path / "data")
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.data.data_dir = str(tmp_path / "data")
    config.num_devices = 1
    config.batch.classes = 2
    config.data.validation_fraction = 0.0
    for key, value in options.items():
        config.data.options[key] = value
    job = Trainer.create(config.lock())
    test = job.dataset.test
    # Every image at its class's own place: everything is found.
    perfect = np.eye(len(test.class_names), dtype=np.float32)[test.labels]
    figures = job.measure(perfect, np.ones(len(test), bool), test)
    assert figures[special] == 1
    assert figures["mAP"] == figures["rank-1"] == 1
    train = job.dataset.train
    plain = job.measure(
        np.eye(len(train.class_names), dtype=np.float32)[train.labels], np.ones(len(train), bool), train
    )
    assert "mAP" in plain
    assert special not in plain
