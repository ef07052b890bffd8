"""Values and gradients against pytorch-metric-learning 2.9 (bench extra)."""

import jax
import numpy as np
import pytest
from loss_batches import clustered

from hap2s_jax import losses

torch = pytest.importorskip("torch")
pml_losses = pytest.importorskip("pytorch_metric_learning.losses")
from pytorch_metric_learning import distances as pml_distances  # noqa: E402 - after importorskip, on purpose
from pytorch_metric_learning import miners as pml_miners  # noqa: E402
from pytorch_metric_learning import reducers as pml_reducers  # noqa: E402

# Classes of one size: ours averages anchor by anchor, theirs pair by pair, and there the two are one.
X, LABELS = clustered(40, [4, 4, 4, 4], dim=8, radius=1.5)
EUCLIDEAN = pml_distances.LpDistance(normalize_embeddings=False)
MEAN = {"reducer": pml_reducers.MeanReducer()}


def theirs(loss, miner=None):
    x = torch.tensor(X.astype(np.float64), requires_grad=True)
    labels = torch.tensor(LABELS.astype(np.int64))
    loss = loss.double() if isinstance(loss, torch.nn.Module) else loss
    value = loss(x, labels, miner(x, labels)) if miner else loss(x, labels)
    value.backward()
    return value.item(), x.grad.numpy()


CASES = {
    "batch_hard": (
        lambda x: losses.batch_hard_loss(x, LABELS, margin=0.5),
        lambda: pml_losses.TripletMarginLoss(margin=0.5, distance=EUCLIDEAN, **MEAN),
        lambda: pml_miners.BatchHardMiner(distance=EUCLIDEAN),
    ),
    "batch_all": (
        lambda x: losses.batch_all_loss(x, LABELS, margin=0.2),
        lambda: pml_losses.TripletMarginLoss(margin=0.2, distance=EUCLIDEAN),
        None,
    ),
    "easy_positive": (
        lambda x: losses.easy_positive_loss(x, LABELS, margin=0.4, soft_margin=False, distance="euclidean"),
        lambda: pml_losses.TripletMarginLoss(margin=0.4, distance=EUCLIDEAN, **MEAN),
        lambda: pml_miners.BatchEasyHardMiner(pos_strategy="easy", neg_strategy="hard", distance=EUCLIDEAN),
    ),
    "contrastive": (
        lambda x: losses.contrastive_loss(x, LABELS, margin=1.6, power=1),
        lambda: pml_losses.ContrastiveLoss(pos_margin=0, neg_margin=1.6, distance=EUCLIDEAN, **MEAN),
        None,
    ),
    "lifted_structure": (
        lambda x: losses.lifted_structure_loss(x, LABELS, margin=0.7),
        lambda: pml_losses.GeneralizedLiftedStructureLoss(neg_margin=0.7, distance=EUCLIDEAN, **MEAN),
        None,
    ),
    "multi_similarity": (
        lambda x: losses.multi_similarity_loss(x, LABELS, mining=False),
        lambda: pml_losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, **MEAN),
        None,
    ),
    "multi_similarity mined": (
        lambda x: losses.multi_similarity_loss(x, LABELS),
        lambda: pml_losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, **MEAN),
        lambda: pml_miners.MultiSimilarityMiner(epsilon=0.1),
    ),
    "circle": (
        lambda x: losses.circle_loss(x, LABELS),
        lambda: pml_losses.CircleLoss(m=0.25, gamma=128, **MEAN),
        None,
    ),
    "supervised_contrastive": (
        lambda x: losses.supervised_contrastive_loss(x, LABELS),
        lambda: pml_losses.SupConLoss(temperature=0.1),
        None,
    ),
    "nt_xent": (
        lambda x: losses.nt_xent_loss(x, LABELS, temperature=0.3),
        lambda: pml_losses.NTXentLoss(temperature=0.3),
        None,
    ),
    "n_pair": (
        lambda x: losses.n_pair_loss(x, LABELS),
        lambda: pml_losses.NTXentLoss(
            temperature=1.0, distance=pml_distances.DotProductSimilarity(normalize_embeddings=False)
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_equals_pytorch_metric_learning(name):
    ours, loss, miner = CASES[name]
    expected, slope = theirs(loss(), miner() if miner else None)
    value, gradient = jax.jit(jax.value_and_grad(ours))(X)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-5 * max(1, np.abs(slope).max()))


def test_proxy_nca_equals_pytorch_metric_learning():
    loss = pml_losses.ProxyNCALoss(num_classes=4, embedding_size=8, softmax_scale=9)
    expected, slope = theirs(loss)
    proxies = loss.proxies.detach().numpy()
    ours = jax.value_and_grad(
        lambda x: losses.proxy_nca_loss(x, LABELS, params={"proxies": proxies}, include_own=True)
    )
    value, gradient = jax.jit(ours)(X)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-5)


