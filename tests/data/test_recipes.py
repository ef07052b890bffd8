"""Every recipe trains three steps, at reduced size, on images in the official layouts."""

from __future__ import annotations

import importlib
import re

import jax
import numpy as np
import pytest
import trees

from hap2s_jax import main
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.metric_log import read_metrics
from hap2s_jax.run.learner import Learner
from hap2s_jax.run.trainer import Trainer
from hap2s_jax.training.optimizer import OPTIMIZERS, SCHEDULES


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    trees.market(root / "market1501", people=6)
    trees.cub(root / "CUB_200_2011", classes=12, images=5)
    return root


def tiny(name, arg, data_dir):
    config = importlib.import_module(f"configs.{name}").get_config(f"{arg},tiny")
    config.data.data_dir = str(data_dir)
    config.num_devices = 1
    config.compilation_cache = ""
    return config


# The default recipes of both kinds run in test_train_on_benchmarks.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arg"), [("market1501", "trinet"), ("market1501", "agw"), ("cub", "scratch,loss=hap2s_p")]
)
def test_a_recipe_makes_three_updates(data_dir, name, arg):
    job = Trainer.create(tiny(name, arg, data_dir).lock())
    state = job.parallel.replicate(job.initial_state())
    for _, batch in zip(range(3), job.train_batches(0), strict=False):
        state, metrics = job.update(state, batch)
        assert 0 < float(metrics["loss"]) < 1e4
    assert int(state.step) == 3


@pytest.mark.parametrize("own", ["Tiny", "tiny_nnx"])
def test_an_encoder_of_ones_own_trains_by_config(data_dir, own, monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath))
    config = tiny("market1501", "trinet", data_dir)
    config.encoder = {"name": f"tests.models.my_encoders:{own}", "embedding_dim": 8}
    config.num_devices = 2
    job = Trainer.create(config.lock())
    before = jax.device_get(job.initial_state())
    state, _ = job.update(job.parallel.replicate(before), next(job.train_batches(0)))
    assert job.embeddings(state, job.dataset.test)[0].shape[1] == 8
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), jax.device_get(state), before)
    assert any(jax.tree.leaves(moved.params))
    assert all(jax.tree.leaves(moved.batch_stats))


def test_the_recipe_of_the_page_is_a_config(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath))
    page = (request.config.rootpath / "docs" / "recipes.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "recipes.md", "exec"), names)
    program = Learner.create(names["get_config"]().lock())
    assert set(program.losses) == {"metric", "auxiliary"}
    for name in (*OPTIMIZERS, *SCHEDULES):
        assert name in page


@pytest.mark.slow
def test_a_whole_run_with_neck_identification_and_moving_average(tmp_path, data_dir):
    results = main.run(tiny("market1501", "bot,autoaugment,ema", data_dir), tmp_path)
    records = [record for record in read_metrics(tmp_path) if "train/loss" in record]
    assert len(records) == results["steps"] == 3
    assert all(0 < record["train/auxiliary_loss"] < 100 for record in records)
    assert results["config"]["evaluate"]["distance"] == "cosine"
    # Both the moving average, which the run is judged by, and the weights that it averages.
    assert {"mAP", "live/mAP"} <= results["validation"].keys()
    assert "live/mAP" not in results["test"]


def test_recipes_differ_as_their_papers_do():
    market = importlib.import_module("configs.market1501").get_config
    paper, trinet, bot, agw = map(market, (None, "trinet", "bot", "agw"))
    assert (paper.loss.name, paper.encoder.hidden_dim, paper.encoder.embedding_dim) == ("hap2s_e", 1024, 128)
    assert (trinet.loss.name, trinet.loss.soft_margin, trinet.loss.margin) == ("batch_hard", True, 0)
    assert not paper.auxiliary.name
    for config in (bot, agw):
        # 120 passes over 12,936 images, 64 at a time.
        assert config.steps == 120 * 203
        assert config.schedule.warmup_steps == 10 * 203
        passes = [10 + 110 * part for part in config.schedule.boundaries]
        assert passes == pytest.approx([40, 70])
        assert (config.encoder.bnneck, config.encoder.last_stride, config.encoder.embedding_dim) == (
            True,
            1,
            0,
        )
        assert (config.auxiliary.name, config.auxiliary.label_smoothing) == ("softmax", 0.1)
        assert not config.auxiliary.use_bias
        assert config.evaluate.distance == "cosine"
    assert (agw.encoder.pooling, agw.loss.name) == ("gem", "weighted_regularised_triplet")
    cub = importlib.import_module("configs.cub").get_config()
    assert cub.encoder.freeze_bn_stats
    assert cub.optimizer.learning_rate * cub.optimizer.trunk_factor == pytest.approx(1e-5)
    for config in (paper, trinet, bot, agw, cub):
        assert config.pretrained.source == "hf://timm/resnet50.tv_in1k"


def test_arguments_join():
    market = importlib.import_module("configs.market1501").get_config
    config = market("agw,loss=hap2s_p,ema,autoaugment,scratch")
    assert (config.loss.name, config.encoder.pooling, config.ema_decay) == ("hap2s_p", "gem", 0.999)
    assert config.augment.auto_augment == 0.1
    assert config.pretrained.source == ""
    with pytest.raises(UserError, match="names several recipes; choose one of paper, trinet, bot, agw"):
        market("bot,agw")
    with pytest.raises(UserError, match="did you mean 'trinet'"):
        market("trynet")
