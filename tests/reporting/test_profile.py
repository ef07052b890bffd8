"""The trace of chosen updates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from hap2s_jax.reporting import profile


@pytest.mark.parametrize(
    ("steps", "start", "traced"),
    [((3, 4), 0, [3, 4]), ((3, 3), 2, [3]), ((3, 9), 4, []), ((8, 6), 0, [])],
    ids=["two", "one", "resumed within", "beyond the end"],
)
def test_only_the_chosen_updates_are_traced(tmp_path, monkeypatch, steps, start, traced):
    running, seen = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", running.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", running.clear)

    def update(state, batch):
        if running:
            seen.append(batch)
        return state + batch, {"loss": state}

    call, state = profile.traced(update, steps, start, tmp_path), jnp.float32(0)
    for step in range(start + 1, 7):
        state, _ = call(state, step)
    assert seen == traced
    assert not running
    assert state == sum(range(start + 1, 7))


def test_a_trace_is_written_to_the_working_directory(tmp_path):
    call = profile.traced(lambda state, batch: (state * batch, {}), (1, 1), 0, tmp_path)
    assert call(jnp.float32(3), 2)[0] == 6
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
