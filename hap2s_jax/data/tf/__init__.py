"""Everything that needs TensorFlow; with `hap2s_jax.data.builders` the only importers of TensorFlow and TFDS."""

from __future__ import annotations

import importlib.util
import os

# How many complete batches wait to be taken.
AHEAD = 2


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed; nothing is loaded."""
    return importlib.util.find_spec("tensorflow") is not None


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is for TensorFlow's file systems, such as gs://bucket/folder."""
    return "://" in os.fspath(path)
