"""What Weights & Biases and MLflow get, read back by their own means, without a network."""

from __future__ import annotations

import json
import pathlib
import struct
import subprocess
import sys

import pytest

from hap2s_jax.errors import UserError
from hap2s_jax.reporting import trackers
from hap2s_jax.reporting.metric_log import MetricLog, read_metrics

CONFIG = {"name": "mine", "steps": 20, "optimizer": {"name": "adam"}, "log": {"wandb": "", "mlflow": ""}}


def _two_processes(workdir: pathlib.Path, service: str) -> None:
    """A run that fails after step 10, and goes on from there with the files of a finished one."""
    config = {**CONFIG, "log": {**CONFIG["log"], service: "project"}}
    (workdir / "config.json").write_text(json.dumps(CONFIG))
    (workdir / "model_card.md").write_text("# mine")
    (workdir / "curves.png").write_bytes(
        (pathlib.Path(__file__).parents[2] / "docs/losses_weights.png").read_bytes()
    )
    log = MetricLog(workdir, tensorboard=False)
    log.add(trackers.opened(config, workdir, resumed=False))
    log.write(10, {"loss": 0.5}, part="train")
    log.close(failed=True)
    with MetricLog(workdir, 10, tensorboard=False) as log:
        log.add(trackers.opened(config, workdir, resumed=True))
        log.write(20, {"loss": 0.25, "recall@1": 0.75}, part="train")
        log.attach_files()


def test_mlflow_has_one_run_with_everything(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the light store; its sqlite takes long to set up
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    (workdir := tmp_path / "run").mkdir()
    _two_processes(workdir, "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("project")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mine"
    assert run.data.params["optimizer.name"] == "adam"
    assert run.data.metrics["train/recall_at_1"] == 0.75
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [
        (10, 0.5),
        (20, 0.25),
    ]
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {
        "config.json",
        "model_card.md",
        "curves.png",
    }


def _records(path: pathlib.Path):
    """The messages of wandb's file: after seven bytes LevelDB's log of blocks of 32 KiB, records in pieces."""
    from wandb.proto import wandb_internal_pb2

    content, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the only piece, or the last
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_wandb_has_one_run_with_everything(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    # Its service and its threads must not outlive the test.
    code = "import pathlib, sys; sys.path[:0] = sys.argv[2:]; from test_trackers import _two_processes; "
    code += "_two_processes(pathlib.Path(sys.argv[1]), 'wandb')"
    folders = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2])]
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *folders], check=True, timeout=300)
    written = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 2
    assert len({path.name for path in written}) == 1  # one run, sent in two parts
    seen: dict[str, list[str]] = {}
    for path in written:
        for record in _records(path):
            for item in record.history.item:
                seen.setdefault(item.key or "/".join(item.nested_key), []).append(item.value_json)
    assert seen["train/loss"] == ["0.5", "0.25"]
    assert seen["train/recall@1"] == ["0.75"]
    assert any(name.split("/")[0] == "curves" for name in seen), seen.keys()
    files = {path.name for path in (tmp_path / "wandb").glob("offline-run-*/files/*")}
    assert {"config.json", "model_card.md", "curves.png"} <= files


class _Breaks(trackers.Tracker):
    service = "somewhere"

    def _log(self, record, wall_time):
        raise ConnectionError("no route to the host\nand a page of it")


def test_a_tracker_that_fails_ends_nothing_and_is_told_once(tmp_path, capsys):
    with MetricLog(tmp_path, tensorboard=False) as log:
        log.add([_Breaks()])
        for step in (1, 2):
            log.write(step, {"loss": 1.0})
        log.attach_files()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert capsys.readouterr().err == (
        "warning: logging to somewhere has stopped (no route to the host); metrics.jsonl has it all\n"
    )


def test_what_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise ConnectionError("no route to the host")

    monkeypatch.setitem(trackers._SERVICES, "wandb", refuse)
    config = {**CONFIG, "log": {"wandb": "project", "mlflow": ""}}
    with pytest.raises(
        UserError, match=r"config.log.wandb: no run could be opened.*WANDB_MODE=offline"
    ) as error:
        next(trackers.opened(config, tmp_path, resumed=False))
    assert "\n" not in str(error.value)
