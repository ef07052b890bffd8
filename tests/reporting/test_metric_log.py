import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from hap2s_jax.errors import UserError
from hap2s_jax.reporting.event_files import read_events
from hap2s_jax.reporting.metric_log import MetricLog, read_metrics, write_csv


def _event_files(workdir: Path) -> list[Path]:
    return sorted(workdir.glob("*tfevents*"))


def _points(workdir: Path, tag: str) -> list[tuple[int, float]]:
    """What a reader of event files sees, all files in order and no purging."""
    return [
        (event.step, value.simple_value)
        for path in _event_files(workdir)
        for event in read_events(path)
        for value in event.summary.value
        if value.tag == tag
    ]


def _run(workdir: Path, first: int, last: int, resume_step: int = 0) -> None:
    with MetricLog(workdir, resume_step) as log:
        for step in range(first, last + 1, 10):
            log.write(step, {"train/loss": np.float32(1 / step), "train/active_fraction": 0.5})
            if step % 50 == 0:
                log.write(step, {"validation/map@r": step / 1000})


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "new" / "folder")
    log.write(10, {"train/loss": 0.25, "queries": 7})
    assert (
        tmp_path / "new/folder/metrics.jsonl"
    ).read_text() == '{"step": 10, "train/loss": 0.25, "queries": 7}\n'
    assert _points(tmp_path / "new/folder", "train/loss") == [(10, 0.25)]
    log.close()


def test_numbers_of_every_kind_survive(tmp_path: Path) -> None:
    given = {
        "float": 0.1,
        "int": 3,
        "bool": True,
        "numpy32": np.float32(0.1),
        "jax": jnp.float32(1e-7),
        "one_element": np.ones((1,), np.float64) / 3,
        "bfloat16": np.asarray(0.5, ml_dtypes.bfloat16),
        "nan": float("nan"),
        "inf": jnp.inf,
        "minus_inf": np.float32(-np.inf),
        "ünïcode": 1.5,
    }
    with MetricLog(tmp_path) as log:
        log.write(1, given)
    line = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert '"numpy32": 0.1,' in line
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [strict[name] for name in ("nan", "inf", "minus_inf")] == ["NaN", "Infinity", "-Infinity"]
    (back,) = read_metrics(tmp_path)
    assert math.isnan(back.pop("nan"))
    assert back.pop("step") == 1
    del given["nan"]
    for name, value in given.items():
        assert np.float64(back[name]) == pytest.approx(np.float64(np.asarray(value).item()), rel=1e-7), name


@pytest.mark.parametrize("value", ["0.5", None, [1.0, 2.0], np.zeros(0), 1j])
def test_what_is_not_a_number_is_refused_by_name(tmp_path: Path, value: object) -> None:
    with (
        MetricLog(tmp_path) as log,
        pytest.raises(TypeError, match=r"metric 'train/loss' is .*; it should be one number"),
    ):
        log.write(1, {"train/loss": value})
    assert read_metrics(tmp_path) == []


