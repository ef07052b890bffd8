"""The losses that came after HAP2S: numbers by hand, float64 loops written from the papers, the authors' own values."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_batches import clustered
from loss_oracles import distance

from hap2s_jax import exponential, hap2s_loss, losses

X, LABELS = clustered(30, [4, 3, 1, 5, 3], dim=6)
# Made by the authors' code, on the same embeddings: its values and gradients, and nothing else of it.
PUBLIC = json.loads((pathlib.Path(__file__).parent / "public_values.json").read_text())


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


def ranking(gaps, a, keep_anchor):
    """Similarities of the anchor's ranking, and which of its keys are positives."""
    keys = [k for k in range(len(LABELS)) if keep_anchor or k != a]
    return {k: 1 - gaps[a][k] for k in keys}, [k for k in keys if LABELS[k] == LABELS[a]]


def smooth_ap(gaps, temperature, keep_anchor):
    terms = []
    for a in range(len(LABELS)):
        s, near = ranking(gaps, a, keep_anchor)
        if len([p for p in near if p != a]):
            precisions = []
            for i in near:
                before = {k: sigmoid((s[k] - s[i]) / temperature) for k in s if k != i}
                precisions.append((1 + sum(before[p] for p in near if p != i)) / (1 + sum(before.values())))
            terms.append(1 - sum(precisions) / len(near))
    return sum(terms) / len(terms)


def recall_at_k(gaps, ks, temperature, rank_temperature):
    terms = []
    for a in range(len(LABELS)):
        s, near = ranking(gaps, a, False)
        if near:
            ranks = [1 + sum(sigmoid((s[k] - s[i]) / temperature) for k in s if k != i) for i in near]
            recalls = [
                min(sum(sigmoid((k - r) / rank_temperature) for r in ranks), k) / min(k, len(near))
                for k in ks
            ]
            terms.append(1 - sum(recalls) / len(ks))
    return sum(terms) / len(terms)


def adasp(gaps, labels, t, form):
    terms = []
    classes = [[i for i, label in enumerate(labels) if label == c] for c in sorted(set(labels))]
    for own in (c for c in classes if len(c) > 1):
        far = [1 - gaps[i][j] for i in own for j in range(len(labels)) if j not in own]
        near = [[1 - gaps[i][j] for j in own] for i in own]
        negative = t * math.log(sum(math.exp(s / t) for s in far))
        hard = -t * math.log(sum(math.exp(-s / t) for row in near for s in row))
        least = t * math.log(sum(1 / sum(math.exp(-s / t) for s in row) for row in near))
        share = 2 * hard * least / (hard + least) if hard >= 0 else 0
        positive = {"sp_h": hard, "sp_lh": least, "adasp": share * hard + (1 - share) * least}[form]
        terms.append(math.log(1 + math.exp((negative - positive) / t)))
    return sum(terms) / len(terms)


def gaps_of(kind="cosine"):
    return [[distance(a, b, kind) for b in X] for a in X]


# Two samples of each class on the same axis: every cosine is 1 within a class and 0 between classes.
ON_AXES = {
    # Both negatives stand e^-1 behind the positive, softly 1 / (1 + e) before it; so does the anchor, which ties.
    "smooth_ap": ({"temperature": 1.0, "with_anchor": False}, 1 - 1 / (1 + 2 / (1 + np.e))),
    "recall_at_k_surrogate": (
        {"ks": "1", "temperature": 1.0},
        1 - 1 / (1 + np.exp(2 / (1 + np.e))),
    ),
    # Four pairs at 1 within a class, four at 0 across.
    "adasp": ({"temperature": 1.0, "form": "sp_h"}, np.log(1 + 4 * 4 * np.exp(-1))),
    "centroid_triplet": ({"margin": 3.0}, 0 - 2 + 3),
    "weighted_regularised_triplet": ({}, np.log(1 + np.exp(-np.sqrt(2)))),
    "cosface": ({"margin": 0.5, "scale": 1.0}, np.log(1 + np.exp(-0.5))),
    "subcenter_arcface": ({"margin": 0.0, "scale": 1.0, "centres": 1}, np.log(1 + np.exp(-1))),
    "soft_triple": ({"margin": 0.5, "scale": 1.0, "centres": 1}, np.log(1 + np.exp(-0.5))),
    "proxy_anchor": (
        {"alpha": 1.0, "margin": 0.0},
        np.log(1 + 2 * np.exp(-1)) + np.log(1 + 2),
    ),
}


