"""TFDS builders of what TFDS lacks. Importing this package registers them, so that `tfds.load` knows their names."""

from hap2s_jax.data.builders.emoji import Emoji
from hap2s_jax.data.builders.official import CUHK03, MSMT17, DukeMTMC, InShop, Market1501

__all__ = ["CUHK03", "MSMT17", "DukeMTMC", "Emoji", "InShop", "Market1501"]
