import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax.training.loop import train
from hap2s_jax.training.state import TrainState
from hap2s_jax.training.watch import DivergedError


def _state(step=0):
    return TrainState(step=jnp.int32(step), params={"x": jnp.float32(step)}, batch_stats={}, opt_state=())


@jax.jit
def _update(state, batch):
    new = state.replace(step=state.step + 1, params={"x": state.params["x"] + 1})
    return new, {"loss": batch, "grad_norm": batch, "param_norm": batch}


class _Recorder:
    def __init__(self):
        self.events = []

    def log(self, step, part, metrics):
        metrics = {k: v for k, v in metrics.items() if k not in ("seconds_per_step", "input_wait_fraction")}
        self.events.append(("log", step, part, metrics))

    def evaluate(self, state):
        self.events.append(("evaluate", int(state.step)))
        return {"mAP": float(state.step)}

    def save(self, state, metrics):
        self.events.append(("save", int(state.step), metrics))


def _train(recorder, start=0, total=7, batches=None, **changes):
    arguments = {
        "update": _update,
        "total_steps": total,
        "log_every": 2,
        "evaluate_every": 4,
        "save_every": 3,
        "log": recorder.log,
        "evaluate": recorder.evaluate,
        "save": recorder.save,
        **changes,
    }
    batches = itertools.count(float(start), 1.0) if batches is None else batches
    return train(_state(start), map(jnp.float32, batches), **arguments)


def test_order_of_logging_evaluation_and_saving():
    recorder = _Recorder()
    state = _train(recorder)
    assert int(state.step) == 7

    def mean(*values):
        return dict.fromkeys(("loss", "grad_norm", "param_norm"), float(np.mean(values)))

    assert recorder.events == [
        ("log", 2, "train", mean(0, 1)),
        ("log", 3, "train", mean(2)),
        ("save", 3, None),
        ("log", 4, "train", mean(3)),
        ("evaluate", 4),
        ("log", 4, "validation", {"mAP": 4.0}),
        ("save", 4, {"mAP": 4.0}),
        ("log", 6, "train", mean(4, 5)),
        ("save", 6, None),
        ("log", 7, "train", mean(6)),
        ("evaluate", 7),
        ("log", 7, "validation", {"mAP": 7.0}),
        ("save", 7, {"mAP": 7.0}),
    ]


@pytest.mark.parametrize("resumed_at", [3, 4, 6])
def test_a_run_resumed_at_a_checkpoint_repeats_the_events(resumed_at):
    whole, first, second = _Recorder(), _Recorder(), _Recorder()
    _train(whole)
    _train(first, batches=itertools.chain(range(resumed_at), iter(())), total=resumed_at)
    _train(second, start=resumed_at)
    expected_after = [e for e in whole.events if e[0] == "evaluate" or e[1] > resumed_at]
    expected_after = [e for e in expected_after if e[1] > resumed_at]
    assert second.events == expected_after


@pytest.mark.parametrize("wait", [True, False])
def test_divergence_names_its_step_and_is_never_saved(wait):
    recorder = _Recorder()
    batches = iter([1.0, 1.0, 1.0, 1.0, math.nan, 1.0, 1.0])
    with pytest.raises(DivergedError, match="at step 5 "):
        _train(recorder, batches=batches, wait_each_step=wait)
    assert max(event[1] for event in recorder.events) <= 4


def test_progress_sees_every_step_once():
    seen = []
    _train(_Recorder(), progress=lambda step, metrics: seen.append((step, metrics["loss"])))
    assert seen == [(step, step - 1.0) for step in range(1, 8)]


def test_without_evaluation():
    recorder = _Recorder()
    _train(recorder, evaluate=None)
    assert [e[1:] for e in recorder.events if e[0] == "save"] == [(3, None), (6, None), (7, None)]


def test_nothing_left_to_do():
    recorder = _Recorder()
    state = _train(recorder, start=7)
    assert recorder.events == []
    assert int(state.step) == 7


def test_a_batch_that_would_be_transferred_by_the_update_is_refused():
    batches = itertools.repeat(np.float32(0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(
            _state(),
            batches,
            update=_update,
            total_steps=1,
            log_every=1,
            evaluate_every=1,
            save_every=1,
            log=print,
            evaluate=None,
            save=print,
        )
