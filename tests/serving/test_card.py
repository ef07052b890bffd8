"""A whole tiny run leaves a model card and a threshold that belong to the weights that `load` finds."""

from __future__ import annotations

import importlib
import json
import pathlib

import pytest

import hap2s_jax
from hap2s_jax import main
from hap2s_jax.reporting.card import model_card
from hap2s_jax.serving import calibration

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        config = importlib.import_module("configs.emoji").get_config("tiny")
    config.log.tensorboard = False
    config.steps = 2
    config.num_devices = 1
    config.evaluate.untrained = False
    config.evaluate.weights = "best"
    config.ema_decay = 0.5
    workdir = tmp_path_factory.mktemp("card") / "run"
    return workdir, main.run(config, workdir)


def test_the_card_says_what_the_results_say(finished):
    workdir, results = finished
    text = (workdir / "model_card.md").read_text()
    assert f"{results['test']['mAP']:.3f}" in text
    for said in ("raw pixels", "## Threshold", "Seed 0", "class: every test image", "jax ", "moving average"):
        assert said in text
    assert json.loads(text.split("```json\n")[1].split("\n```")[0])["seed"] == 0


def test_the_figures_are_a_narrow_table_and_counts_are_counts(finished):
    _, results = finished
    text = model_card(results, data={}, protocols=("class",), parameters=1)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert 4 <= max(line.count("|") for line in table) <= 7
    (counted,) = [line for line in table if line.startswith("| class_queries |")]
    assert counted.endswith(f"| {int(results['test']['class_queries']):,} |")
    assert "the best by mAP on the validation classes" in text.replace("map@r", "mAP")


def test_every_metric_that_is_measured_is_defined(finished):
    _, results = finished
    text = model_card(results, data={}, protocols=("class", "query_gallery"), parameters=1)
    defined = {line[2:].split(":")[0] for line in text.splitlines() if line.startswith("- ")}
    kinds = {
        "recall@k" if n.startswith("recall@") else "rank-k" if n.startswith("rank-") else n
        for n in results["test"]
    }
    assert {name for name in kinds if "queries" not in name} <= defined


def test_the_card_says_when_test_classes_were_trained_on(finished):
    _, results = finished
    arguments = {"data": {}, "protocols": ("class",), "parameters": 1}
    assert "occur neither in training" in model_card(results, **arguments)
    text = model_card(results, **arguments, seen_classes=12)
    assert "12 test classes have images in training or validation" in text
    assert "occur neither in training" not in text


def test_the_threshold_is_of_the_weights_that_load_finds(finished):
    workdir, results = finished
    encoder = hap2s_jax.load(workdir)
    assert encoder.step == results["weights_of_step"]
    assert calibration.read(workdir, encoder.fingerprint) is not None
    assert encoder.fingerprint in (workdir / "model_card.md").read_text()
    assert (workdir / "thresholds.png").stat().st_size > 0
