"""HAP2S on your own images: a folder with a folder of images per class, or a CSV.

    python -m hap2s_jax.main --config=configs/folder.py --config.data.data_dir=FOLDER_OR_CSV

FOLDER holds CLASS/IMAGE.jpg, or train/CLASS/IMAGE.jpg and test/CLASS/IMAGE.jpg (or query/ and gallery/ in the place
of test/). The CSV has the columns path and label and, as wished, split (train, validation, test, query, gallery),
camera, and x1, y1, x2, y2 of a box. Where there is no split, --config.data.options.test_fraction of the classes are for
test. `python -m hap2s_jax.check_data --name=folder --data_dir=FOLDER_OR_CSV` shows what is there.

Classes of a batch, steps, warm-up, intervals, the share of the validation classes, and whether they are enough to
choose the best checkpoint by, follow the data unless they are given. Change what your images call for: the size,
--config.augment.flip (never for what its mirror image is not), the encoder. The weights start from ImageNet's; at
random with configs/folder.py:scratch.

    python -m hap2s_jax.main --config=configs/folder.py:dinov2 --config.data.data_dir=FOLDER_OR_CSV

freezes DINOv2's ViT-S/14: each photo goes through it once, a few a second on two cores, and a new layer is trained
on its features in a minute or two. The last table has DINOv2's own figures too. All of this recipe is ours.
"""

from __future__ import annotations

import ml_collections
from ml_collections import config_dict

from hap2s_jax.data import registry
from hap2s_jax.recipes import fine_grained
from hap2s_jax.run.config import Config

# What hap2s_jax.run.settle chooses by the data where it is not given.
OPEN = (
    ("", "steps"),
    ("batch", "classes"),
    ("schedule", "warmup_steps"),
    ("evaluate", "every_steps"),
    ("checkpoint", "every_steps"),
    ("evaluate", "weights"),
    ("data", "validation_fraction"),
)


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see hap2s_jax/recipes/fine_grained.py."""
    config = fine_grained.recipe("folder", arg, steps=8_000, classes=16, images_per_class=4)
    config.optimizer.learning_rate = 3e-4
    # Nobody knows how far these images are from ImageNet's: let batch normalisation follow them.
    config.encoder.freeze_bn_stats = False
    if "-dinov2" in config.name:
        fine_grained.freeze(config)
    config.schedule.name = "cosine"
    config.data.options = ml_collections.ConfigDict(registry.entry("folder").options)
    if not config.name.endswith("-tiny"):
        for section, key in OPEN:
            place = config[section] if section else config
            kind = type(place[key])
            del place[key]
            place[key] = config_dict.placeholder(kind)
    return config
