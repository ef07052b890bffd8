"""HAP2S on Market-1501 (Zheng et al. 2015): 12,936 training images of 751 people, six cameras.

    python -m hap2s_jax.main --config=configs/market1501.py --config.data.data_dir=DIR

DIR holds market1501/Market-1501-v15.09.15/ or one of its usual names; `python -m hap2s_jax.check_data
--name=market1501 --data_dir=DIR` tells whether it is found and whole. 25,000 updates of 72 images. Judged by
single-query mAP and CMC, same-camera images of the query's person removed.
The weights start at random. No figure of this config on the real data has been measured here.
"""

from __future__ import annotations

from configs import reid
from hap2s_jax.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see configs/reid.py."""
    return reid.recipe("market1501", arg)
