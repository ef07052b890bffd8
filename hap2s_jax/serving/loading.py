"""Opens a trained encoder from the working directory of a run alone."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from hap2s_jax import extras, models
from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError, reason
from hap2s_jax.models import own
from hap2s_jax.models.pretrained import HUB
from hap2s_jax.run import config as configs
from hap2s_jax.run import foreign
from hap2s_jax.serving import hub
from hap2s_jax.serving.trained import TrainedEncoder
from hap2s_jax.training import arrays
from hap2s_jax.training.checkpoint import FOLDER, Checkpointer
from hap2s_jax.training.state import encoder_variables

PyTree = Any


def load(
    workdir: str | os.PathLike[str],
    *,
    checkpoint: str | int | None = None,
    average: bool | None = None,
    own_code: bool = False,
    strict: bool = False,
) -> TrainedEncoder:
    """Loads the trained encoder of a run.

    The working directory is enough: no data set, no config file, no TensorFlow. It may have been copied from another
    machine. Nothing in it is ever unpickled, and nothing is written.

    Args:
      workdir: the working directory of a run, or a model on the Hugging Face hub, "hf://user/model" (extra "hub").
      checkpoint: "best" (on the validation classes), "latest", or the number of a step; by default the one that the
        run's own results are of.
      average: whether to take the moving average of the weights; by default where the run kept one, as its own
        evaluation does.
      own_code: whether the code that the run's config names as its encoder, `package.module:Class`, may be imported
        and run. Classes of flax modules that the program has imported already always may.
      strict: whether a damaged checkpoint is an error. Otherwise, unless its step was named, it is left out with a
        warning, and the newest whole one is loaded.

    Raises:
      UserError: in one line, if there is no finished checkpoint, or it is damaged or of a newer version.
    """
    extras.require("hap2s_jax.load", "use")
    if not isinstance(workdir, str | os.PathLike):
        raise UserError(f"workdir is {workdir!r}; it should be the path of a run's working directory")
    path = hub.fetch(str(workdir)) if str(workdir).startswith(HUB) else place(workdir).absolute()
    config: Any = foreign.load(path, with_data=False)
    with configs.written_by(path):
        if ":" in config.encoder.name and not own_code:
            own.check_consent(config.encoder.name)
    if not any(f.is_dir() and f.name.isdigit() for f in (path / FOLDER).glob("*")):
        raise UserError(
            f"{workdir} holds no finished checkpoint; train on with hap2s_jax.main, or copy {FOLDER} whole"
        )
    with _quiet(), configs.written_by(path):
        checkpointer = Checkpointer(path / FOLDER, read_only=True, strict=strict)
        checkpointer.begin(_choose_step(checkpointer, checkpoint, config))
        module, wanted = described(config, path)
        if checkpoint in (None, "latest"):
            chosen = checkpointer.restore_whole(lambda: _choose_step(checkpointer, checkpoint, config))
            assert chosen
            step, weights = chosen
        else:
            step = _choose_step(checkpointer, checkpoint, config)
            weights = checkpointer.restore_weights(step)
        checkpointer.close()
    if average and weights["ema_params"] is None:
        raise UserError(f"average: the run in {workdir} kept no moving average of its weights; leave it out")
    has_average = weights["ema_params"] is not None and average is not False
    variables = encoder_variables(**(weights if has_average else weights | {"ema_params": None}))
    with configs.written_by(path):
        arrays.check_fits(variables, wanted, path / FOLDER / str(step))
        return TrainedEncoder(config, step, has_average, module, variables, path)


def described(config: Any, path: pathlib.Path) -> tuple[Any, PyTree]:
    """The module that a config describes, and the shapes and dtypes of its variables.

    Raises:
      UserError: a value in the config of the run in `path` makes no encoder.
    """
    settings, size = dict(config.encoder), (1, *config.data.image_size, 3)
    try:
        module = models.create(**settings)
        init = functools.partial(module.init, train=False)
        return module, jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(size, np.uint8))
    except UserError:
        raise
    except Exception as error:  # flax and JAX may raise anything
        if ":" in settings["name"]:  # the user's own code
            raise
        file = path / configs.FILE_NAME
        raise UserError(f"cannot build an encoder from {file}: {reason(error)}") from error


def _choose_step(checkpointer: Checkpointer, wanted: str | int | None, config: Any) -> int:
    if wanted is None:
        step = checkpointer.evaluated_step(config.evaluate.weights)
        if step is None:
            raise UserError("no checkpoint is whole yet; train on with hap2s_jax.main")
        return step
    if wanted == "latest" and checkpointer.latest_step is not None:
        return checkpointer.latest_step
    if wanted == "best":
        if (step := checkpointer.best_step) is not None:
            return step
        raise UserError(
            "checkpoint: the run was never measured on validation classes, so none is the best; ask for 'latest'"
        )
    if isinstance(wanted, str) and not (wanted.isdecimal() and len(wanted) < 19):
        raise UserError(
            f"checkpoint is {wanted!r}; it must be 'best', 'latest' or one of {checkpointer.steps}"
        )
    return int(wanted)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses orbax's warnings that a manager opened read-only is read-only."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