def test_arcface_equals_pytorch_metric_learning():
    loss = pml_losses.ArcFaceLoss(num_classes=4, embedding_size=8, margin=float(np.degrees(0.5)), scale=16)
    expected, slope = theirs(loss)
    kernel = loss.W.detach().numpy()
    cosines = (X / np.linalg.norm(X, axis=1, keepdims=True)) @ (kernel / np.linalg.norm(kernel, axis=0))
    assert cosines[np.arange(16), LABELS].min() > -np.cos(0.5)  # else they differ on purpose
    ours = jax.value_and_grad(lambda x: losses.arcface_loss(x, LABELS, params={"kernel": kernel}, scale=16.0))
    value, gradient = jax.jit(ours)(X)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-5)


def test_margin_boundaries_equal_pytorch_metric_learning():
    # All triplets in place of drawn ones: with one negative class member the two are the same set.
    keep = np.concatenate([np.flatnonzero(LABELS == 0), np.flatnonzero(LABELS == 1)[:1]])
    labels = np.full(16, -1)
    labels[keep] = LABELS[keep]
    loss = pml_losses.MarginLoss(margin=0.2, beta=1.2)
    value = loss(torch.tensor(X[keep]), torch.tensor(LABELS[keep].astype(np.int64))).item()
    np.testing.assert_allclose(losses.margin_loss(X, labels), value, rtol=1e-5)


def of_class(weights, count):
    """A class's points side by side, as they have them, in our order."""
    return weights.reshape(8, 4, count).swapaxes(1, 2) if count else weights


LATER = {
    "smooth_ap": (pml_losses.SmoothAPLoss, {}, lambda loss: None),
    "proxy_anchor": (pml_losses.ProxyAnchorLoss, {}, lambda loss: {"proxies": loss.proxies}),
    "cosface": (pml_losses.CosFaceLoss, {"scale": 16.0}, lambda loss: {"kernel": loss.W}),
    "subcenter_arcface": (
        pml_losses.SubCenterArcFaceLoss,
        {"scale": 16.0, "margin": 0.2},
        lambda loss: {"kernel": of_class(loss.W, 3)},
    ),
    "soft_triple": (
        pml_losses.SoftTripleLoss,
        {"tau": 0.0},
        lambda loss: {"kernel": of_class(loss.fc, 10)},
    ),
}


@pytest.mark.parametrize("name", list(LATER))
def test_a_hundred_random_batches_equal_pytorch_metric_learning(name):
    make, settings, points = LATER[name]
    their_settings = {
        k: float(np.degrees(v)) if k == "margin" else v for k, v in settings.items() if k != "tau"
    }
    random, labels = np.random.default_rng(0), np.repeat(np.arange(4), 4)
    shape = {} if name == "smooth_ap" else {"num_classes": 4, "embedding_size": 8}
    loss = losses.create(name, **settings)
    ours = jax.jit(jax.value_and_grad(lambda x, params: loss(x, labels, params=params)))
    for number in range(100):
        torch.manual_seed(number)
        theirs = make(**shape, **their_settings).double()
        # From nearly the same points to well apart.
        x = np.repeat(random.normal(size=(4, 8)), 4, axis=0) + 2 * random.random() * random.normal(
            size=(16, 8)
        )
        inputs = torch.tensor(x, requires_grad=True)
        expected = theirs(inputs, torch.tensor(labels))
        expected.backward()
        params = points(theirs)
        if params is not None:
            params = {key: value.detach().numpy().astype(np.float32) for key, value in params.items()}
        value, slope = ours(x.astype(np.float32), params)
        wanted = inputs.grad.numpy()
        np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(slope, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
