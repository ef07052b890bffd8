"""Writes TensorFlow's SavedModel; here, since only this package imports TensorFlow."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from hap2s_jax.data.tf.quiet import tf
from hap2s_jax.reporting.atomic import cannot_write


def save(
    function: Callable[[Any], Any],
    path: pathlib.Path,
    shape: tuple[int | None, int, int, int],
    check: Callable[[pathlib.Path], None],
) -> None:
    """Saves ``function: uint8 [b, h, w, 3] -> [b, d]`` to the folder `path`, whole or not at all.

    Args:
      function: made by jax2tf.
      path: an older folder there is replaced.
      shape: of the images; b is None for any number.
      check: called with the folder before it gets its name; nothing is left there if it raises.

    Raises:
      UserError: the folder cannot be written.
    """
    module: Any = tf.Module()
    signature = [tf.TensorSpec(list(shape), tf.uint8, name="images")]
    module.__call__ = tf.function(function, autograph=False, input_signature=signature)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        tf.saved_model.save(
            module, str(partial), signatures={"serving_default": _named(module.__call__, signature)}
        )
        check(partial)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(path: pathlib.Path) -> Callable[[Any], Any]:
    """The saved function, on NumPy arrays."""
    module: Any = tf.saved_model.load(str(path))
    return lambda images: module(tf.constant(images)).numpy()


def _named(function: Callable[[Any], Any], signature: list[Any]) -> Any:
    """Wraps the function for servers, which want named outputs."""
    return tf.function(
        lambda images: {"embeddings": function(images)}, autograph=False, input_signature=signature
    )
