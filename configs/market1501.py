"""HAP2S on Market-1501 (Zheng et al. 2015): 12,936 training images of 751 people, six cameras.

    python -m hap2s_jax.main --config=configs/market1501.py --config.data.data_dir=DIR

DIR holds market1501/Market-1501-v15.09.15/ or one of its usual names; `python -m hap2s_jax.check_data
--name=market1501 --data_dir=DIR` tells whether it is found and whole. The default recipe makes 25,000 updates of 72
images. Judged by single-query mAP and CMC, same-camera images of the query's person removed; with
--config.data.options.multi_query=true also by queries pooled from gt_bbox/.
Other recipes, as configs/market1501.py:bot, or :vit with a transformer, stand in hap2s_jax/recipes/reid.py; all start
from ImageNet's weights. No figure of this config on the real data has been measured here.
"""

from __future__ import annotations

import ml_collections

from hap2s_jax.recipes import reid
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/reid.py."""
    config = reid.recipe("market1501", arg)
    config.data.options = ml_collections.ConfigDict({"multi_query": False})
    return config
