"""Real clusters on this machine: two processes with four devices each train, measure, stop, die and resume."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import drawings
import numpy as np
import peers
import pytest

import hap2s_jax
from hap2s_jax import main
from hap2s_jax.distributed import processes
from hap2s_jax.errors import Preempted
from hap2s_jax.reporting.metric_log import read_metrics
from hap2s_jax.run import config_file
from hap2s_jax.run import facts as run_facts

ROOT = pathlib.Path(__file__).parents[2]
LONG = 900  # seconds that no healthy wait of these tests takes, even on a very busy machine

CONFIG = "tiny,scratch"
OVERRIDES = {
    "steps": 3,
    "encoder.name": "small_encoder:make",
    "schedule.name": "constant",
    "batch.classes": 4,
    "evaluate.untrained": False,
    "evaluate.every_steps": 100_000,
    "checkpoint.every_steps": 3,
    "log.every_steps": 1,
    "log.tensorboard": False,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty classes of six noisy drawings."""
    return drawings.noisy(tmp_path_factory.mktemp("images") / "data")


def _alone(images, workdir, devices, **changes):
    config = importlib.import_module("configs.folder").get_config(CONFIG)
    config.update_from_flattened_dict(
        {**OVERRIDES, "data.data_dir": str(images), "num_devices": devices, **changes}
    )
    return main.run(config, workdir)


def _command(images, workdir, address, number, **changes):
    settings = [f"--config.{k}={v}" for k, v in {**OVERRIDES, "data.data_dir": images, **changes}.items()]
    return [
        *(
            sys.executable,
            "-m",
            "hap2s_jax.main",
            f"--config=configs/folder.py:{CONFIG}",
            f"--workdir={workdir}",
        ),
        *(f"--coordinator={address}", "--num_processes=2", f"--process_id={number}", "--peer_timeout=20"),
        *settings,
    ]


def _start(images, workdir, address, **changes):
    commands = [_command(images, workdir, address, number, **changes) for number in range(2)]
    return peers.start(commands, workdir.parent)


def _losses(workdir):
    return {r["step"]: r["train/loss"] for r in read_metrics(workdir) if "train/loss" in r}


def _newest(workdir):
    return max((int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), default=0)


def _reached(workdir, step):
    return lambda: (workdir / "metrics.jsonl").exists() and max(_losses(workdir), default=0) >= step


@pytest.fixture(scope="module")
def eight_devices(images, tmp_path_factory):
    """Three steps of one process with eight devices, and its figures."""
    sys.path.insert(0, str(ROOT))
    workdir = tmp_path_factory.mktemp("eight") / "run"
    return workdir, _alone(images, workdir, 8)


@pytest.mark.slow
def test_two_processes_train_and_measure_what_one_does(images, eight_devices, tmp_path):
    alone, figures = eight_devices
    workdir = tmp_path / "run"
    with peers.free_address() as address:
        workers = _start(images, workdir, address)
        peers.wait(workers, LONG)
    assert [worker.code for worker in workers] == [0, 0], "\n".join(worker.err for worker in workers)
    ours, theirs = _losses(workdir), _losses(alone)
    assert list(ours) == [1, 2, 3]
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
    # Later steps drift apart in float32, but not far in two of them.
    assert json.loads((workdir / "results.json").read_text())["test"]["recall@1"] == pytest.approx(
        figures["test"]["recall@1"], abs=0.05
    )
    assert "Retrieval on the test classes" in workers[0].out
    assert "images of" not in workers[1].out, "only the lead reports"


@pytest.mark.slow
def test_stop_kill_and_resume_on_other_numbers_of_devices(images, eight_devices, tmp_path):
    """Saved by 8 devices; goes on in 2 processes, which one SIGTERM stops; again, where one is killed; then on 4."""
    workdir = tmp_path / "run"
    shutil.copytree(eight_devices[0], workdir)
    with peers.free_address() as address:
        workers = _start(images, workdir, address, steps=100_000)
        peers.wait_until(_reached(workdir, 4), workers, LONG)
        workers[1].process.send_signal(signal.SIGTERM)
        peers.wait(workers, LONG)
    saved = _newest(workdir)
    for worker in workers:
        assert worker.code == 75, worker.err
        assert f"asked to stop: saved at step {saved}" in worker.err
    assert saved > 3

    with peers.free_address() as address:
        workers = _start(images, workdir, address, steps=100_000)
        peers.wait_until(_reached(workdir, saved + 1), workers, LONG)
        workers[1].process.kill()
        peers.wait(workers, LONG)
    assert workers[0].code not in (0, 75)
    if workers[0].code == processes.EXIT_LOST:  # else JAX itself was the first to see it, and aborted
        assert "the connection to another process broke" in workers[0].err
    newest = _newest(workdir)
    assert newest >= saved

    results = _alone(images, workdir, 4, steps=newest + 1)
    assert results["steps"] == newest + 1
    steps = list(_losses(workdir))
    assert steps == list(range(1, newest + 2))


