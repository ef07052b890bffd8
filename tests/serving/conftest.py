"""One working directory for the tests of serving: real data and code, weights that were drawn instead of trained."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax.data.source import Subset
from hap2s_jax.run import config as configs
from hap2s_jax.run.trainer import Trainer

ROOT = pathlib.Path(__file__).parents[2]


class Run(NamedTuple):
    workdir: pathlib.Path
    job: Trainer
    states: dict[int, Any]
    source: Subset  # a few of its test images


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Checkpoints 3 (the best) and 6 (the latest) of a run on the emoji data with a moving average."""
    sys.path.insert(0, str(ROOT))
    config = importlib.import_module("configs.emoji").get_config("tiny")
    # What these tests say of it must not change when the recipe does.
    config.data.image_size = (64, 64)
    config.encoder.update(name="resnet10", width=8, stem="small64", embedding_dim=128, hidden_dim=0)
    config.encoder.update(embedding_bn=True, normalize=True, bnneck=False)
    config.evaluate.update(distance="euclidean", five_crops=False, feature="retrieval")
    config.num_devices = 1
    config.ema_decay = 0.9
    config.evaluate.weights = "best"
    config.evaluate.batch_size = 32
    config.evaluate.enlarge = 1.1
    config.evaluate.keep_aspect = True
    config.evaluate.flip = True
    config.evaluate.zooms = True
    workdir = tmp_path_factory.mktemp("serving") / "run"
    workdir.mkdir()
    configs.save(config, workdir)
    job = Trainer.create(configs.load(workdir))
    state = job.initial_state()
    checkpointer = job.checkpointer(workdir)
    states = {}
    for step, quality in ((3, 0.9), (6, 0.2)):
        factor = 1 + step / 10
        states[step] = state.replace(
            step=jnp.int32(step),
            params=jax.tree.map(lambda x, f=factor: x * f + 0.01, state.params),
            ema_params=jax.tree.map(lambda x, f=factor: x * f - 0.01, state.ema_params),
            batch_stats=jax.tree.map(lambda x, f=factor: x + 0.1 * f, state.batch_stats),
        )
        checkpointer.save(states[step], {"mAP": quality})
    checkpointer.close()
    (workdir / "results.json").write_text(json.dumps({"weights_of_step": 3}))
    chosen = np.linspace(0, len(job.dataset.test) - 1, 45).astype(int)
    return Run(workdir, job, states, Subset(job.dataset.test, chosen, relabel=False))


@pytest.fixture(scope="session")
def reference(run):
    """What the training loop's own evaluation makes of `run.source` with checkpoint 3."""
    embeddings, present = run.job.embeddings(run.job.parallel.replicate(run.states[3]), run.source)
    assert present.all()
    return embeddings


@pytest.fixture(scope="session")
def folder(run, tmp_path_factory):
    """The images of `run.source` in a folder of a folder per class, and files that are no images among them."""
    root = tmp_path_factory.mktemp("images")
    paths = []
    for n in range(len(run.source)):
        path = root / f"class {run.source.labels[n]:04d}" / f"{n:03d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(run.source.read(n))
        paths.append(path)
    return root, paths
