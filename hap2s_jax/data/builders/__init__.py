"""TFDS builders of what TFDS lacks. Importing this package registers them, so that `tfds.load` knows their names."""

from hap2s_jax.data.builders.emoji import Emoji

__all__ = ["Emoji"]
