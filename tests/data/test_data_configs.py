"""The configs of the data sets agree with the registry and with what they configure."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from hap2s_jax.data import registry
from hap2s_jax.data.augment import Augmentation

CONFIGS = (
    "market1501",
    "dukemtmc",
    "cuhk03",
    "msmt17",
    "cub",
    "cars196",
    "sop",
    "inshop",
    "folder",
    "hf",
    "veri776",
)


@pytest.mark.parametrize("arg", [None, "tiny", "loss=batch_hard"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_fits_its_data_set(name, arg):
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    entry = registry.entry(config.data.name)
    assert entry.options == dict(config.data.get("options", {}))
    Augmentation(**config.augment)
    assert config.loss.name == ("batch_hard" if arg and "loss" in arg else "hap2s_e")
    if arg == "tiny":
        assert config.steps < 10
    elif "classes" in entry.counts:
        left = min(np.ravel(entry.counts["classes"])) * (1 - config.data.validation_fraction)
        assert config.batch.classes <= left
    doc = importlib.import_module(f"configs.{name}").__doc__
    assert f"python -m hap2s_jax.main --config=configs/{name}.py --config.data.data_dir=" in doc


def test_every_data_set_of_the_registry_has_a_config():
    named = {importlib.import_module(f"configs.{name}").get_config().data.name for name in CONFIGS}
    assert named | {"emoji"} == set(registry.names())
