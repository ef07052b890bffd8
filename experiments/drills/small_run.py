"""A working directory of a small encoder whose weights are drawn, made once for a process of a drill."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import tempfile
from typing import Any

SIZE = 32


@functools.cache
def workdir() -> pathlib.Path:
    """A run with checkpoints of steps 3 and 6, the latter the best."""
    import jax

    from hap2s_jax.run import config as configs
    from hap2s_jax.run.learner import Learner
    from hap2s_jax.training.checkpoint import FOLDER, Checkpointer

    folder = pathlib.Path(tempfile.mkdtemp(prefix="drill_run_"))
    config = settings()
    configs.save(config, folder)
    state = Learner.create(config).initial_state(8)
    checkpointer = Checkpointer(folder / FOLDER, best_metric="mAP")
    for step in (3, 6):
        moved = jax.tree.map(lambda x, s=step: x + 0.01 * s, state.params)
        checkpointer.save(
            dataclasses.replace(state, step=jax.numpy.int32(step), params=moved), {"mAP": step / 10}
        )
    checkpointer.close()
    (folder / "results.json").write_text(json.dumps({"weights_of_step": 6}))
    return folder


def settings() -> Any:
    """The config of that run."""
    from hap2s_jax.recipes import common

    config = common.get_config()
    config.name = "drill"
    config.data.name = "emoji"
    config.data.image_size = (SIZE, SIZE)
    config.encoder.update(name="resnet10", width=8, stem="small32", embedding_dim=8)
    config.num_devices = 1
    return config


@functools.cache
def encoder() -> Any:
    """The encoder of `workdir`."""
    import hap2s_jax

    return hap2s_jax.load(workdir())


def images(folder: pathlib.Path, count: int = 12, classes: int = 3) -> list[pathlib.Path]:
    """Drawn pictures in folders of a class each."""
    import numpy as np

    from hap2s_jax.data.pixels import encode_png

    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        path = folder / f"class{number % classes}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(random.integers(0, 256, (24, 24, 3)).astype(np.uint8)))
        paths.append(path)
    return paths
