"""The TFDS builders of the benchmarks: prepared data gives what the folder itself gives."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow_datasets as tfds
import trees

from hap2s_jax.data import datasets
from hap2s_jax.data.builders import official
from hap2s_jax.errors import UserError

SETS = {
    "market1501": ("market1501", trees.market, {}),
    "dukemtmc": ("DukeMTMC-reID", trees.market, {}),
    "msmt17": ("MSMT17_V1", trees.msmt17, {}),
    "cuhk03/detected": ("cuhk03_release", trees.cuhk03_mat, {"detection": "detected"}),
    "inshop": ("inshop", trees.inshop, {}),
}


def images(source, rows):
    """What retrieval sees, whatever the order: label, camera, pixels."""
    cameras = np.zeros(len(source), int) if source.cameras is None else source.cameras
    pixels = [np.asarray(trees.Image.open(trees.io.BytesIO(source.read(i)))).tobytes() for i in rows]
    return sorted(zip(source.labels[rows].tolist(), cameras[rows].tolist(), pixels, strict=True))


def prepare(builder, folder):
    config = tfds.download.DownloadConfig(manual_dir=str(folder))
    builder.download_and_prepare(download_config=config)


@pytest.mark.parametrize("name", SETS)
def test_prepared_data_equals_the_folder(tmp_path, name):
    folder, make, options = SETS[name]
    make(tmp_path / "manual" / folder)
    # Half of the sets in either format.
    file_format = "array_record" if len(name) % 2 else "tfrecord"
    builder = tfds.builder(name, data_dir=str(tmp_path / "prepared"), file_format=file_format)
    prepare(builder, tmp_path / "manual")
    load = {"name": builder.name, "validation_fraction": 0.0, **options}
    one = datasets.load(**load, data_dir=tmp_path / "manual")
    other = datasets.load(**load, data_dir=tmp_path / "prepared")
    assert type(one.train) is not type(other.train)
    assert one.protocols == other.protocols
    assert (one.test.cameras is None) == (other.test.cameras is None) == (name == "inshop")
    for rows in ("query", "gallery"):
        assert images(one.test, getattr(one, rows)) == images(other.test, getattr(other, rows))
    assert images(one.train, np.arange(len(one.train))) == images(other.train, np.arange(len(other.train)))
    assert builder.info.citation


def test_missing_data_says_what_to_get(tmp_path):
    trees.put(tmp_path / "manual" / "something else.jpg")
    with pytest.raises(UserError, match=r"Market-1501 was not found below .*manual; get it from"):
        prepare(official.Market1501(data_dir=str(tmp_path / "prepared")), tmp_path / "manual")


def test_an_interrupted_preparation_is_not_taken_for_whole(tmp_path, monkeypatch):
    trees.market(tmp_path / "manual" / "market1501")
    whole = official._examples

    def interrupted(source, indices, offset):
        for number, example in enumerate(whole(source, indices, offset)):
            if number == 3 and "test" in source.name:
                raise KeyboardInterrupt
            yield example

    with monkeypatch.context() as patch:
        patch.setattr(official, "_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(official.Market1501(data_dir=str(tmp_path / "out")), tmp_path / "manual")
    with pytest.raises(UserError, match="was not found"):
        datasets.load("market1501", data_dir=tmp_path / "out")
    prepare(official.Market1501(data_dir=str(tmp_path / "out")), tmp_path / "manual")
    assert len(datasets.load("market1501", data_dir=tmp_path / "out", validation_fraction=0).test) == 19
