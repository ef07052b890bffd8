"""TensorFlow, silent on import and off the accelerators; import it from here."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

# The accelerator belongs to JAX; TensorFlow would take its whole memory.
tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
