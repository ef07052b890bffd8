"""HAP2S on a data set of the Hugging Face hub, or on folders and parquet files of its formats.

    pip install -e ".[train,hub,hf]"
    python -m hap2s_jax.main --config=configs/hf.py --config.data.options.path=OWNER/NAME
    python -m hap2s_jax.main --config=configs/hf.py --config.data.data_dir=FOLDER --config.data.options.columns=label=id

The recipe is that of configs/folder.py. Splits called train, validation, test, query and gallery are the parts; others
are named by --config.data.options.splits, as test=validation, or all=train+test to split all classes anew. A lone split
is divided by class. No set of the hub has been tried: those that the tests write are all that was at hand.
"""

from __future__ import annotations

import ml_collections

from configs import folder
from hap2s_jax.data import registry
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/fine_grained.py."""
    config = folder.get_config(arg)
    config.name = config.name.replace("folder", "hf")
    config.data.name = "hf"
    config.data.options = ml_collections.ConfigDict(registry.entry("hf").options)
    return config
