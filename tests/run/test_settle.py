"""What a config leaves open is settled by the run that is there, by the data, and by the number of steps."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys

import pytest

from hap2s_jax.data import advice
from hap2s_jax.data.splits import validation_classes
from hap2s_jax.errors import UserError
from hap2s_jax.run import config as configs
from hap2s_jax.run.run import run
from hap2s_jax.run.settle import settle
from hap2s_jax.training.optimizer import create_schedule

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))
import trees

SHIPPED = sorted(p.stem for p in (pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def folder(root, argument="scratch"):
    config = importlib.import_module("configs.folder").get_config(argument)
    config.data.data_dir = str(root)
    return config


def images(root, classes, count=4):
    for c in range(classes):
        for n in range(count):
            trees.put(root / f"{c:03d}" / f"{n}.png", trees.encoded(trees.picture(10 * c + n), "PNG"))
    return root


@pytest.mark.parametrize(
    ("classes", "count", "chosen"),
    [
        (6, 4, {"batch.classes": 3, "steps": 500, "data.validation_fraction": 0.0}),
        (10, 4, {"batch.classes": 3, "steps": 500, "data.validation_fraction": 0.1}),
        (
            44,
            20,
            {"batch.classes": 16, "steps": 600, "data.validation_fraction": 0.1, "schedule.warmup_steps": 37},
        ),
    ],
)
def test_batches_and_steps_follow_the_data(tmp_path, classes, count, chosen):
    config = folder(images(tmp_path, classes, count))
    note, *about = settle(config, tmp_path / "run")
    found = configs.flatten(config)
    held_out = 0 if classes == 6 else 2
    told = f"{held_out} of {classes // 2} training classes are set aside for validation and not trained on"
    assert [line.split(";")[0] for line in about[:-1]] == ([told] if held_out else [])
    assert about[-1].startswith(
        f"the last checkpoint is reported, not the best: {held_out} validation classes are too few"
    )
    assert found["evaluate.weights"] == "last"
    assert {key: found[key] for key in chosen} == chosen
    assert None not in (found["evaluate.every_steps"], found["checkpoint.every_steps"])
    for key in ("batch.classes", "steps", "schedule.warmup_steps"):
        assert f"{key}={found[key]}" in note
    # What is given stays, and the rest follows it.
    config = folder(tmp_path)
    config.steps, config.batch.classes = 400, 2
    settle(config, tmp_path / "run")
    assert (config.steps, config.batch.classes, config.schedule.warmup_steps) == (400, 2, 25)
    assert config.evaluate.every_steps == config.checkpoint.every_steps == 50


@pytest.mark.parametrize("fraction", [None, 0.3])
def test_a_share_of_validation_classes_does_not_count_where_the_data_name_them(tmp_path, fraction):
    for part in ("train", "validation", "test"):
        images(tmp_path / part, 4)
    config = folder(tmp_path)
    config.data.validation_fraction = fraction
    notes = settle(config, tmp_path / "run")
    assert not any("set aside" in line for line in notes)
    assert any("data.validation_fraction has no effect" in line for line in notes) == (fraction is not None)
    assert any("4 validation classes are too few" in line for line in notes)


@pytest.mark.parametrize(
    ("classes", "held_out", "weights"),
    [(3, 0, "last"), (4, 2, "last"), (39, 4, "last"), (40, 10, "best"), (99, 10, "best"), (300, 30, "best")],
)
def test_as_many_validation_classes_as_the_choice_needs_where_they_do_not_cost_too_much(
    classes, held_out, weights
):
    chosen = validation_classes(classes, advice.validation_fraction(classes), seed=0)
    assert (len(chosen), advice.weights(len(chosen))) == (held_out, weights)


def test_without_data_it_is_what_large_data_would_get():
    config = folder("nowhere")
    settle(config)
    assert (config.batch.classes, config.steps, config.schedule.warmup_steps) == (16, 8000, 500)
    with pytest.raises(UserError, match=r"data.data_dir: must name a folder"):
        settle(folder("nowhere"), pathlib.Path("no_run"))


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in ("common", "fine_grained", "reid")])
def test_every_shipped_config_takes_few_steps(name):
    module = importlib.import_module(f"configs.{name}")
    arguments = [None, "bot"] if "import reid" in pathlib.Path(module.__file__).read_text() else [None]
    for argument in arguments:
        for steps in (1, 90, 400):
            config = module.get_config(argument)
            config.steps = steps
            notes = settle(config)
            create_schedule(
                learning_rate=config.optimizer.learning_rate, steps=config.steps, **config.schedule
            )
            assert config.evaluate.every_steps <= steps
            assert config.checkpoint.every_steps <= steps
            usual = module.get_config(argument)
            if name not in ("folder", "hf") and usual.schedule.warmup_steps > steps:
                assert (
                    f"schedule.warmup_steps from {usual.schedule.warmup_steps} to {steps // 10}" in notes[0]
                )
        # And is otherwise as it was.
        config, usual = module.get_config(argument), module.get_config(argument)
        if name not in ("folder", "hf"):  # which leave it to the data
            assert settle(config) == []
            assert configs.flatten(config) == configs.flatten(usual)


def begun(config, workdir, without=()):
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    configs.save(config, workdir)
    values = json.loads((workdir / configs.FILE_NAME).read_text())
    for key in without:  # as the versions had it that numbered no formats
        del values["data"][key]
        values.pop("format", None)
    (workdir / configs.FILE_NAME).write_text(json.dumps(values))


def test_an_older_run_goes_on_as_it_began(tmp_path):
    config = importlib.import_module("configs.emoji").get_config("tiny")
    begun(config, tmp_path, without=("exif", "background", "max_pixels"))
    with pytest.raises(
        UserError, match=r"data.background was None, is \[255, 255, 255\]; data.exif was False"
    ):
        configs.check_resumable(config, tmp_path)
    notes = settle(config, tmp_path)
    configs.check_resumable(config, tmp_path)
    assert (config.data.exif, config.data.background, config.data.max_pixels) == (False, None, 2**28)
    assert "note: this run began before data.exif existed, and continues with data.exif=False" in notes


def test_a_run_that_was_begun_keeps_what_was_chosen_though_the_data_grow(tmp_path):
    config = folder(images(tmp_path / "own", 10))
    settle(config, tmp_path / "run")
    begun(config, tmp_path / "run")
    images(tmp_path / "own", 60)
    again = folder(tmp_path / "own")
    assert settle(again, tmp_path / "run") == []
    assert configs.flatten(again) == configs.flatten(config)


def test_three_training_classes_train_and_a_finished_run_says_so(tmp_path, capsys):
    config = folder(images(tmp_path / "own", 6))
    config.encoder.name, config.encoder.width, config.encoder.stem = "resnet10", 4, "small32"
    config.data.image_size, config.steps, config.num_devices = (32, 32), 2, 1
    config.evaluate.untrained = config.log.tensorboard = False
    results = run(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "chosen for these data: data.validation_fraction=0.0, batch.classes=3" in out
    assert results["weights_of_step"] == 2
    assert "raw pixels" in results["baselines"]
    run(config, tmp_path / "run")
    assert "holds a finished run of 2 steps" in capsys.readouterr().out


def test_batches_without_pairs_are_refused_for_losses_that_need_them(tmp_path):
    from hap2s_jax.run.learner import Learner

    for loss, pairing in (("hap2s_e", ""), ("margin", ""), ("softmax", "batch_hard")):
        for key in ("classes", "images_per_class"):
            config = folder("nowhere", f"tiny,loss={loss}")
            config.auxiliary.name, config.batch[key] = pairing, 1
            message = rf"batch.{key} is 1; it should be at least 2: {pairing or loss} compares"
            with pytest.raises(UserError, match=message):
                Learner.create(config)
    config = importlib.import_module("configs.folder").get_config("tiny,loss=softmax")
    config.batch.images_per_class = 1
    Learner.create(config)