@pytest.mark.parametrize("name", list(ON_AXES))
def test_numbers_by_hand(name):
    settings, expected = ON_AXES[name]
    eye = jnp.eye(2)
    learnt = {"cosface": {"kernel": eye}, "proxy_anchor": {"proxies": eye}}
    learnt |= {name: {"kernel": eye[:, None]} for name in ("subcenter_arcface", "soft_triple")}
    value = losses.create(name, **settings)(
        eye[jnp.array([0, 0, 1, 1])], [0, 0, 1, 1], params=learnt.get(name)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_rankings_are_loops():
    gaps = gaps_of()
    for keep in (False, True):
        got = losses.smooth_ap_loss(X, LABELS, temperature=0.1, with_anchor=keep)
        np.testing.assert_allclose(got, smooth_ap(gaps, 0.1, keep), rtol=1e-5)
    got = losses.recall_at_k_surrogate_loss(X, LABELS, ks=(1, 3), temperature=0.1, rank_temperature=0.5)
    np.testing.assert_allclose(got, recall_at_k(gaps, (1, 3), 0.1, 0.5), rtol=1e-5)


@pytest.mark.parametrize("name", ["smooth_ap", "recall_at_k_surrogate", "adasp"])
def test_gradients_made_by_hand_are_those_of_differences(name):
    with jax.enable_x64(True):
        x = jnp.asarray(X, jnp.float64)
        loss = functools.partial(losses.create(name, temperature=0.2), labels=LABELS)
        slope = jax.jit(jax.grad(loss))(x)
        direction = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))
        step = 1e-5
        difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
        if name != "adasp":  # whose shares carry no gradient
            np.testing.assert_allclose(jnp.sum(slope * direction), difference, rtol=1e-6)
        of_temperature = jax.grad(lambda t: loss(x, temperature=t))(0.2)
        if name == "smooth_ap":
            difference = (loss(x, temperature=0.2 + step) - loss(x, temperature=0.2 - step)) / (2 * step)
            np.testing.assert_allclose(of_temperature, difference, rtol=1e-6)
        assert np.isfinite(of_temperature)


@pytest.mark.parametrize("form", ["adasp", "sp_h", "sp_lh"])
def test_adasp_is_a_loop_over_classes(form):
    expected = adasp(gaps_of(), LABELS.tolist(), 0.3, form)
    np.testing.assert_allclose(losses.adasp_loss(X, LABELS, temperature=0.3, form=form), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["squared_euclidean", "cosine"])
def test_centroid_triplet_is_a_loop(kind):
    x, terms = X.astype(np.float64), []
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if kind == "cosine" else x
    for a, label in enumerate(LABELS):
        own = [k for k in range(len(x)) if LABELS[k] == label and k != a]
        if own:
            others = [x[c == LABELS].mean(0) for c in set(LABELS.tolist()) - {int(label)}]
            near = min(distance(x[a], c, kind) for c in others)
            terms.append(max(distance(x[a], x[own].mean(0), kind) - near + 0.5, 0))
    got = losses.centroid_triplet_loss(X, LABELS, distance=kind)
    np.testing.assert_allclose(got, np.mean(terms), rtol=1e-5)


def test_class_losses_are_loops():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True).astype(np.float64)
    random = np.random.default_rng(1)
    kernel = random.normal(size=(6, 3, 5))
    centres = kernel / np.linalg.norm(kernel, axis=0)
    arc, soft = [], []
    for a, label in zip(unit, LABELS, strict=True):
        similarities = np.einsum("d,dkc->kc", a, centres)
        nearest = similarities.max(0)
        logits = 16 * nearest
        logits[label] = 16 * math.cos(math.acos(nearest[label]) + 0.2)
        arc.append(np.log(np.exp(logits).sum()) - logits[label])
        weights = np.exp(similarities / 0.1) / np.exp(similarities / 0.1).sum(0)
        logits = 20 * ((weights * similarities).sum(0) - 0.01 * (np.arange(5) == label))
        soft.append(np.log(np.exp(logits).sum()) - logits[label])
    params = {"kernel": kernel.astype(np.float32)}
    got = losses.subcenter_arcface_loss(X, LABELS, params=params, margin=0.2, scale=16.0)
    np.testing.assert_allclose(got, np.mean(arc), rtol=1e-5)
    pairs = [
        np.linalg.norm(centres[:, i, c] - centres[:, j, c])
        for c in range(5)
        for i in range(3)
        for j in range(i)
    ]
    got = losses.soft_triple_loss(X, LABELS, params=params, centres=3)
    np.testing.assert_allclose(got, np.mean(soft) + 0.2 * np.mean(pairs) / 2, rtol=1e-5)
    proxies, terms = centres[:, 0].T, [[], []]
    for c in range(5):
        similarities = unit @ proxies[c]
        if (c == LABELS).any():
            terms[0].append(np.log(1 + np.exp(-32 * (similarities[c == LABELS] - 0.1)).sum()))
        terms[1].append(np.log(1 + np.exp(32 * (similarities[c != LABELS] + 0.1)).sum()))
    got = losses.proxy_anchor_loss(X, LABELS, params={"proxies": proxies})
    np.testing.assert_allclose(got, np.mean(terms[0]) + np.mean(terms[1]), rtol=1e-5)


