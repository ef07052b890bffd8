"""Encoders that are not ours: any flax module, named as "package.module:Class"."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hap2s_jax.errors import UserError
from hap2s_jax.models.encoder import EncoderOutput


class OwnEncoder(nn.Module):
    """Makes an `EncoderOutput` of whatever embeddings a module returns.

    Attributes:
      module: any linen module called as `module(images, train)` with images `[n, h, w, 3]`, uint8 or floating in
        [0, 255], that returns embeddings `[n, d]` or an `EncoderOutput`.
    """

    module: nn.Module

    @property
    def frozen_parameters(self) -> tuple[str, ...]:
        """Regular expressions of the parameters' paths that no optimiser may touch: what the module itself names."""
        return tuple(f"module/{path}" for path in getattr(self.module, "frozen_parameters", ()))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> EncoderOutput:
        """Encodes `images` `[n, h, w, 3]`.

        Raises:
          TypeError: the module returns something else than embeddings `[n, d]` or an `EncoderOutput`.
        """
        output = self.module(images, train)
        if isinstance(output, EncoderOutput):
            return output
        if getattr(output, "ndim", None) != 2 or output.shape[0] != images.shape[0]:
            found = getattr(output, "shape", type(output).__name__)
            raise TypeError(
                f"{type(self.module).__name__} returned {found}; an encoder returns embeddings [n, d]."
            )
        embedding = jnp.asarray(output, jnp.promote_types(output.dtype, jnp.float32))
        return EncoderOutput(embedding=embedding, features=embedding)


def check_consent(name: str) -> None:
    """Raises a UserError unless `name`, which somebody else's config gives, is that of a linen module's class that the
    program has imported already. To import a module, or to call a function with the arguments of that config, might do
    anything.
    """
    module_name, _, attribute = name.partition(":")
    module = sys.modules.get(module_name)
    # Not getattr, at which a module may import what it has not imported yet.
    found = None if module is None else vars(module).get(attribute)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        what = "is code that would have to be imported" if module is None else "is no class of flax modules"
        raise UserError(
            f"the encoder {name!r} {what}, and to run it may do anything; if you trust the run, give --own_code "
            "(own_code=True in Python)"
        )


def _named(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, ValueError) as e:
        raise UserError(f"model {name!r}: cannot import {module_name!r} ({e}); is it on PYTHONPATH?") from e
    except AttributeError as e:
        raise UserError(f"model {name!r}: {module_name} has no {attribute!r}.") from e


def create(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> OwnEncoder:
    """Makes an encoder of the class, or of the function that returns a module, called `name`.

    Args:
      name: "package.module:Class", importable from where the program runs.
      options: handed over by name, those that the class takes. `axis_name` may be left out of the class: then its
        batch statistics, if it has any, are not synchronised.
      defaults: an option that the class does not take is dropped in silence if it has this value.

    Raises:
      UserError: the module or class is not there, is no linen module, or does not take an option that was set.
    """
    made_by = _named(name)
    if not callable(made_by):
        raise UserError(
            f"model {name!r} is a {type(made_by).__name__}; name a class or function that makes a module."
        )
    parameters = inspect.signature(made_by).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    taken = {}
    for key, value in options.items():
        if takes_all or key in parameters:
            taken[key] = value
        elif key != "axis_name" and not (key in defaults and value in (None, defaults[key])):
            raise UserError(
                f"model {name!r} takes no option {key!r}; it takes {', '.join(parameters) or 'none'}."
            )
    module = made_by(**taken)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"model {name!r} makes a {type(module).__module__}.{type(module).__name__}, not a flax.linen module; "
            "wrap an nnx module in flax.nnx.bridge.to_linen."
        )
    return OwnEncoder(module)
