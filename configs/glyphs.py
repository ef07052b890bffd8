"""HAP2S on characters drawn by eleven families of free fonts, a second real data set that a CPU learns in minutes.

    pip install -e ".[train,study]" && python experiments/glyphs.py     # builds it in data/glyphs
    python -m hap2s_jax.main --config=configs/glyphs.py

The characters of the test set are never seen in training, and a match counts only across families. Raw pixels reach a
cross-family mAP of 0.138. The recipe is that of configs/emoji.py without quarter turns, the metric loss alone.
"""

from __future__ import annotations

import ml_collections

from configs import emoji
from hap2s_jax.run.config import Config


def get_config(arg: str | None = None) -> Config:
    """The config; for `arg` see configs/emoji.py, with ``identification=false`` as it is here anyway."""
    config = emoji.get_config(",".join(filter(None, ("identification=false", arg))))
    config.name = config.name.replace("emoji", "glyphs")
    config.data.name = "folder"
    config.data.data_dir = "data/glyphs/glyphs.csv"
    config.data.options = ml_collections.ConfigDict({"test_fraction": 0.5})
    # Many characters turned are another character, or look like one: N and Z, b and q, the arrows.
    config.data.quarter_turns = False
    return config
