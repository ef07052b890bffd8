"""HAP2S on DukeMTMC-reID (Zheng et al. 2017): 16,522 training images of 702 people, eight cameras.

    python -m hap2s_jax.main --config=configs/dukemtmc.py --config.data.data_dir=DIR

DIR holds DukeMTMC-reID/; `python -m hap2s_jax.check_data --name=dukemtmc --data_dir=DIR` tells whether it is
found and whole. The makers withdrew the data in 2019. The default recipe makes 25,000 updates of 72 images.
Other recipes, as configs/dukemtmc.py:bot, stand in hap2s_jax/recipes/reid.py; all start from ImageNet's
weights. No figure of this config on the real data has been measured here.
"""

from __future__ import annotations

from hap2s_jax.recipes import reid
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/reid.py."""
    return reid.recipe("dukemtmc", arg)
