"""`python -m hap2s_jax.evaluate` on a run: which weights, features and views, and that it leaves the run alone."""

from __future__ import annotations

import importlib
import json
import shutil

import ml_collections
import numpy as np
import pytest
from PIL import Image

from hap2s_jax import evaluate as command
from hap2s_jax.errors import UserError
from hap2s_jax.run import config as configs
from hap2s_jax.run import facts
from hap2s_jax.run.run import run as train
from hap2s_jax.run.trainer import Trainer

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 64, 32, 3)).astype(np.uint8)


def create(root, **changes):
    config = importlib.import_module("configs.folder").get_config("tiny")
    config.data.data_dir = str(root)
    config.num_devices = 1
    config.compilation_cache = ""
    config.encoder.bnneck = True
    config.evaluate.enlarge = 1.0
    config.evaluate.keep_aspect = False
    config.update_from_flattened_dict(changes)
    return Trainer.create(ml_collections.FrozenConfigDict(config))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A job over few images and a workdir with its untrained weights, as if trained for 0 and 1 steps."""
    root = tmp_path_factory.mktemp("own")
    for number in range(24):
        image = np.random.default_rng(number).integers(0, 256, (8, 4, 3)).astype(np.uint8)
        path = root / f"class {number % 8}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).resize((32, 64)).save(path)
    workdir = tmp_path_factory.mktemp("run")
    job = create(root)
    configs.save(job.config, workdir)
    state = job.initial_state()
    # The running statistics of a trained neck are not those of an untrained one.
    state.batch_stats["head"]["neck_bn"]["mean"] = state.batch_stats["head"]["neck_bn"]["mean"] + 0.5
    checkpointer = job.checkpointer(workdir)
    checkpointer.save(state, {"mAP": 0.5, "map@r": 0.5})
    checkpointer.close()
    return root, workdir, job, state


def test_figures_are_those_of_the_run(run, tmp_path, capfd):
    _, workdir, job, state = run
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    assert command.main([f"--workdir={workdir}", f"--json={tmp_path / 'out.json'}", "--by=class"]) == 0
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before  # a run may be going on in there
    written = json.loads((tmp_path / "out.json").read_text())
    expected = job.measure(*job.embeddings(state, job.dataset.test), job.dataset.test)
    assert written["figures"] == pytest.approx(expected)
    assert written["settings"]["weights of step"] == 0
    said = capfd.readouterr()
    assert "weights of step 0" in said.out
    assert "WARNING" not in said.err


def test_other_sets_are_told_by_their_split_and_two_of_one_name_are_two(run, capfd):
    root, workdir, *_ = run
    for name, parts in (("closed", ("train", "train", "test")), ("apart", ("train", "test", "test"))):
        rows = [
            f"class {n % 8}/{n}.png,{n % 8},{parts[n // 8]}"
            for n in range(24)
            if name == "closed" or n % 8 < 4
        ]
        (root / f"{name}.csv").write_text("\n".join(["path,label,split", *rows]))
    sets = [f"--data=folder:{root / name}.csv" for name in ("closed", "apart")]
    assert command.main([f"--workdir={workdir}", *sets]) == 0
    said = capfd.readouterr().out
    assert "8 of the 8 test classes have training or validation images too: a closed split" in said
    assert "All data sets" in said
    assert command.main([f"--workdir={workdir}", *sets[:1] * 2]) == 1
    assert "a data set is given twice" in capfd.readouterr().err


def test_views_and_feature_are_chosen_at_the_command_line(run):
    _, workdir, job, state = run
    plain = command.from_workdir(str(workdir)).embeddings
    flipped = command.from_workdir(str(workdir), views=("flip",)).embeddings
    images = job.images(job.dataset.test, np.arange(len(plain)))
    variables = job.variables(state)
    mirrored = np.asarray(job.embed(variables, images[:, :, ::-1]))
    both = plain + mirrored
    np.testing.assert_allclose(flipped, both / np.linalg.norm(both, axis=1, keepdims=True), atol=1e-5)
    before_neck = command.from_workdir(str(workdir), feature="embedding").embeddings
    neck = before_neck - state.batch_stats["head"]["neck_bn"]["mean"]
    neck /= np.linalg.norm(neck, axis=1, keepdims=True)
    np.testing.assert_allclose(
        plain, neck, atol=1e-3
    )  # the neck's scale is 1, its variance 1, but for epsilon
    assert np.abs(before_neck - plain).max() > 0.1


def test_views_and_feature_of_the_config_are_those_of_training_s_own_evaluation(run):
    root, _, job, state = run
    variables = job.variables(state)
    changed = create(
        root, **{"evaluate.flip": True, "evaluate.five_crops": True, "evaluate.feature": "features"}
    )
    found = np.asarray(changed.embed(variables, IMAGES))
    assert found.shape == (4, 64)  # eight times the width, not the embedding
    mirrored = np.asarray(changed.embed(variables, IMAGES[:, :, ::-1]))
    # The corners change places and the centre stays, so the mirror image has the same views.
    np.testing.assert_allclose(found, mirrored, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate.feature": "necks"}, "unknown evaluate.feature 'necks'"),
        ({"evaluate.distance": "euclid"}, "unknown evaluate.distance 'euclid'; did you mean 'euclidean'"),
        (
            {"checkpoint.keep_best": 0},
            "checkpoint.keep_best.* at least 1, since evaluate.weights wants the best",
        ),
        ({"evaluate.crop": 1.5}, "evaluate: crop must lie between 0 and 1, but is 1.5"),
    ],
)
def test_a_mistake_in_the_config_is_named(run, changes, message):
    with pytest.raises(UserError, match=message):
        create(run[0], **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--views=flop"], "unknown view (--views) 'flop'; did you mean 'flip'"),
        (["--feature=embeding"], "did you mean 'embedding'"),
        (["--step=7"], "no checkpoint of step 7"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_line(run, capsys, arguments, message):
    assert command.main([f"--workdir={run[1]}", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_workdir_without_a_checkpoint_is_one_line(run, tmp_path, capsys):
    configs.save(run[2].config, tmp_path)
    assert command.main([f"--workdir={tmp_path}"]) == 1
    assert "holds no finished checkpoint; train on with hap2s_jax.main" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_run_of_an_older_version_is_one_line(run, tmp_path, capsys):
    workdir = tmp_path / "old"
    shutil.copytree(run[1], workdir)
    path = workdir / configs.FILE_NAME
    config = json.loads(path.read_text())
    del config["evaluate"]["zooms"], config["format"]
    path.write_text(json.dumps(config))
    found = command.from_workdir(str(workdir)).embeddings  # a view that it cannot have had
    np.testing.assert_array_equal(found, command.from_workdir(str(run[1])).embeddings)
    del config["data"]["quarter_turns"]
    path.write_text(json.dumps(config))
    assert command.main([f"--workdir={workdir}"]) == 1
    error = capsys.readouterr().err
    assert "another version" in error
    assert "quarter_turns" in error
    assert error.count("\n") == 1


def test_a_run_is_measured_on_another_machine_and_told_of_other_data(run, tmp_path, capsys):
    root, workdir, job, _ = run
    moved = tmp_path / "run"
    shutil.copytree(workdir, moved)
    facts.save_data_facts(facts.data_facts(job.dataset), moved)
    config = json.loads((moved / "config.json").read_text())
    config["num_devices"] = 64  # and its batches are of as many images
    config["loss"] = {"name": "that the config's own file registered"}
    config["data"]["data_dir"] = "/somewhere/else"
    (moved / "config.json").write_text(json.dumps(config))
    shutil.copytree(root, tmp_path / "data")
    expected = command.from_workdir(str(workdir)).embeddings
    found = command.from_workdir(str(moved), data_dir=str(tmp_path / "data")).embeddings
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert "warning" not in capsys.readouterr().err

    shutil.copytree(root / "class 0", tmp_path / "data" / "another class")
    command.from_workdir(str(moved), data_dir=str(tmp_path / "data"))
    assert "warning: the train part of folder was" in capsys.readouterr().err


def test_images_none_of_which_can_be_read_are_one_line_as_early_as_it_is_known(run, tmp_path, capfd):
    root, *_ = run
    shutil.copytree(root, tmp_path / "own")
    rows = [f"class {n % 8}/{n}.png,{n % 8},{'train' if n % 8 < 4 else 'test'}" for n in range(24)]
    (tmp_path / "own" / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    tested = [path for n in range(4, 8) for path in (tmp_path / "own" / f"class {n}").iterdir()]
    for path in tested:
        path.write_bytes(b"no image")
    says = "none of the 12 own test images can be read, such as "
    settings = {"data.on_unreadable": "skip", "evaluate.untrained": False, "steps": 2, "batch.classes": 2}
    settings |= {"evaluate.every_steps": 2, "checkpoint.every_steps": 2, "schedule.warmup_steps": 1}
    config = importlib.import_module("configs.folder").get_config("tiny")
    config.update_from_flattened_dict(
        {"data.data_dir": str(tmp_path / "own" / "all.csv"), "num_devices": 1, **settings}
    )
    with pytest.raises(UserError, match=says):  # known only when they are read
        train(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    config = configs.load(tmp_path / "run")
    for path in tested:
        path.unlink()
    with pytest.raises(UserError, match=says):
        train(config, tmp_path / "again")
    assert not (tmp_path / "again" / "checkpoints").exists()
    assert command.main([f"--workdir={tmp_path / 'run'}"]) == 1
    assert f"error: {says}" in capfd.readouterr().err
