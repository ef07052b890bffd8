"""Loads a run's first weights from a file, the hub, or another run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hap2s_jax import extras
from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError
from hap2s_jax.models import pretrained
from hap2s_jax.run import config as configs
from hap2s_jax.run import foreign
from hap2s_jax.training.checkpoint import FOLDER, Checkpointer
from hap2s_jax.training.state import encoder_variables

# Most configs name weights of a hub; the message says how to train without it.
WITHOUT_HUB = (
    "(or --config.pretrained.source=FILE takes a file, the config's argument scratch starts at random)"
)


def load(
    source: str | os.PathLike[str],
    encoder: Any,
    variables: Mapping[str, Any],
    *,
    cache_dir: str | None = None,
    offline: bool = False,
) -> tuple[dict[str, Any], pretrained.Report]:
    """Fills an encoder's `variables` from `source`.

    Args:
      source: the working directory of a run, or any source that `models.pretrained.load` takes.
      encoder: the encoder of these variables.
      variables: as initialised, `{"params", "batch_stats"}`; not changed.
      cache_dir: where hub files are kept; None is huggingface_hub's own cache.
      offline: take hub files from the cache only.

    Returns:
      New variables, and a report of what was taken, dropped and left as initialised.

    Raises:
      UserError: in one line: nothing is there, it is damaged or foreign, or does not fit the encoder.
    """
    if not os.fspath(source).startswith(pretrained.HUB) and place(source).is_dir():
        return from_run(source, variables)
    return pretrained.load(source, encoder, variables, cache_dir=cache_dir, offline=offline)


def check_source(source: str, workdir: str | os.PathLike[str]) -> None:
    """Refuses to start a run whose weights come from the hub if huggingface_hub is not installed.

    A run that has a checkpoint already needs it no longer.

    Raises:
      UserError: it is not.
    """
    if source.startswith(pretrained.HUB) and not any((place(workdir) / FOLDER).glob("[0-9]*")):
        try:
            extras.require(f"pretrained.source={source}", "hub")
        except UserError as e:
            raise UserError(f"{e} {WITHOUT_HUB}") from None


def from_run(
    workdir: str | os.PathLike[str], variables: Mapping[str, Any]
) -> tuple[dict[str, Any], pretrained.Report]:
    """Fills `variables` with what the run in `workdir` would be judged by: the weights that `evaluate.weights`
    names, their moving average where it kept one. Head parameters that do not fit stay as initialised; see
    `pretrained.from_variables`.
    """
    path = place(workdir)
    config = foreign.load(path, with_data=False)
    if not (path / FOLDER).is_dir():
        raise UserError(f"pretrained {path} holds a run without a checkpoint yet")
    checkpointer = Checkpointer(path / FOLDER, read_only=True)
    try:
        with configs.written_by(path):
            which = config.evaluate.weights
        chosen = checkpointer.restore_whole(lambda: checkpointer.evaluated_step(which))
    finally:
        checkpointer.close()
    if chosen is None:
        raise UserError(f"pretrained {path} holds a run without a checkpoint yet")
    step, weights = chosen
    saved = encoder_variables(**weights)
    return pretrained.from_variables(saved, variables, source=f"{path}, step {step}")
