"""HAP2S on Stanford Online Products (Song et al. 2016): 59,551 training images of 11,318 products.

    python -m hap2s_jax.main --config=configs/sop.py --config.data.data_dir=DIR

DIR holds Stanford_Online_Products/, or what `tfds build stanford_online_products` has prepared; `python -m
hap2s_jax.check_data --name=sop --data_dir=DIR` tells whether it is found and whole. 50,000 updates of 112
images; many products have only two pictures.
The recipe stands in hap2s_jax/recipes/fine_grained.py; it starts from ImageNet's weights.
No figure of this config on the real data has been measured here.
"""

from __future__ import annotations

from hap2s_jax.recipes import fine_grained
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/fine_grained.py."""
    return fine_grained.recipe("sop", arg, steps=50_000, classes=56, images_per_class=2)