def test_a_stopped_and_resumed_run_leaves_the_log_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    _run(straight, 10, 300)
    _run(resumed, 10, 170)
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 180, "train/lo')
    # A killed writer leaves half a record here, too.
    with _event_files(resumed)[0].open("ab") as file:
        file.write(struct.pack("<QI", 64, 0) + b"torn")
    _run(resumed, 110, 250, resume_step=100)
    _run(resumed, 210, 300, resume_step=200)

    assert (resumed / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    for tag in ("train/loss", "train/active_fraction", "validation/map@r"):
        assert _points(resumed, tag) == _points(straight, tag)
    assert [step for step, _ in _points(resumed, "train/loss")] == list(range(10, 301, 10))


def _times(workdir: Path) -> dict[int, float]:
    events = (event for path in _event_files(workdir) for event in read_events(path))
    return {event.step: event.wall_time for event in events if event.step}


def test_points_keep_the_time_of_their_first_writing(tmp_path: Path) -> None:
    _run(tmp_path, 10, 50)
    before = _times(tmp_path)
    _run(tmp_path, 40, 40, resume_step=30)
    after = _times(tmp_path)
    assert [after[step] for step in (10, 20, 30)] == [before[step] for step in (10, 20, 30)]
    assert after[40] > before[40]


def test_a_run_that_starts_anew_empties_the_log_and_none_keeps_it(tmp_path: Path) -> None:
    _run(tmp_path, 10, 50)
    with MetricLog(tmp_path, resume_step=None) as log:
        log.write(50, {"test/mAP": 0.4})
    assert len(read_metrics(tmp_path)) == 7
    assert _points(tmp_path, "test/mAP") == [(50, pytest.approx(0.4))]
    MetricLog(tmp_path).close()
    assert read_metrics(tmp_path) == []
    assert _points(tmp_path, "train/loss") == []


def test_event_files_of_others_stay(tmp_path: Path) -> None:
    other = tmp_path / "events.out.tfevents.1.profiler"
    other.write_bytes(b"theirs")
    _run(tmp_path, 10, 20)
    _run(tmp_path, 20, 20, resume_step=10)
    assert other.read_bytes() == b"theirs"
    assert len(_event_files(tmp_path)) == 2


def test_event_files_are_tfrecords_with_right_checksums(tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    _run(tmp_path, 10, 60)
    (path,) = _event_files(tmp_path)
    # TensorFlow's reader checks both sums of every record.
    records = list(tensorflow.compat.v1.io.tf_record_iterator(str(path)))
    assert len(records) == 2 + 7


def test_steps_do_not_go_back_and_a_closed_log_says_so(tmp_path: Path) -> None:
    log = MetricLog(tmp_path)
    log.write(20, {"a": 1})
    log.write(20, {"b": 1})
    with pytest.raises(ValueError, match="step is 10; it should be at least 20, where the log stands"):
        log.write(10, {"a": 1})
    log.flush()
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.write(30, {"a": 1})


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with MetricLog(tmp_path / "run", enabled=False) as log:
        log.write(1, {"a": 1})
        log.flush()
    assert not (tmp_path / "run").exists()


def test_without_tensorboard_there_is_only_the_json(tmp_path: Path) -> None:
    with MetricLog(tmp_path, tensorboard=False) as log:
        log.write(1, {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_is_one_clear_line_and_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricLog(tmp_path)
    log.write(1, {"a": 1})

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            if len(data) <= 5:
                raise OSError(28, "No space left on device")
            return self.file.write(data[:-5])

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    real = log._file
    monkeypatch.setattr(log, "_file", Full(real))
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        log.write(2, {"a": 2})
    monkeypatch.setattr(log, "_file", real)
    log.write(3, {"a": 3})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1}, {"step": 3, "a": 3}]


def test_a_workdir_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
        MetricLog(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="workdir must be the folder of a training run"):
        read_metrics(tmp_path)


def test_what_is_loaded_when(tmp_path: Path) -> None:
    code = f"""
import sys
from hap2s_jax.reporting import environment, pictures, plots, progress, selection, table
from hap2s_jax.reporting.metric_log import MetricLog
heavy = ("matplotlib", "PIL", "tensorboardX", "tqdm", "rich", "sklearn", "tensorflow")
assert not [name for name in heavy if name in sys.modules]
with MetricLog({str(tmp_path)!r}) as log:
    log.write(1, {{"loss": 1}})
plots.curves({str(tmp_path)!r})
# Pyplot would choose a window system and keep every figure.
assert not [name for name in ("tensorflow", "matplotlib.pyplot") if name in sys.modules]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_whole_lines_around_a_broken_one_are_read(tmp_path: Path) -> None:
    good = '{"step": 1, "a": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(
        good.encode() + b"\0\0\0\n[1]\n" + good.encode() + b'{"step": 2, "a'
    )
    assert read_metrics(tmp_path) == [{"step": 1, "a": 0.5}] * 2


def test_the_table_has_a_row_for_each_step_and_a_column_for_each_metric(tmp_path: Path) -> None:
    with MetricLog(tmp_path, tensorboard=False) as log:
        log.write(0, {"mAP": 0.5}, part="test")
        log.write(10, {"loss": math.nan}, part="train")
        log.write(10, {"map@r": np.float32(0.1)}, part="validation")
    assert write_csv(tmp_path).read_text().splitlines() == [
        "step,test/mAP,train/loss,validation/map@r",
        "0,0.5,,",
        "10,,nan,0.1",
    ]


def test_a_run_killed_after_its_test_logs_it_once(tmp_path):
    for resume_step in (0, 20):
        with MetricLog(tmp_path, resume_step) as log:
            if not resume_step:
                log.write(0, {"mAP": 0.1}, part="test")
                log.write(20, {"loss": 1.0}, part="train")
            log.write(20, {"mAP": 0.5}, part="test")
    assert [{*line} - {"step"} for line in read_metrics(tmp_path)] == [
        {"test/mAP"},
        {"train/loss"},
        {"test/mAP"},
    ]
