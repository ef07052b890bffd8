from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_batches import clustered

from hap2s_jax import exponential, hap2s_loss, losses, polynomial
from hap2s_jax.errors import UserError
from hap2s_jax.losses import registry
from hap2s_jax.losses.rows import SampleCall


def test_names_and_hyperparameters():
    assert {"hap2s_e", "hap2s_p", "batch_hard", "point_to_set_mean"} <= set(losses.names())
    assert losses.hyperparameters("hap2s_e") == {
        "sigma": 0.5,
        "margin": 0.3,
        "soft_margin": False,
        "distance": "euclidean",
    }
    for name in losses.names():
        assert all(isinstance(v, str | float | bool | int) for v in losses.hyperparameters(name).values())


def test_create_is_the_loss_with_its_hyperparameters():
    x, labels = clustered(0, [3, 4, 2])
    value, stats = losses.create("hap2s_p", alpha=5, margin=1)(x, labels, with_stats=True)
    assert value == hap2s_loss(x, labels, weighting=polynomial(5.0), margin=1.0)
    assert stats["valid_anchors"] == 9
    loss = losses.create("hap2s_e")
    assert loss(x, labels, with_stats=False, sigma=2.0) == hap2s_loss(x, labels, weighting=exponential(2.0))
    assert not loss.has_params
    assert loss.init_params(jax.random.key(0), 3, 16) is None


def test_mistakes_suggest_the_right_name():
    with pytest.raises(UserError, match=r"unknown loss 'hap2s_r'.*did you mean 'hap2s_"):
        losses.create("hap2s_r")
    with pytest.raises(UserError, match=r"'sigmma'.*did you mean 'sigma'"):
        losses.create("hap2s_e", sigmma=1.0)
    with pytest.raises(UserError, match="margin is 'big'; it should be a float"):
        losses.create("hap2s_e", margin="big")
    with pytest.raises(UserError, match="soft_margin is 1; it should be a bool"):
        losses.create("hap2s_e", soft_margin=1)
    with pytest.raises(ValueError, match="sigma is -1"):
        losses.create("hap2s_e", sigma=-1.0)(np.ones((2, 2), np.float32), np.arange(2))


@pytest.mark.parametrize(
    ("name", "key", "wrong"),
    [
        ("hap2s_e", "sigma", (0.0, float("nan"))),
        ("hap2s_p", "alpha", (-1.0,)),
        ("hap2s_ranked", "ratio", (0.0, -0.5, 2.0)),
        ("hap2s_hardest", "count", (0,)),
        ("contrastive", "power", (0,)),
        ("multi_similarity", "alpha", (0.0,)),
        ("multi_similarity", "beta", (-1.0,)),
        ("circle", "gamma", (0.0,)),
        ("supervised_contrastive", "temperature", (0.0,)),
        ("nt_xent", "temperature", (-0.1,)),
        ("n_pair", "temperature", (0.0,)),
        ("margin", "nu", (-1.0,)),
        ("margin", "cutoff", (0.0,)),
        ("softmax", "label_smoothing", (-0.1, 1.0)),
        ("arcface", "scale", (0.0,)),
        ("proxy_nca", "scale", (-3.0,)),
    ],
)
def test_a_number_without_a_meaning_is_refused(name, key, wrong):
    losses.create(name).check()
    for value in wrong:
        with pytest.raises(ValueError, match=f"{key} is {value}; it should be"):
            losses.create(name, **{key: value}).check()


def test_a_whole_number_is_asked_for():
    for count in (2.5, True):
        with pytest.raises(ValueError, match=f"count is {count}; it should be a whole number"):
            losses.hardest(count)


def test_every_loss_says_the_same_by_default():
    x, labels = clustered(0, [3, 4, 2])
    assert losses.create("batch_hard")(x, labels).shape == losses.batch_hard_loss(x, labels).shape == ()


def own_loss(embeddings, labels, *, margin=0.5, **arguments: Unpack[SampleCall]):  # evaluated, unlike ours
    return jnp.asarray(margin)


def test_a_loss_of_the_users_own(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    losses.register("own", own_loss)
    assert not losses.create("own").has_blocks
    losses.register("own", lambda embeddings, labels, *, margin=0.7, **arguments: jnp.asarray(margin))
    assert losses.hyperparameters("own") == {"margin": 0.7}
    assert losses.create("own").has_blocks
    with pytest.raises(ValueError, match="'hap2s_e' is a loss of hap2s_jax"):
        losses.register("hap2s_e", own_loss)
