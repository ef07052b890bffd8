from __future__ import annotations

import numpy as np
import pytest

from hap2s_jax.data import emoji
from hap2s_jax.data.emoji.baseline import decode

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra train is not installed")


@pytest.mark.slow
def test_tfds_holds_what_load_gives(tmp_path):
    import hap2s_jax.data.builders  # registers the builder

    assert hap2s_jax.data.builders.Emoji.name == "emoji"
    loaded, info = tfds.load("emoji", data_dir=tmp_path, with_info=True)
    assert "NOTICE" in info.redistribution_info.license
    data = emoji.load()
    names = info.features["label"].names
    for split, source in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        assert source is not None
        examples = {e["id"].decode(): e for e in tfds.as_numpy(loaded[split])}
        assert len(examples) == info.splits[split].num_examples == len(source)
        ours = decode(source)
        for i in range(len(source)):
            example = examples[source.describe(i).removeprefix("emoji.zip:")]
            np.testing.assert_array_equal(example["image"], ours[i])
            assert example["camera"] == source.cameras[i]
            name = source.class_names[source.labels[i]]
            assert example["class_name"].decode() == name
            assert names[example["label"]] == name
