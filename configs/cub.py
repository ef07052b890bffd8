"""HAP2S on CUB-200-2011 (Wah et al. 2011): classes 1-100 to train on, 101-200 to test.

    python -m hap2s_jax.main --config=configs/cub.py --config.data.data_dir=DIR

DIR holds CUB_200_2011/, or what `tfds build caltech_birds2011` has prepared in either file format; `python -m
hap2s_jax.check_data --name=cub --data_dir=DIR` tells whether it is found and whole. TFDS's own train and test
split every class; they are joined and split again by class. --config.data.options.boxes=true cuts every image
to its bird (from the official folder only). 8,000 updates of 112 images.
The recipe stands in hap2s_jax/recipes/fine_grained.py; it starts from ImageNet's weights, and configs/cub.py:dinov2
from DINOv2's, layer by layer at its own rate.
No figure of this config on the real data has been measured here.
"""

from __future__ import annotations

import ml_collections

from hap2s_jax.recipes import fine_grained
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/fine_grained.py."""
    config = fine_grained.recipe("cub200_2011", arg, steps=8_000, classes=56, images_per_class=2)
    config.data.options = ml_collections.ConfigDict({"boxes": False})
    return config
