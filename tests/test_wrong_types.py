"""The public functions given what is of no sensible type: one line that names the argument."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import hap2s_jax
from hap2s_jax import losses, models
from hap2s_jax.evaluation import protocols, retrieval

# Any: a type checker would not let them be given what they are given here.
load: Any = hap2s_jax.load
create: Any = models.create
evaluate: Any = protocols.evaluate
rank_matches: Any = retrieval.rank_matches
nearest: Any = retrieval.nearest
make_loss: Any = losses.create

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
LABELS = np.arange(8) % 2


def _told(call, *names):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    text = str(caught.value)
    assert any(name in text for name in names), text
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize("name", losses.names())
def test_hyperparameters(name):
    loss = make_loss(name)
    arguments = {"key": jax.random.key(0)} if loss.draws else {}
    if loss.has_params:
        arguments["params"] = loss.init_params(jax.random.key(0), 8, 4)
    for key, usual in losses.hyperparameters(name).items():
        for value in (None, "soft", [1, 2], {}):
            if not (isinstance(usual, str) and isinstance(value, str)):
                _told(lambda k=key, v=value: make_loss(name, **{k: v}), key)
            if isinstance(usual, float):
                function = loss._entry.function
                given = loss._entry.fixed | arguments | {key: value}
                _told(lambda f=function, g=given: f(X, LABELS, **g), key)


BATCHES = {
    "embeddings missing": (None, LABELS),
    "embeddings of text": (np.full((8, 4), "a"), LABELS),
    "one embedding": (X[0], LABELS),
    "complex embeddings": (X + 1j, LABELS),
    "labels missing": (X, None),
    "labels of text": (X, np.array(list("aabbccdd"))),
    "labels of halves": (X, LABELS + 0.5),
    "too few labels": (X, LABELS[:5]),
    "labels in a column": (X, LABELS[:, None]),
}


@pytest.mark.parametrize("batch", BATCHES)
def test_batches(batch):
    wanted = ("embeddings",) if "embedding" in batch else ("labels",)
    for name in ("hap2s_e", "softmax", "msml", "circle", "margin"):
        loss = make_loss(name)
        arguments = {"key": jax.random.key(0)} if loss.draws else {}
        arguments["params"] = loss.init_params(jax.random.key(0), 8, 4)
        _told(lambda f=loss, a=arguments: f(*BATCHES[batch], **a), *wanted)
    for function in (evaluate, rank_matches):
        _told(lambda f=function: f(*BATCHES[batch]), *wanted)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: evaluate(X, LABELS, distance=None), "distance"),
        (lambda: rank_matches(X, LABELS, distance=3), "distance"),
        (lambda: nearest(X, LABELS, k="a"), "k must be"),
        (lambda: nearest(X, LABELS, k=1.5), "k must be"),
        (lambda: create(None), "name"),
        (lambda: create("resnet10", width="a"), "width"),
        (lambda: create("resnet10", embedding_dim=None), "embedding_dim"),
        (lambda: create("resnet10", pooling=3), "pooling"),
        (lambda: create("resnet10", stem=None), "stem"),
        (lambda: create("resnet10", dtype=3), "dtype"),
        (lambda: create("resnet10", dtype="float33"), "dtype"),
        (lambda: create("resnet10", bnneck="yes"), "bnneck"),
        (lambda: create("dinov2_vits14", normalize=None), "normalize"),
        (lambda: load(None), "workdir"),
    ],
)
def test_options(call, name):
    _told(call, name)
