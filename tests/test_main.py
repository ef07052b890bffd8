"""The whole job on the embedded data: train, stop, resume, finish, and what it leaves behind."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from hap2s_jax import main
from hap2s_jax.distributed import processes
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.atomic import holding
from hap2s_jax.reporting.metric_log import read_metrics
from hap2s_jax.reporting.progress import ProgressBar
from hap2s_jax.run import config as configs
from hap2s_jax.run import folder, report
from hap2s_jax.run import run as flow
from hap2s_jax.run.learner import Learner
from hap2s_jax.training.checkpoint import Checkpointer
from hap2s_jax.training.watch import DivergedError

ROOT = pathlib.Path(__file__).parents[1]
TIMES = {"train/images_per_second", "train/input_wait_fraction"}


def _config(**changes):
    config = importlib.import_module("configs.emoji").get_config("tiny")
    config.num_devices = 1
    config.log.tensorboard = False
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    sys.path.insert(0, str(ROOT))
    with contextlib.redirect_stderr(io.StringIO()) as said:  # no terminal
        results = main.run(_config(), workdir)
    (workdir.parent / "said").write_text(said.getvalue())
    return workdir, results


@pytest.fixture
def no_pictures(monkeypatch):
    """Most of a run of six steps is drawing."""
    monkeypatch.setattr(report, "draw", lambda *a, **k: None)


def _killed(*arguments, **settings):
    raise KeyboardInterrupt


def _weights(workdir, step):
    checkpointer = Checkpointer(workdir / "checkpoints", read_only=True)
    state = checkpointer._manager.restore(step)["state"]
    return jax.tree.map(np.asarray, state)


def _without_times(workdir):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(workdir)]


def test_what_a_run_leaves_behind(finished):
    workdir, results = finished
    for name in (
        "config.json",
        "metrics.jsonl",
        "metrics.csv",
        "results.json",
        "retrievals.png",
        "embeddings.png",
        "curves.png",
    ):
        assert (workdir / name).stat().st_size > 0, name
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results, default=list))
    for row in (results["test"], results["untrained"], results["validation"]):
        assert {"mAP", "rank-1", "recall@1", "recall@8", "map@r", "r_precision", "nmi"} <= row.keys()
        assert all(0 <= row[name] <= 1 for name in ("mAP", "recall@1", "map@r", "nmi"))
    assert 0.1 < results["baselines"]["raw pixels"]["mAP"] < 0.3
    # Both encoders see the same pixels: an untrained one must not beat them, nor find nothing.
    assert 0.01 < results["untrained"]["mAP"] < results["baselines"]["raw pixels"]["mAP"]


def test_the_log_has_every_step_and_evaluation_in_order(finished):
    workdir, _ = finished
    records = read_metrics(workdir)
    steps = [r["step"] for r in records]
    assert steps == sorted(steps)
    assert [r["step"] for r in records if "train/loss" in r] == [2, 3, 4, 6]
    assert [r["step"] for r in records if "validation/mAP" in r] == [4, 6]
    assert [r["step"] for r in records if "test/mAP" in r] == [0, 6]
    trained = [r for r in records if "train/loss" in r]
    for name in ("grad_norm", "param_norm", "embedding_spread", "active_fraction", "mean_positive_distance"):
        assert all(math.isfinite(r[f"train/{name}"]) for r in trained)


def test_without_a_terminal_each_evaluation_prints_a_line(finished):
    workdir, _ = finished
    said = (workdir.parent / "said").read_text()
    lines = re.findall(r"^step (\d+): validation mAP (\d\.\d{3}), ", said, re.MULTILINE)
    measured = [record for record in read_metrics(workdir) if "validation/mAP" in record]
    assert measured
    assert lines == [(str(r["step"]), f"{r['validation/mAP']:.3f}") for r in measured]


def test_a_second_run_says_that_it_is_finished(finished, capsys, monkeypatch):
    workdir, results = finished
    monkeypatch.setattr(flow, "train", lambda *a, **k: pytest.fail("trained again"))
    again = main.run(_config(), workdir)
    assert again["test"] == results["test"]
    printed = capsys.readouterr().out
    assert "finished run of 6 steps" in printed
    assert "raw pixels" in printed


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("stopped_at", [1, 4, 5])
def test_stopped_and_resumed_ends_with_the_same_bits(finished, tmp_path, monkeypatch, stopped_at):
    workdir, results = finished
    update = ProgressBar.update

    def stop(self, step, **values):
        if step == stopped_at:
            raise KeyboardInterrupt
        update(self, step, **values)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            main.run(_config(), tmp_path)
    resumed = main.run(_config(), tmp_path)

    jax.tree.map(np.testing.assert_array_equal, _weights(tmp_path, 6), _weights(workdir, 6))
    assert _without_times(tmp_path) == _without_times(workdir)
    assert resumed["test"] == results["test"]


@pytest.mark.usefixtures("no_pictures")
def test_more_steps_go_on_from_a_finished_run(tmp_path, monkeypatch, capsys):
    config = {"schedule.name": "constant"}
    main.run(_config(**config), tmp_path)
    # It dies between the last checkpoint and the results, beside which those of 6 steps still lie.
    with monkeypatch.context() as patch:
        patch.setattr(report, "finish", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main.run(_config(steps=8, **config), tmp_path)
    longer = main.run(_config(steps=8, **config), tmp_path)
    assert longer["steps"] == 8
    assert "the learning rate goes on" not in capsys.readouterr().out
    assert [r["step"] for r in read_metrics(tmp_path) if "train/loss" in r] == [2, 3, 4, 6, 8]


def test_more_steps_of_a_schedule_that_falls_are_told(tmp_path):
    settings = {"schedule.name": "cosine", "schedule.warmup_steps": 0, "optimizer.learning_rate": 1.0}
    configs.save(_config(steps=100, **settings), tmp_path)

    def told(start, **changes):
        config = _config(**settings | changes)
        job = types.SimpleNamespace(config=config, learner=Learner.create(config))
        return folder.changed_rate(job, tmp_path, start)

    assert told(100, steps=100) is None
    assert re.search(r"goes on at 0\.5\d*, where it stood at 0\.00", told(100, steps=200))
    assert told(0, steps=200) is None  # the same peak


@pytest.mark.usefixtures("no_pictures")
def test_fewer_steps_finish_a_run_that_is_beyond_them(tmp_path, monkeypatch):
    config = {"schedule.name": "constant", "evaluate.untrained": False}
    with monkeypatch.context() as patch:
        patch.setattr(report, "finish", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main.run(_config(steps=4, **config), tmp_path)
    assert main.run(_config(steps=3, **config), tmp_path)["steps"] == 4
    monkeypatch.setattr(flow, "train", lambda *a, **k: pytest.fail("trained again"))
    assert main.run(_config(steps=2, **config), tmp_path)["weights_of_step"] == 4
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 3, "nothing ran with 2"


def test_a_run_that_died_over_its_pictures_draws_them_the_next_time(finished, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    left = [workdir / name for name in ("results.json", "model_card.md", "thresholds.json", "retrievals.png")]
    for file in left:
        file.unlink()
    monkeypatch.setattr(flow, "train", lambda state, *a, **k: state)
    with monkeypatch.context() as patch:
        patch.setattr(report, "draw", _killed)
        with pytest.raises(KeyboardInterrupt):
            main.run(_config(), workdir)
    assert main.run(_config(), workdir)["test"] == pytest.approx(finished[1]["test"])
    assert all(file.is_file() for file in left)


def test_pictures_that_cannot_be_drawn_do_not_cost_the_figures(finished, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "results.json").unlink()
    monkeypatch.setattr(flow, "train", lambda state, *a, **k: state)
    monkeypatch.setattr(report, "draw", lambda *a, **k: 1 / 0)
    assert main.run(_config(), workdir)["test"] == pytest.approx(finished[1]["test"])
    assert "not all pictures could be drawn: ZeroDivisionError" in capsys.readouterr().out
    assert json.loads((workdir / "results.json").read_text())["steps"] == 6


def test_a_folder_takes_one_run_at_a_time(finished):
    workdir, results = finished
    with holding(workdir / processes.LOCK) as held:
        assert held
        with pytest.raises(UserError, match=r"another run is using .*choose another --workdir"):
            main.run(_config(), workdir)
    assert main.run(_config(), workdir)["test"] == results["test"]
    assert not (workdir / processes.LOCK).exists()


def test_another_config_is_refused_and_leaves_the_run_alone(finished):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    with pytest.raises(UserError, match=r"loss.margin was 0.3, is 0.7"):
        main.run(_config(**{"loss.margin": 0.7}), workdir)
    assert (workdir / "config.json").read_text() == before


def test_data_that_have_changed_are_not_gone_on_with(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "results.json").unlink()
    facts = json.loads((workdir / "data.json").read_text())
    facts["the train part of emoji"] = "9 images, 0"
    (workdir / "data.json").write_text(json.dumps(facts))
    with pytest.raises(
        UserError, match=r"train part of emoji was 9 images, 0 when the run in .* put the data back"
    ):
        main.run(_config(), workdir)
    assert json.loads((workdir / "data.json").read_text()) == facts


def test_a_config_that_never_ran_does_not_claim_the_folder(tmp_path):
    with pytest.raises(UserError, match="unknown"):
        main.run(_config(**{"optimizer.name": "adamm"}), tmp_path)
    assert not (tmp_path / "config.json").exists()
    (tmp_path / "config.json").write_text("{}")  # of a run that stopped before its first checkpoint
    folder.open_folder(tmp_path, _config())


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    config = _config(**{"optimizer.name": "sgd", "optimizer.learning_rate": 1e30, "encoder.normalize": False})
    with pytest.raises(DivergedError, match=r"not finite at step \d+ "):
        main.run(config, tmp_path)


@pytest.mark.slow
def test_the_command_itself(tmp_path):
    command = [sys.executable, "-m", "hap2s_jax.main", "--config=configs/emoji.py:tiny"]
    # With fewer devices tests/test_experiments.py runs it.
    command += [f"--workdir={tmp_path}", "--config.num_devices=8"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "step 6/6" in done.stderr
    assert "Retrieval on the test classes" in done.stdout
    assert list(tmp_path.glob("events.out.tfevents.*"))
