"""HAP2S on In-shop Clothes Retrieval (DeepFashion, Liu et al. 2016): 25,882 training images of 3,997 items.

    python -m hap2s_jax.main --config=configs/inshop.py --config.data.data_dir=DIR

DIR holds inshop/ with img/ and list_eval_partition.txt; `python -m hap2s_jax.check_data --name=inshop
--data_dir=DIR` tells whether it is found and whole. Judged by query against gallery, without cameras. 30,000
updates of 112 images.
The recipe stands in hap2s_jax/recipes/fine_grained.py; it starts from ImageNet's weights.
No figure of this config on the real data has been measured here.
"""

from __future__ import annotations

from hap2s_jax.recipes import fine_grained
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/fine_grained.py."""
    config = fine_grained.recipe("inshop", arg, steps=30_000, classes=28, images_per_class=4)
    config.checkpoint.best_metric = "mAP"
    return config
