"""What a run makes of a bucket that fails: a proxy before a real server fails as it is told."""

from __future__ import annotations

import threading

import buckets
import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax import cli
from hap2s_jax.data import bucket, places
from hap2s_jax.errors import Unreachable, UserError
from hap2s_jax.reporting import mirror
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.reporting.metric_log import MetricLog, read_metrics
from hap2s_jax.training import patience
from hap2s_jax.training.checkpoint import Checkpointer
from hap2s_jax.training.state import TrainState


@pytest.fixture(scope="module")
def failing():
    """A place in a bucket, and the proxy before it."""
    with (
        buckets.serving() as address,
        buckets.Proxy(address) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        buckets.use(patch, proxy.address)
        patch.setattr(mirror, "PAUSE", 0.05)
        yield places.place(buckets.new_bucket(address)), proxy


@pytest.fixture(autouse=True)
def well_again(request):
    yield
    if "failing" in request.fixturenames:
        request.getfixturevalue("failing")[1].fault = lambda method, path: None


def _fails(proxy, fault, times, name=""):
    """The next requests that write an object whose name holds `name` fail."""
    left = [times]

    def decide(method, path):
        if method == "GET" or name not in path or not left[0]:
            return None
        left[0] -= 1
        return fault

    proxy.failed, proxy.fault = 0, decide


@pytest.mark.parametrize("fault", [503, 429, "cut"])
def test_what_passes_is_survived_and_the_object_is_whole(failing, fault):
    there, proxy = failing
    text = "0123456789" * 100_000
    _fails(proxy, fault, 1)
    with replacing(there / f"{fault}.txt") as temporary:
        temporary.write_text(text)
    assert proxy.failed == 1
    assert (there / f"{fault}.txt").read_text() == text


def test_a_bucket_that_does_not_answer_stops_no_step_and_is_said_before_a_save(failing, capsys, monkeypatch):
    there, proxy = failing
    monkeypatch.setattr(bucket, "PATIENCE", 8.0)
    answer = threading.Event()
    with MetricLog(there / "run") as log:
        log.write(1, {"loss": 1.0})
        log.flush()

        def silent(method, path):
            if method != "GET":
                answer.wait(60)

        proxy.fault = silent
        for step in range(2, 50):  # while nothing is answered
            log.write(step, {"loss": 1 / step})
        assert [record["step"] for record in read_metrics(there / "run")] == [1]
        answer.set()
        log.flush()
        assert [record["step"] for record in read_metrics(there / "run")] == list(range(1, 50))

        monkeypatch.setattr(bucket, "PATIENCE", 1.0)
        _fails(proxy, 503, 10**6)
        log.write(50, {"loss": 0.0})
        with pytest.raises(Unreachable, match=r"/run/.*503 Service Unavailable.*the same command goes on"):
            log.flush()
        assert "the run waits for it before it saves" in capsys.readouterr().err
        assert [record["step"] for record in read_metrics(there / "run")][-1] == 49  # whole, as it was
        proxy.fault = lambda method, path: None


def test_who_may_not_write_or_has_no_bucket_learns_it_in_one_line(failing):
    there, proxy = failing
    _fails(proxy, 403, 10**6)
    with pytest.raises(UserError, match=r"cannot write gs://.*x: this account may not \(403 Forbidden\)"):
        _write(there / "x")
    proxy.fault = lambda method, path: None
    with pytest.raises(UserError, match="there is no bucket no-such-bucket"):
        _write(places.place("gs://no-such-bucket/x"))


def _write(path):
    with replacing(path) as temporary:
        temporary.write_text("x")


def _state(step):
    params = {"w": jnp.arange(6.0) * step}
    return TrainState(
        step=jnp.int32(step), params=params, batch_stats={}, opt_state=(), ema_params=None, memory=None
    )


def test_a_checkpoint_that_was_not_taken_is_tried_again_and_nothing_half_written_counts(
    failing, capsys, monkeypatch
):
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0))
    there, proxy = failing
    there = there / "checkpoints"
    checkpointer = Checkpointer(there)
    checkpointer.save(_state(1))
    checkpointer._wait()
    _fails(proxy, 400, 1, "commit_success")  # what no client tries again by itself
    checkpointer.save(_state(2))
    checkpointer.save(_state(3))
    checkpointer.close()
    assert proxy.failed == 1
    assert "is not written to" in capsys.readouterr().err
    again = Checkpointer(there)
    assert again.steps == [2, 3]
    np.testing.assert_array_equal(again.restore(_state(0), 2).params["w"], _state(2).params["w"])

    _fails(proxy, 400, 10**6, "commit_success")
    again.save(_state(4))
    with pytest.raises(Unreachable, match=r"saving a checkpoint to .* failed: the bucket does not answer"):
        again._wait()
    proxy.fault = lambda method, path: None
    assert Checkpointer(there).steps == [2, 3]

    proxy.fault = lambda method, path: 400 if method == "GET" and "prefix=checkpoints/" in path else None
    with pytest.raises(Unreachable, match="the checkpoints in gs://"):
        Checkpointer(there)
    proxy.fault = lambda method, path: None

    name = next(name for name in (there / "3").checksums() if name.startswith("state/"))
    (there / "3" / name).write_bytes(b"damaged")
    assert Checkpointer(there).steps == [2]
    assert (there.with_name("checkpoints.damaged") / "3" / name).read_bytes() == b"damaged"


def test_a_checkpoint_has_an_end(monkeypatch, failing):
    monkeypatch.setattr(patience, "LIMIT", 0.05)
    released = threading.Event()
    with pytest.raises(Unreachable, match="is not written after"):
        patience.bounded(lambda: released.wait(30), failing[0])
    released.set()


def test_the_command_ends_with_75_where_it_may_go_on_later(capsys):
    def fail():
        raise Unreachable("gs://bucket/run", "503 Service Unavailable")

    assert cli.ended(fail) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: gs://bucket/run: the bucket does not answer (503")
