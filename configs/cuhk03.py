"""HAP2S on CUHK03 (Li et al. 2014), by default its new protocol (Zhong et al. 2017): 767 people to train on.

    python -m hap2s_jax.main --config=configs/cuhk03.py --config.data.data_dir=DIR

DIR holds cuhk03_release/ with cuhk-03.mat and cuhk03_new_protocol_config_{detected,labeled}.mat, or the ready
folders cuhk03-np/{labeled,detected}/; `python -m hap2s_jax.check_data --name=cuhk03 --data_dir=DIR` tells
whether it is found and whole. Another part or protocol with --config.data.options.detection=labeled,
--config.data.options.protocol=old and --config.data.options.split=0 (to 19).
Other recipes, as configs/cuhk03.py:bot, stand in hap2s_jax/recipes/reid.py; all start from ImageNet's
weights. No figure of this config on the real data has been measured here.
"""

from __future__ import annotations

import ml_collections

from hap2s_jax.recipes import reid
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/reid.py."""
    config = reid.recipe("cuhk03", arg)
    config.data.options = ml_collections.ConfigDict({"detection": "detected", "protocol": "new", "split": 0})
    return config
