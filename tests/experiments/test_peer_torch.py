"""The torch side of the main job: the same embeddings from the same weights, the same loss, the same first updates."""

import importlib
import pathlib
import sys

import jax
import numpy as np
import pytest

from configs import emoji
from hap2s_jax import hap2s_loss, models
from hap2s_jax.losses.weightings import exponential, polynomial

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # its threads wait by spinning
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "experiments"))
peer_torch, torch_encoder = (importlib.import_module(name) for name in ("peer_torch", "bench.torch_encoder"))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "resnet10", "width": 4, "stem": "small64", "pooling": "grid2", "embedding_dim": 16}
        | {"embedding_bn": True, "normalize": True},
        {"name": "resnet26", "width": 4, "embedding_dim": 0},
    ],
)
def test_the_same_weights_give_the_same_embeddings(settings):
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype(np.uint8)
    ours = models.create(**settings)
    variables = models.initialize(ours, jax.random.key(0), images)
    theirs = torch_encoder.Encoder(settings)
    theirs.take(variables)
    found = theirs.eval()(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(found, ours.apply(variables, images).embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "weighting"), [("hap2s_e", exponential(0.5)), ("hap2s_p", polynomial(10.0))]
)
def test_hap2s_is_ours(name, weighting):
    embeddings = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])
    strength = 0.5 if name == "hap2s_e" else 10.0
    found = peer_torch.hap2s(torch.from_numpy(embeddings), torch.from_numpy(labels), name, strength, 0.3)
    np.testing.assert_allclose(
        found, hap2s_loss(embeddings, labels, weighting=weighting, margin=0.3), rtol=1e-5
    )


@pytest.mark.slow
def test_both_sides_begin_alike():
    config = emoji.get_config("tiny")
    config.steps, config.num_devices, config.evaluate.zooms = 2, 1, False
    both = peer_torch.compare(config, turn=1)
    first, second = (np.array([both[side]["losses"][step] for side in ("ours", "torch")]) for step in (0, 1))
    np.testing.assert_allclose(first[0], first[1], rtol=1e-4)
    np.testing.assert_allclose(second[0], second[1], rtol=1e-2)  # Adam's first update makes much of rounding
    assert abs(both["ours"]["mAP"] - both["torch"]["mAP"]) < 0.02