def test_centres_are_as_far_apart_whatever_dtype_they_are_kept_in():
    kernel = losses.create("soft_triple").init_params(jax.random.key(0), 5, 6)["kernel"].astype(jnp.bfloat16)
    narrow, wide = (
        losses.soft_triple_loss(X, LABELS, params={"kernel": k}) for k in (kernel, np.float32(kernel))
    )
    assert narrow == wide


@pytest.mark.parametrize("name", ["soft_triple", "softmax"])
def test_class_losses_in_blocks_of_samples_are_the_same(name, monkeypatch):
    loss = losses.create(name)
    params = loss.init_params(jax.random.key(0), 5, 6)

    def value_and_slopes(x, labels):
        return jax.value_and_grad(lambda x, p: loss(x, labels, params=p), argnums=(0, 1))(x, params)

    value, (of_x, of_params) = value_and_slopes(X, LABELS)
    monkeypatch.setattr(losses.classes, "_LOGITS", 16)
    # An ignored sample more, or the program of the other call would serve this one too.
    got, slopes = value_and_slopes(np.vstack([X, X[:1]]), np.append(LABELS, -1))
    np.testing.assert_allclose(got, value, rtol=1e-5)
    np.testing.assert_allclose(slopes[0], np.vstack([of_x, 0 * of_x[:1]]), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), slopes[1], of_params)


PUBLISHED = {
    "adasp": losses.adasp_loss,
    "sp_h": functools.partial(losses.adasp_loss, form="sp_h"),
    "sp_lh": functools.partial(losses.adasp_loss, form="sp_lh"),
    "weighted_regularised_triplet": losses.weighted_regularised_triplet_loss,
    "smooth_ap": losses.smooth_ap_loss,
    "recall_at_k": functools.partial(losses.recall_at_k_surrogate_loss, ks=(1, 2, 4, 8), with_anchor=True),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_values_of_the_authors_code(name):
    labels = np.array(PUBLIC["labels"])
    of = jax.jit(jax.value_and_grad(lambda x: PUBLISHED[name](x, labels)))
    for batch in PUBLIC["batches"].values():
        value, gradient = of(np.array(batch["embeddings"], np.float32))
        np.testing.assert_allclose(value, batch[name]["value"], rtol=1e-5)
        np.testing.assert_allclose(gradient, batch[name]["gradient"], atol=5e-6)


def test_the_anchor_among_its_positives_in_tiles_and_in_the_whole():
    def value(x, block_size):
        settings = {"weighting": exponential(1.0), "with_anchor": True, "with_stats": True}
        return hap2s_loss(x, LABELS, block_size=block_size, **settings)

    expected = jax.value_and_grad(value, has_aux=True)(X, "never")
    tiled = jax.value_and_grad(value, has_aux=True)(X, 5)
    assert expected[0][1]["valid_anchors"] == 16  # the class of one sample too
    for got, wanted in zip(jax.tree.leaves(tiled), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    without, with_it = (
        losses.batch_hard_loss(X, LABELS, margin=9.0, with_anchor=with_anchor, reduction="none")
        for with_anchor in (False, True)
    )
    # The farthest positive is never the anchor, unless there is no other.
    np.testing.assert_allclose(with_it[LABELS != 2], without[LABELS != 2], rtol=1e-5)
    assert with_it[LABELS == 2] > without[LABELS == 2] == 0


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="form is 'sp'; it should be one of adasp, sp_h, sp_lh"):
        losses.create("adasp", form="sp").check()
    with pytest.raises(ValueError, match="ks is '1,x'; it should be whole numbers of at least 1"):
        losses.create("recall_at_k_surrogate", ks="1,x").check()
    kernel = losses.create("soft_triple").init_params(jax.random.key(0), 5, 6)
    with pytest.raises(ValueError, match=r"params \(6, 10, 5\) do not fit centres=3"):
        losses.soft_triple_loss(X, LABELS, params=kernel, centres=3)


def test_proxies_learn_at_their_papers_rate():
    rates = {name: losses.create(name).rate for name in losses.names()}
    assert {name for name, rate in rates.items() if rate != 1} == {"proxy_anchor", "soft_triple"}
    assert rates["proxy_anchor"] == rates["soft_triple"] == 100
