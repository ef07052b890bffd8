"""HAP2S on Cars196 (Krause et al. 2013): classes 1-98 to train on, 99-196 to test.

    python -m hap2s_jax.main --config=configs/cars196.py --config.data.data_dir=DIR

DIR holds cars196/ with car_ims/ and cars_annos.mat, or with cars_train/, cars_test/ and devkit/; or what
`tfds build cars196` has prepared; `python -m hap2s_jax.check_data --name=cars196 --data_dir=DIR` tells
whether it is found and whole. --config.data.options.boxes=true cuts every image to its car (from the official
folder only). 8,000 updates of 112 images.
The recipe stands in hap2s_jax/recipes/fine_grained.py; it starts from ImageNet's weights.
No figure of this config on the real data has been measured here.
"""

from __future__ import annotations

import ml_collections

from hap2s_jax.recipes import fine_grained
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/fine_grained.py."""
    config = fine_grained.recipe("cars196", arg, steps=8_000, classes=56, images_per_class=2)
    config.data.options = ml_collections.ConfigDict({"boxes": False})
    return config
