"""Encoders by name."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike

from hap2s_jax.errors import UserError, did_you_mean
from hap2s_jax.models import own
from hap2s_jax.models.encoder import EmbeddingHead, Encoder
from hap2s_jax.models.pooling import POOLINGS, Pooling
from hap2s_jax.models.resnet import ARCHITECTURES, STEMS, ResNet
from hap2s_jax.models.vit import POOLINGS as POOLINGS_OF_TOKENS
from hap2s_jax.models.vit import TokenPooling, ViT
from hap2s_jax.models.vit_families import VITS

DTYPES = ("float32", "bfloat16", "float16", "float64")

# Options and their defaults stand at the part that has them.
_TRUNK, _VIT_TRUNK, _HEAD = (
    {f.name: f.default for f in dataclasses.fields(part) if f.name not in ("architecture", "parent", "name")}
    for part in (ResNet, ViT, EmbeddingHead)
)
_OPTIONS = _TRUNK | {"pooling": Pooling.kind, "frozen": False} | _HEAD
_VIT_OPTIONS = _VIT_TRUNK | {"pooling": "gap", "frozen": False} | _HEAD


def names() -> tuple[str, ...]:
    """The names that `create` knows, sorted."""
    return tuple(sorted([*ARCHITECTURES, *VITS]))


def create(name: str, **options: Any) -> nn.Module:
    """Makes the encoder called `name`.

    Its `init(key, images)` gives `{"params", "batch_stats"}`, its `apply(variables, images, train)` an
    `EncoderOutput`; in training pass `mutable=["batch_stats"]`.

    Args:
      name: one of `names()`, or "package.module:Class" for your own (see `own.create`, which takes the options
        that your class names).
      **options: `pooling`, the kind of `Pooling`, and the attributes of `ResNet` and `EmbeddingHead`: `width` (None
        is 64, the published one), `stem` ("imagenet", "small64", "small32"), `last_stride`, `zero_init_residual`,
        `freeze_bn_stats`, `freeze_bn_affine`, `remat_stages`, `embedding_dim`, `hidden_dim`, `embedding_bn`,
        `normalize`, `bnneck`, `num_classes`, `axis_name` (of both), `frozen` of `Encoder`, and `dtype`, also as a
        string. Transformers have `frozen_blocks`, `remat` and `drop_path` of `ViT`, and the poolings "cls", "gap",
        "cls+gap" and, SigLIP, "attention".

    Raises:
      UserError: an unknown name or option, or a value that the option does not take; the message has the
        nearest right one.
    """
    if not isinstance(name, str):
        raise UserError(f"the model's name is {name!r}; it should be text, such as 'resnet50'")
    if ":" in name:
        return own.create(name, options, _VIT_OPTIONS | _OPTIONS)
    if name in VITS:
        return _create_vit(name, options)
    if name not in ARCHITECTURES:
        raise UserError(f"Unknown model {name!r}{did_you_mean(name, names())}; known: {', '.join(names())}.")
    options = _known(name, options, _OPTIONS, _VIT_TRUNK)
    if options.get("width", 0) is None:
        options.pop("width")
    if "remat_stages" in options:
        options["remat_stages"] = tuple(options["remat_stages"])
    options = _OPTIONS | options
    _check(options, ARCHITECTURES[name].group_width)
    return Encoder(
        trunk=ResNet(ARCHITECTURES[name], **{key: options[key] for key in _TRUNK}),
        pooling=Pooling(options["pooling"]),
        head=EmbeddingHead(**{key: options[key] for key in _HEAD}),
        frozen=options["frozen"],
    )


def _create_vit(name: str, options: dict[str, Any]) -> Encoder:
    architecture = VITS[name]
    options = _VIT_OPTIONS | _known(name, options, _VIT_OPTIONS, _TRUNK)
    kind = options["pooling"]
    has_token = architecture.family.class_token
    unused = [key for key in ("frozen_blocks", "remat", "drop_path") if options["frozen"] and options[key]]
    if unused:
        raise UserError(f"model options {', '.join(unused)}: no effect with a frozen encoder; leave out.")
    _choose("pooling", kind, POOLINGS_OF_TOKENS if has_token else ("gap", "attention"))
    _check_numbers(options, {"frozen_blocks": 0})
    rate = options["drop_path"]
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise UserError(f"model option drop_path is {rate!r}; it must be at least 0 and below 1.")
    if options["frozen_blocks"] > architecture.depth:
        raise UserError(
            f"model option frozen_blocks is {options['frozen_blocks']}; {name} has {architecture.depth} blocks."
        )
    mean, std = (tuple(255 * value for value in values) for values in architecture.family.statistics)
    return Encoder(
        trunk=ViT(architecture, **{key: options[key] for key in _VIT_TRUNK}),
        pooling=TokenPooling(architecture, kind),
        head=EmbeddingHead(**{key: options[key] for key in _HEAD}),
        frozen=options["frozen"],
        mean=mean,
        std=std,
    )


def _known(
    name: str, options: Mapping[str, Any], known: Mapping[str, Any], others: Mapping[str, Any]
) -> dict[str, Any]:
    """The options that this kind of model has; those of the other kind must stand at their defaults."""
    kept = {}
    for key, value in options.items():
        if key in known:
            kept[key] = value
        elif key not in others:
            raise UserError(
                f"Unknown model option {key!r}{did_you_mean(key, known)}; known: {', '.join(known)}."
            )
        elif value is not None and value != others[key] and (value or others[key]):
            raise UserError(
                f"model option {key} does not apply to {name}; those that do: {', '.join(known)}."
            )
    for key, value in kept.items():
        if isinstance(known[key], bool):
            _choose(key, value, (True, False))
    if (dtype := kept.get("dtype")) is not None:
        with contextlib.suppress(TypeError):  # it has then no name of those to choose from
            kept["dtype"] = jnp.dtype(dtype)
        _choose("dtype", getattr(kept["dtype"], "name", dtype), DTYPES)
    return kept


def initialize(model: nn.Module, key: jax.Array, images: ArrayLike) -> dict[str, Any]:
    """Fresh variables `{"params", "batch_stats"}` of `model`, drawn from `key`.

    The same as `jax.jit(model.init)(key, images)` up to rounding, but on CPU XLA compiles it without optimisation: the
    random draws of a ResNet's many kernels take minutes to optimise and a moment to run.

    Args:
      model: an encoder.
      key: a JAX random key.
      images: `[n, h, w, 3]` of the size to come; one image will do.
    """
    if jax.default_backend() != "cpu":  # elsewhere compiling is quick, and the option may not be known
        return jax.jit(model.init)(key, images)
    compiled = jax.jit(model.init).lower(key, images)
    return compiled.compile(compiler_options={"xla_backend_optimization_level": "0"})(key, images)


def _check(options: Mapping[str, Any], group_width: int) -> None:
    _choose("stem", options["stem"], STEMS)
    _choose("pooling", options["pooling"], POOLINGS)
    _choose("last_stride", options["last_stride"], (1, 2))
    for stage in options["remat_stages"]:
        _choose("remat_stages", stage, (1, 2, 3, 4))
    _check_numbers(options, {"width": 1})
    if options["width"] * group_width < 64:
        raise UserError(
            f"model option width is {options['width']}; this architecture's groups need at least "
            f"{-(-64 // group_width)}."
        )


def _check_numbers(options: Mapping[str, Any], smallest: Mapping[str, int]) -> None:
    for key, least in {**smallest, "embedding_dim": 0, "hidden_dim": 0, "num_classes": 0}.items():
        value = options[key]
        if not isinstance(value, int) or value < least:
            raise UserError(
                f"model option {key} is {value!r}; it must be a whole number of at least {least}."
            )
    if options["hidden_dim"] and not options["embedding_dim"]:
        raise UserError("model option hidden_dim needs an embedding_dim above 0 to follow it.")


def _choose(key: str, value: object, choices: Iterable[object]) -> None:
    known = list(choices)
    if value not in known:
        nearest = did_you_mean(value, known) if isinstance(value, str) else ""
        raise UserError(
            f"model option {key} is {value!r}{nearest}; choose one of {', '.join(map(str, known))}."
        )
