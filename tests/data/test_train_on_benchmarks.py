"""The configs of the benchmarks train and evaluate on data in their official layouts."""

from __future__ import annotations

import importlib

import pytest
import tensorflow_datasets as tfds
import trees

from hap2s_jax import main


def train(name, data_dir, workdir):
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.data.data_dir = str(data_dir)
    config.num_devices = 1
    config.compilation_cache = ""
    return main.run(config, workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cub", lambda root: trees.cub(root / "CUB_200_2011", classes=12, images=5)),
        ("market1501", lambda root: trees.market(root / "market1501", people=6)),
        ("folder", lambda root: trees.class_folders(root / "mine", classes=12)),
    ],
)
def test_a_config_runs_to_its_end(tmp_path, name, make):
    root = make(tmp_path)
    results = train(name, root, tmp_path / "run")
    assert results
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_cub_trains_on_mocked_tfds_data(tmp_path, monkeypatch):
    # The mock draws boxes whose corners may be swapped, and then refuses them.
    monkeypatch.setattr(tfds.features.BBoxFeature, "encode_example", lambda self, box: box)
    with tfds.testing.mock_data(num_examples=200):
        assert train("cub", tmp_path, tmp_path / "run")
