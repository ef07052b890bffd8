"""HAP2S on photographs of nyala, an antelope told apart by its stripes: train on some animals, find others.

    git clone --depth=1 https://github.com/tvanzyl/wildlife_reidentification data/wildlife
    python -m hap2s_jax.main --config=configs/nyala.py
    python experiments/generality.py --dataset=nyala
    python -m hap2s_jax.main --config=configs/nyala.py:lion        # lions; half of the 75 are for test

1,213 images of 179 animals are for training, 729 of 58 others for test (van Zyl et al.); the images are not part of
this project. The recipe is configs/folder.py's, from ImageNet's weights; `nyala:scratch` begins at random, which is
hard on so few images, `nyala:dinov2` trains a new layer on frozen DINOv2.
"""

from __future__ import annotations

from configs import folder
from hap2s_jax.run.config import Config

_FOLDERS = {"nyala": "data/wildlife/Nyala_Data_Zero", "lion": "data/wildlife/Lion_Data_Zero/train"}


def get_config(arg: str | None = None) -> Config:
    """The config.

    Args:
      arg: comma-separated: ``lion`` for the lions, and what configs/folder.py takes.
    """
    words = [word for word in (arg or "").split(",") if word]
    name = "lion" if "lion" in words else "nyala"
    config = folder.get_config(",".join(word for word in words if word != "lion") or None)
    config.name = config.name.replace("folder", name)
    config.data.data_dir = _FOLDERS[name]
    if name == "lion":
        config.data.options.test_fraction = 0.5
    if not config.name.endswith("-tiny"):
        # What configs/folder.py leaves to the data, for the studies take a config as it stands.
        config.steps, config.schedule.warmup_steps = 2000, 100
        config.batch.classes = 16
        config.evaluate.every_steps = config.checkpoint.every_steps = 500
        config.evaluate.weights, config.data.validation_fraction = "last", 0.0
    # Animals have another pattern on either side.
    config.augment.flip = False
    return config
