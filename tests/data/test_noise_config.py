"""Noise as a run has it: chosen by config, on the training images alone, recorded in the workdir."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import trees

from hap2s_jax import main
from hap2s_jax.data import noise
from hap2s_jax.errors import UserError
from hap2s_jax.run import run as flow
from hap2s_jax.run.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("own") / "mine"
    trees.class_folders(root, classes=12)
    return root


def config(folder, **changes):
    config = importlib.import_module("configs.folder").get_config("tiny")
    config.data.data_dir = str(folder)
    config.num_devices = 1
    config.compilation_cache = ""
    config.update_from_flattened_dict({f"data.noise.{key}": value for key, value in changes.items()})
    return config.lock()


def test_without_noise_there_is_no_record(folder):
    assert Trainer.create(config(folder)).noise is None


def test_flipped_labels_are_those_of_the_record_and_nowhere_else(folder):
    clean = Trainer.create(config(folder)).dataset
    job = Trainer.create(config(folder, kind="labels", fraction=0.4, seed=5))
    record = job.noise
    assert record is not None
    changed = np.flatnonzero(job.dataset.train.labels != clean.train.labels)
    assert changed.tolist() == record.indices
    assert len(changed) == round(0.4 * len(clean.train))
    names = job.dataset.train.class_names
    for index, image, before, after in zip(
        record.indices, record.images, record.before_names, record.after_names, strict=True
    ):
        assert image == clean.train.describe(index)
        assert f"/{before}/" in image
        assert after == names[job.dataset.train.labels[index]] != before
    assert clean.validation is not None
    assert job.dataset.validation is not None
    np.testing.assert_array_equal(job.dataset.validation.labels, clean.validation.labels)
    np.testing.assert_array_equal(job.dataset.test.labels, clean.test.labels)
    # Another seed, other images; the run's own seed decides nothing about them.
    other = Trainer.create(config(folder, kind="labels", fraction=0.4, seed=6)).noise
    assert other is not None
    assert other.indices != record.indices


def test_foreign_images_come_from_the_data_set_that_is_named(folder):
    job = Trainer.create(config(folder, kind="images", fraction=0.25))
    record = job.noise
    assert record is not None
    assert record.kind == "images"
    for index, origin in zip(record.indices, record.after_names, strict=True):
        assert job.dataset.train.describe(index) == origin
        assert str(folder) not in origin
        assert job.dataset.train.read(index).startswith(b"\x89PNG")  # as the emoji are


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "label", "fraction": 0.1}, "data.noise.kind.* 'label'; did you mean 'labels'"),
        ({"fraction": 0.1}, "data.noise.kind: must be one of labels, images for a fraction of 0.1"),
        ({"kind": "labels", "fraction": -0.5}, r"data.noise.fraction is -0.5; it should be between 0 and 1"),
        ({"kind": "images", "fraction": 0.1, "foreign": "folder"}, "data.noise.foreign: must be another"),
        ({"kind": "images", "fraction": 0.1, "foreign": "emojis"}, "did you mean 'emoji'"),
    ],
)
def test_a_mistake_is_named(folder, changes, message):
    with pytest.raises(UserError, match=message):
        Trainer.create(config(folder, **changes))


def test_the_record_lies_in_the_workdir_before_training_begins(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "_train_and_report", lambda *args: {})
    main.run(config(folder, kind="labels", fraction=0.2), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / noise.FILE_NAME).read_text())
    assert saved["kind"] == "labels"
    assert len(saved["indices"]) == len(saved["after_names"]) > 0
    record = noise.NoiseRecord(**saved)
    assert f"{len(saved['indices'])} training labels flipped (20.0%, seed 0)" in record.describe()
