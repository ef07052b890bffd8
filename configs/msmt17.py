"""HAP2S on MSMT17 (Wei et al. 2018), V1 or V2: training images of 1,041 people, fifteen cameras.

    python -m hap2s_jax.main --config=configs/msmt17.py --config.data.data_dir=DIR

DIR holds MSMT17_V1/ or MSMT17_V2/; `python -m hap2s_jax.check_data --name=msmt17 --data_dir=DIR` tells
whether it is found and whole. The images of list_val.txt join the training images with
--config.data.options.with_val=true.
Other recipes, as configs/msmt17.py:bot, stand in hap2s_jax/recipes/reid.py; all start from ImageNet's
weights. No figure of this config on the real data has been measured here.
"""

from __future__ import annotations

import ml_collections

from hap2s_jax.recipes import reid
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/reid.py."""
    config = reid.recipe("msmt17", arg)
    config.data.options = ml_collections.ConfigDict({"with_val": False})
    return config
