"""Keys that are set and do not apply to the rest of a config."""

from __future__ import annotations

from typing import Any

from hap2s_jax.errors import UserError, require
from hap2s_jax.run.config import Config
from hap2s_jax.settings import fields


def check(config: Config, is_frozen: bool, *, has_layers: bool) -> None:
    """Raises a UserError that names keys that are set but do not apply: to a frozen trunk, to one that is not frozen,
    or to one without layers.
    """
    if not (has_layers or config.optimizer.layer_decay == 1):
        raise UserError(
            f"optimizer.layer_decay applies to transformers, and not to {config.encoder.name}; set "
            "optimizer.trunk_factor, the rate of the whole trunk"
        )
    if not is_frozen:
        require(
            config.data.cached_views == 1,
            "data.cached_views",
            config.data.cached_views,
            "1 unless encoder.frozen is true, since without it every view is drawn anew",
        )
        return
    from hap2s_jax.data.augment import Augmentation

    unused = [f"evaluate.{view}" for view in ("flip", "five_crops", "zooms") if config.evaluate[view]]
    of_trunk = {"trunk_factor": 1, "layer_decay": 1, "head_steps": 0}
    unused += [f"optimizer.{key}" for key, value in of_trunk.items() if config.optimizer[key] != value]
    if unused:
        raise UserError(
            f"{', '.join(unused)}: no effect with a frozen encoder: only the head is trained, "
            "on one feature of an image; leave out"
        )
    changed = [f.name for f in fields(Augmentation) if not _same(config.augment[f.name], f.default)]
    if changed and config.data.cached_views == 1:
        keys = ", ".join(f"augment.{name}" for name in changed)
        raise UserError(
            f"{keys}: no effect with data.cached_views=1, the centre of each image; leave out, or give "
            "data.cached_views=4, say, for that many random views"
        )
    head = config.encoder
    if not (head.embedding_dim or head.bnneck or head.embedding_bn):
        raise UserError(
            "encoder.embedding_dim is 0, which leaves nothing to train of a frozen encoder; give the embedding's size, "
            "128 for example"
        )


def _same(value: Any, default: Any) -> bool:
    return list(value) == list(default) if isinstance(default, tuple) else value == default
