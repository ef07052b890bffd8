import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hap2s_jax.errors import UserError
from hap2s_jax.training import arrays, digests
from hap2s_jax.training.checkpoint import Checkpointer
from hap2s_jax.training.state import TrainState, encoder_variables, start_average


def _state(step, size=3, seed=0):
    kernel = jax.random.normal(jax.random.key(seed), (size, 4))
    params = {"encoder": {"kernel": kernel + step, "bias": jnp.ones(4)}, "loss": {}}
    optimizer = optax.adamw(1e-3)
    return TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={"mean": jnp.zeros(2)},
        opt_state=optimizer.init(params),
    )


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_round_trip_is_exact_and_keeps_the_structure(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(_state(5))
    _assert_equal(checkpointer.restore(_state(0, seed=9), 5), _state(5))
    checkpointer.close()


def test_keeps_the_last_and_the_best_and_never_loses_the_newest(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep_last=2, keep_best=1, best_metric="mAP")
    for step, quality in [(1, 0.1), (2, 0.9), (3, 0.9), (4, None), (5, 0.3), (6, None)]:
        checkpointer.save(_state(step), None if quality is None else {"mAP": quality})
    checkpointer.close()
    again = Checkpointer(tmp_path, best_metric="mAP")
    assert again.steps == [3, 5, 6]
    assert (again.best_step, again.latest_step) == (3, 6)  # of two that are equally good the later


def test_what_is_not_a_number_is_never_the_best(tmp_path, caplog):
    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_best=1, best_metric="mAP")
    with caplog.at_level(logging.WARNING):
        for step, quality in [(1, 0.5), (2, 0.4), (3, float("nan")), (4, 0.3)]:
            checkpointer.save(_state(step), {"mAP": quality})
    checkpointer.close()
    again = Checkpointer(tmp_path, best_metric="mAP")
    assert (again.steps, again.best_step) == ([1, 4], 1)
    assert "mAP is nan at step 3" in caplog.text


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    state = _state(1, size=2000)
    expected = np.array(state.params["encoder"]["kernel"])
    checkpointer.save(state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    jax.block_until_ready(overwrite(state))
    checkpointer.close()
    restored = Checkpointer(tmp_path).restore(_state(0, size=2000), 1)
    np.testing.assert_array_equal(restored.params["encoder"]["kernel"], expected)


def test_a_checkpoint_of_another_shape_or_dtype_is_refused_by_name(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(_state(1))
    with pytest.raises(
        UserError, match=r"params/encoder/kernel is float32\[3, 4\] there and float32\[7, 4\] by the config"
    ):
        checkpointer.restore(_state(0, size=7), 1)
    half = _state(0).replace(batch_stats={"mean": jnp.zeros(2, jnp.bfloat16)})
    with pytest.raises(
        UserError, match=r"batch_stats/mean is float32\[2\] there and bfloat16\[2\] by the config"
    ):
        checkpointer.restore(half, 1)
    missing = _state(0).replace(batch_stats={})
    with pytest.raises(UserError, match=r"batch_stats/mean is float32\[2\] there and missing by the config"):
        checkpointer.restore(missing, 1)


def test_missing_damaged_and_newer_checkpoints(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(_state(1))
    checkpointer.save(_state(2))
    checkpointer.close()
    again = Checkpointer(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint of step 3 .* there are: \[1, 2\]"):
        again.restore(_state(0), 3)
    for file in (tmp_path / "2" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"2 cannot be read") as caught:
        again.restore(_state(0), 2)
    assert "\n" not in str(caught.value)
    _assert_equal(again.restore(_state(0), 1), _state(1))
    (record,) = (tmp_path / "1" / "record").glob("metadata")
    record.write_text('{"format": 99}')  # of a version that kept no digests
    (tmp_path / "1" / "digests.json").unlink()
    with pytest.raises(UserError, match="format 99"):
        Checkpointer(tmp_path).restore(_state(0), 1)


def _damage(path, how, rng):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        for place in rng.integers(0, len(data), 20):
            data[place] ^= 1 << rng.integers(8)
    path.write_bytes(data[: len(data) // 2] if how == "cut" else b"" if how == "emptied" else data)
    if how == "removed":
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "removed"])
def test_whatever_is_damaged_is_noticed_and_the_one_before_is_gone_on_from(tmp_path, caplog, how):
    whole = tmp_path / "whole" / "checkpoints"
    checkpointer = Checkpointer(whole, best_metric="mAP")
    for step in (1, 2):
        checkpointer.save(_state(step), {"mAP": step / 10})
    checkpointer.close()
    rng = np.random.default_rng(0)
    top = {"commit_success.txt"}  # says nothing but that it is there
    files = sorted(path for path in (whole / "2").rglob("*") if path.is_file() and path.name not in top)
    assert {"digests.json", "_CHECKPOINT_METADATA", "metadata", "metrics"} <= {file.name for file in files}
    for number, file in enumerate(files):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(whole, folder)
        _damage(folder / file.relative_to(whole), how, rng)
        # Read only: what lies there stays.
        reader = Checkpointer(folder, read_only=True)
        step, _ = reader.restore_whole(lambda r=reader: r.evaluated_step("best"))
        assert (step, reader.steps) == (1, [1]), file
        with pytest.raises(UserError, match="2 is damaged"):
            Checkpointer(folder, read_only=True, strict=True).restore_weights(2)
        with pytest.raises(UserError, match="2 is damaged"):
            Checkpointer(folder, strict=True)
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
        caplog.clear()
        again = Checkpointer(folder, best_metric="mAP")
        assert (again.latest_step, again.best_step) == (1, 1), file
        (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("hap2s_jax")]
        assert "checkpoints.damaged/2 now, and step 1 is gone on from" in line
        _assert_equal(again.restore(_state(0), 1), _state(1))
        again.save(_state(2))
        again.close()
        assert Checkpointer(folder, strict=True).steps == [1, 2]


@pytest.mark.parametrize("name", ["metrics", "_CHECKPOINT_METADATA", "digests.json"])
def test_of_older_checkpoints_what_decides_which_is_best_is_checked_at_once(tmp_path, caplog, name):
    checkpointer = Checkpointer(tmp_path / "checkpoints", best_metric="mAP")
    for step in (1, 2):
        checkpointer.save(_state(step), {"mAP": 0.5 / step})
    checkpointer.close()
    (file,) = (path for path in (tmp_path / "checkpoints" / "1").rglob(name) if path.is_file())
    _damage(file, "flipped", np.random.default_rng(1))
    assert Checkpointer(tmp_path / "checkpoints", read_only=True).evaluated_step("best") == 2
    again = Checkpointer(tmp_path / "checkpoints", best_metric="mAP")
    assert (again.steps, again.best_step) == ([2], 2)
    assert "checkpoints.damaged/1 now, and step 2 is gone on from" in caplog.text


def test_a_checkpoint_without_digests_is_taken_with_a_remark(tmp_path, caplog):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(_state(1))
    checkpointer.close()
    (tmp_path / "1" / "digests.json").unlink()
    (tmp_path / "1" / "record" / "metadata").write_text('{"format": 1, "metrics": {}}')
    _assert_equal(Checkpointer(tmp_path).restore(_state(0), 1), _state(1))
    assert "kept no digests" in caplog.text


def test_an_unmeasured_best_metric_lists_those_that_are(tmp_path):
    with pytest.raises(UserError, match=r"best_metric is 'mAp'.*recall@1"):
        Checkpointer(tmp_path, best_metric="mAp").save(_state(1), {"recall@1": 0.5})


_FILL_DISK = """
import sys
sys.path.insert(0, {tests!r})
import resource, signal
import test_checkpoint as t
from hap2s_jax.training import arrays, digests
from hap2s_jax.training.checkpoint import Checkpointer
from hap2s_jax.distributed import signals
signals.watch()  # as a command does
checkpointer = Checkpointer({directory!r})
checkpointer.save(t._state(1))
checkpointer._wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    state = t._state(2, size=100_000)
    checkpointer.save(state.replace(batch_stats={{str(n): t.np.random.rand(20_000) for n in range(40)}}))
    checkpointer.close()
except t.UserError as e:
    print("REFUSED", e)
"""


def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_stays(tmp_path):
    # A limit on the size of files makes writes fail as they do on a full disk.
    assert hasattr(resource, "RLIMIT_FSIZE")
    assert hasattr(signal, "SIGXFSZ")
    script = _FILL_DISK.format(tests=str(pathlib.Path(__file__).parent), directory=str(tmp_path / "c"))
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ},
        check=False,
    )
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("REFUSED")]
    assert "the last good one is of step 1" in line, done.stderr
    assert "File too large; the last" in line, "the fault alone"
    assert "Event loop is closed" not in done.stderr, "the writes that fail later"
    again = Checkpointer(tmp_path / "c")
    assert again.steps == [1]
    _assert_equal(again.restore(_state(0), 1), _state(1))
    again.save(_state(2))
    again.close()
    assert again.steps == [1, 2]
    assert not list((tmp_path / "c").glob("*tmp*")), "a torn checkpoint must not be left lying about"


def test_a_process_that_is_gone_is_no_fault_of_the_disk(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path / "c")
    lost = jax.errors.JaxRuntimeError("INTERNAL: Barrier failed because: Task 1 heartbeat timeout.")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Barrier failed"):
        checkpointer._try_again(lost)


def test_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot open the checkpoints"):
        Checkpointer(tmp_path / "file" / "checkpoints")


@pytest.mark.parametrize("batch_stats", [{"mean": np.ones(3, np.float32)}, {}])
def test_an_average_without_statistics_is_embedded_with_and_not_gone_on_with(tmp_path, batch_stats):
    old = _state(4).replace(batch_stats=batch_stats)
    old = old.replace(ema_params=jax.tree.map(lambda x: 2 * x, old.params))
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(old)
    checkpointer.close()
    reader = Checkpointer(tmp_path / "checkpoints", read_only=True)
    with pytest.raises(UserError, match=f"held no batch statistics.*source={tmp_path}$"):
        reader.restore(old.replace(ema_params=start_average(old.params, batch_stats)), 4)
    found = encoder_variables(**reader.restore_weights(4))
    _assert_equal(found, {"params": old.ema_params["encoder"], "batch_stats": batch_stats})
    reader.close()


def test_the_weights_alone_are_read_without_a_template(tmp_path):
    with_average = _state(4).replace(ema_params=jax.tree.map(lambda x: 2 * x, _state(4).params))
    for state in (_state(3), with_average):
        checkpointer = Checkpointer(tmp_path)
        checkpointer.save(state)
        checkpointer.close()
        reader = Checkpointer(tmp_path, read_only=True)
        weights = reader.restore_weights(int(state.step))
        assert weights.pop("frozen") is None
        assert set(weights) == {"params", "batch_stats", "ema_params"}
        for name, tree in weights.items():
            _assert_equal(tree, jax.tree.map(np.asarray, getattr(state, name)))
        reader.close()
    with pytest.raises(UserError, match="no checkpoint of step 9"):
        Checkpointer(tmp_path, read_only=True).restore_weights(9)


def test_what_was_left_unfinished_is_gone_once_a_directory_is_open(tmp_path):
    rest = tmp_path / "frozen.orbax-checkpoint-tmp" / "d"
    rest.mkdir(parents=True)
    for number in range(2000):
        (rest / str(number)).touch()
    Checkpointer(tmp_path).close()
    assert not rest.parent.exists()


def test_a_frozen_trunk_has_digests_too(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    variables = {
        "params": {"kernel": np.ones((3, 4), np.float32)},
        "batch_stats": {"mean": np.zeros(4, np.float32)},
    }
    checkpointer.save_frozen(variables)
    checkpointer.save(_state(1))
    _assert_equal(checkpointer.restore_frozen(), variables)
    for file in (tmp_path / "frozen" / "d").glob("*"):
        _damage(file, "flipped", np.random.default_rng(0))
    with pytest.raises(UserError, match=r"cannot be read .*is not what was saved"):
        checkpointer.restore_frozen()


@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "metrics/metrics", "state/manifest.ocdbt"])
@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_what_would_be_waited_for_or_read_without_end_is_refused(tmp_path, file, kind):
    checkpointer = Checkpointer(tmp_path / "run", best_metric="mAP")
    checkpointer.save(_state(1), {"mAP": 0.5})
    checkpointer.close()
    path = tmp_path / "run" / "1" / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as made:
            made.truncate(2**40)  # of which the disk holds nothing
    for read_only in (False, True):
        with pytest.raises(UserError, match=r"regular file|more than") as caught:
            Checkpointer(tmp_path / "run", read_only=read_only)
        assert path.name in str(caught.value)


def test_a_file_of_another_size_is_not_read_and_arrays_fit_into_their_files(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(_state(1))
    checkpointer.close()
    (data, *_) = (tmp_path / "1" / "state" / "d").iterdir()
    with data.open("r+b") as file:
        file.truncate(2**40)
    assert digests.fault(tmp_path / "1") == f"state/d/{data.name} is not what was saved"
    with data.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"claims .* bytes of arrays"):
        arrays.read(tmp_path / "1" / "state", {"params": jax.ShapeDtypeStruct((2**40,), np.float32)})
