"""What a config's keys make of the training step, read off its shapes and operations without compiling it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from hap2s_jax.data import emoji
from hap2s_jax.distributed.devices import AXIS
from hap2s_jax.errors import UserError
from hap2s_jax.run.learner import Learner
from hap2s_jax.run.schema import check
from hap2s_jax.run.trainer import check_best_metric

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def traced(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))

    def trace(**changes):
        """Shapes of state and metrics after a step, and the step's operations as text."""
        config = importlib.import_module("configs.emoji").get_config("tiny")
        config.update_from_flattened_dict(changes)
        program = Learner.create(config)
        state = program.abstract_state(482)
        batch = {
            "image": jax.ShapeDtypeStruct((1, 32, 64, 64, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((1, 32), jnp.int32),
        }
        step = jax.vmap(program.train_step, in_axes=(None, 0), out_axes=None, axis_name=AXIS)
        operations, (after, metrics) = jax.make_jaxpr(step, return_shape=True)(state, batch)
        return state, after, metrics, str(operations)

    return trace


def _dtypes(tree):
    return {x.dtype.name for x in jax.tree.leaves(tree)}


def test_bfloat16_computes_and_everything_that_lasts_is_float32(traced):
    state, after, metrics, operations = traced(**{"encoder.dtype": "bfloat16"})
    for part in (state, after):
        assert _dtypes((part.params, part.batch_stats)) == {"float32"}
    assert _dtypes(metrics) == {"float32"}
    convolutions = [line for line in operations.splitlines() if "conv_general_dilated" in line]
    assert convolutions
    assert all("bf16" in line for line in convolutions)
    # The distances and what follows stay in float32.
    assert "f32[1,32,32]" in operations or "f32[32,32]" in operations
    assert "bf16[1,32,32]" not in operations
    assert "bf16[32,32]" not in operations


def test_rematerialisation_and_pieces_change_the_program_and_not_the_state(traced):
    state, _, _, plain = traced()
    remat_state, _, _, remat = traced(**{"encoder.remat_stages": (1, 2)})
    pieces_state, _, _, pieces = traced(**{"batch.pieces": 4})
    # What jax.checkpoint's operation is called has changed before.
    assert any(word in remat and word not in plain for word in ("remat", "checkpoint"))
    assert re.search(r"u8\[(1,)?4,(1,)?8,64,64,3\]", pieces)
    assert not re.search(r"u8\[(1,)?4,(1,)?8,64,64,3\]", plain)
    assert jax.tree.structure(state) == jax.tree.structure(remat_state) == jax.tree.structure(pieces_state)
    for other in (remat_state, pieces_state):
        assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, state, other))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("log.every_steps", 0),
        ("evaluate.every_steps", 0),
        ("checkpoint.every_steps", 0),
        ("checkpoint.keep_last", 0),
        ("checkpoint.keep_best", -1),
        ("seed", -1),
        ("evaluate.weights", "bset"),
        ("evaluate.enlarge", 0.5),
        ("batch.classes", 0),
        ("batch.pieces", 0),
        ("data.image_size", (64,)),
        ("data.image_size", (0, 64)),
    ],
)
def test_what_would_fail_later_is_refused_at_once(monkeypatch, key, value):
    monkeypatch.syspath_prepend(str(ROOT))
    config = importlib.import_module("hap2s_jax.recipes.common").get_config()
    check(config)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=key) as caught:
        check(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.distance": "l2"}, "loss hap2s_e: distance is 'l2'"),
        ({"loss.sigma": 0.0}, "loss hap2s_e: sigma is 0.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"auxiliary": {"name": "softmax", "weight": -1.0}}, "auxiliary.weight is -1.0"),
        ({"optimizer.b1": 1.5}, "optimizer.b1 is 1.5"),
        ({"optimizer.learning_rate": -0.1}, "optimizer.learning_rate is -0.1"),
        ({"optimizer.weight_decay": -0.1}, "optimizer.weight_decay is -0.1"),
        ({"optimizer.clip_norm": -1.0}, "optimizer.clip_norm is -1.0"),
        ({"schedule.decay_from": 1.5}, "schedule.decay_from is 1.5"),
        ({"schedule.boundaries": (0.5, 0.4)}, "schedule.boundaries is"),
        ({"schedule.boundaries": (0.5, 1.4)}, "schedule.boundaries is"),
        ({"schedule.name": "exponential", "schedule.final_factor": 0.0}, "schedule.final_factor is 0.0"),
        ({"schedule.warmup_steps": 30_000}, "schedule.warmup_steps is 30000"),
    ],
)
def test_a_value_without_a_meaning_is_refused(monkeypatch, changes, message):
    monkeypatch.syspath_prepend(str(ROOT))
    config = importlib.import_module("hap2s_jax.recipes.common").get_config()
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value}) if "." in key else config.update({key: value})
    with pytest.raises(UserError, match=message) as caught:
        Learner.create(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("decay", "name", "known"), [(0.0, "map", False), (0.0, "live/mAP", False), (0.9, "live/mAP", True)]
)
def test_the_metric_to_choose_by_is_one_that_is_measured(monkeypatch, decay, name, known):
    monkeypatch.syspath_prepend(str(ROOT))
    config = importlib.import_module("configs.emoji").get_config("tiny")
    dataset = emoji.load()
    check_best_metric(config, dataset)
    config.ema_decay, config.checkpoint.best_metric = decay, name
    with (
        contextlib.nullcontext() if known else pytest.raises(UserError, match=r"checkpoint\.best_metric.*mAP")
    ):
        check_best_metric(config, dataset)
    check_best_metric(config, dataclasses.replace(dataset, validation=None))


def test_two_losses_of_the_same_shapes_begin_with_other_arrays(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    config = importlib.import_module("configs.emoji").get_config("tiny")
    common = importlib.import_module("hap2s_jax.recipes.common")
    common.set_loss(config, "arcface")
    common.set_auxiliary(config, "softmax", weight=1.0)
    params = Learner.create(config).initial_state(5).params["loss"]
    metric, auxiliary = (params[name]["kernel"] for name in ("metric", "auxiliary"))
    assert metric.shape == auxiliary.shape
    assert abs(metric - auxiliary).max() > 0.01
