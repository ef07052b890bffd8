"""TensorFlow, silent on import and off the accelerators; import it from here."""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# TensorFlow loads Keras 3 too, which takes as long as all the rest, unless it is told to look for Keras 2 (tf_keras).
# Nothing here needs either, and `tf.keras` is still Keras 3 for who asks for it.
_KERAS = "TF_USE_LEGACY_KERAS"
_spares_keras = _KERAS not in os.environ and importlib.util.find_spec("tf_keras") is None
if _spares_keras:
    os.environ[_KERAS] = "1"

import tensorflow as tf  # noqa: E402

if _spares_keras:
    del os.environ[_KERAS]

# The accelerator belongs to JAX; TensorFlow would take its whole memory.
tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
