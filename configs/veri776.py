"""HAP2S on VeRi-776 (Liu et al. 2016): 37,778 training images of 576 vehicles, twenty cameras.

    python -m hap2s_jax.main --config=configs/veri776.py --config.data.data_dir=DIR

DIR holds VeRi/ with image_train/, image_query/ and image_test/; `python -m hap2s_jax.check_data --name=veri776
--data_dir=DIR` tells whether it is found and whole. The recipe is that of people, on 256x256 pixels. Others, as
configs/veri776.py:bot, stand in hap2s_jax/recipes/reid.py; all start from ImageNet's weights. No figure of this config
on the real data has been measured here.
"""

from __future__ import annotations

from hap2s_jax.recipes import reid
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/reid.py."""
    config = reid.recipe("veri776", arg)
    if not config.name.endswith("-tiny"):
        config.data.image_size = (256, 256)
    return config