@pytest.mark.slow
def test_processes_that_differ_are_refused_before_any_data_is_read(images, tmp_path):
    with peers.free_address() as address:
        commands = [_command(images, tmp_path / "run", address, number, seed=number) for number in range(2)]
        workers = peers.start(commands, tmp_path)
        peers.wait(workers, LONG)
    says = "error: the processes of this job differ: config.seed is 0 on process 0 and 1 on process 1"
    for worker in workers:
        assert worker.code == 1, worker.err
        assert says in worker.err
        assert "Traceback" not in worker.out + worker.err


@pytest.mark.parametrize(
    ("number", "says"), [(0, "not all of the 2 processes"), (1, "no coordinator answered at")]
)
def test_nobody_there_is_one_line_after_a_time(number, says):
    code = (
        "from hap2s_jax.distributed import devices\n"
        f"devices.initialize_processes('ADDRESS', 2, {number}, join_timeout=2)"
    )
    with peers.free_address() as address:
        command = [sys.executable, "-c", code.replace("ADDRESS", address)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 1, done.stderr
    assert f"error: after 2 s {says}" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_process_saves_when_asked_to_stop_and_goes_on(images, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    # The pipeline hands out batch 2, which is not trained with any more, when the signal comes.
    from hap2s_jax.run.trainer import Trainer

    plain = Trainer.train_batches

    def interrupted(self, start):
        for number, batch in enumerate(plain(self, start), start):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_batches", interrupted)
        with pytest.raises(Preempted, match="saved at step 2"):
            _alone(images, tmp_path, 1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert _newest(tmp_path) == 2
    assert _alone(images, tmp_path, 1)["steps"] == 3
    assert list(_losses(tmp_path)) == [1, 2, 3]


def test_the_service_goes_on_counting_from_the_step_resumed_at(monkeypatch):
    asked = []
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        processes.experimental, "preemption_reached", lambda step: asked.append(step) or False
    )
    processes.StopRequests().check_before(7)
    assert asked == [1, 7]

    # Of a signal that came before anything was asked.
    monkeypatch.setattr(processes.experimental, "preemption_reached", lambda step: step == 1)
    with pytest.raises(Preempted):
        processes.StopRequests().check_before(7)


def test_first_weights_that_differ_are_told_apart():
    weights = {"a": np.arange(3.0), "b": {"c": np.ones(2)}}
    assert run_facts.arrays_fact(weights, {}) == run_facts.arrays_fact(weights, {})
    assert run_facts.arrays_fact(weights, {}) != run_facts.arrays_fact(
        {**weights, "a": np.arange(3.0) + 1e-9}, {}
    )


def test_facts_name_what_differs():
    facts = run_facts.code_facts()
    assert facts["the version of jax"]
    assert len(facts["the code of hap2s_jax"]) == 12
    from hap2s_jax.data import emoji

    dataset = emoji.load()
    once, again = run_facts.data_facts(dataset), run_facts.data_facts(dataset)
    assert once == again
    assert once["the train part of emoji"] != once["the test part of emoji"]


SEVERAL = """
import ml_collections
from configs import folder
def get_config(arg=None):
    config = folder.get_config(arg)
    config.data.sources = ml_collections.ConfigDict(
        {name: {"name": "folder", "data_dir": f"IMAGES/{name}"} for name in ("here", "there")}
    )
    config.batch.sets, config.batch.mixing = "one", "here=2,there=1"
    return config
"""


@pytest.mark.slow
def test_a_run_of_several_sets_goes_on_bit_for_bit_after_a_kill(tmp_path):
    """Three steps are saved, a process goes on and is killed, its steps are made again; last on four devices."""
    for name in ("here", "there"):
        drawings.noisy(tmp_path / name)
    file = tmp_path / "both.py"
    file.write_text(SEVERAL.replace("IMAGES", str(tmp_path)))

    def flags(**changes):
        of_all = {**OVERRIDES, "checkpoint.every_steps": 100_000, "num_devices": 8, **changes}
        return [f"--config={file}:{CONFIG}", *(f"--config.{key}={value}" for key, value in of_all.items())]

    def alone(workdir, **changes):
        return main.run(config_file.read(flags(**changes)), workdir)

    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    alone(workdir)
    command = [sys.executable, "-m", "hap2s_jax.main", f"--workdir={workdir}", *flags(steps=100_000)]
    (worker,) = peers.start([command], tmp_path, devices=8)
    peers.wait_until(_reached(workdir, 5), [worker], LONG)
    worker.process.kill()
    peers.wait([worker], LONG)
    killed = _losses(workdir)
    assert _newest(workdir) == 3
    shutil.copytree(workdir, elsewhere)
    alone(workdir, steps=5)
    assert [_losses(workdir)[step] for step in (4, 5)] == [killed[step] for step in (4, 5)]
    results = alone(elsewhere, steps=5, num_devices=4)
    np.testing.assert_allclose(
        [_losses(elsewhere)[step] for step in (4, 5)], [killed[4], killed[5]], rtol=1e-3
    )
    assert {*results["tests"]} == {"here", "there", "average"}
    assert "here, there: train" in (elsewhere / "model_card.md").read_text()
    assert hap2s_jax.load(elsewhere, own_code=True).trained_on == ["here", "there"]
