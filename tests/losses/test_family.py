"""Every loss of the registry: loops as oracles, and what the engine promises for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_batches import CORNERS, clustered, odd_batches
from loss_oracles import distance

from hap2s_jax import losses
from hap2s_jax.losses import memory

X, LABELS = clustered(30, [4, 3, 1, 5, 3], dim=6)
CLASSES, DIM = 5, 6


# A 3 x 4 rectangle: every corner has its positive at distance 3 and its negatives at 4 and 5.
BY_HAND = {
    "hap2s_hardest": ({"count": 1, "margin": 2.0}, 3 - 4 + 2),
    "batch_hard": ({"margin": 2.0}, 3 - 4 + 2),
    "point_to_set_mean": ({"margin": 2.0}, 3 - 4.5 + 2),
    "easy_positive": ({"margin": 2.0, "soft_margin": False, "distance": "euclidean"}, 3 - 4 + 2),
    "batch_all": ({"margin": 3.0}, ((3 - 4 + 3) + (3 - 5 + 3)) / 2),
    "semi_hard": ({"margin": 8.0}, 9 - 16 + 8),
    "contrastive": ({"margin": 5.0}, 9 / 2 + (1 / 2 + 0) / 2),
    "lifted_structure": ({"margin": 1.0}, np.log(1 + np.exp(-1))),  # 3 + log(e^-3 + e^-4)
    "msml": ({"margin": 2.0}, 3 - 4 + 2),
    "quadruplet": ({"margin": 2.0}, 3 - 4 + 2),  # without a third class there is no second term
}
# Two samples of each class on the same axis: every cosine is 1 within a class and 0 between classes.
BY_HAND_ON_AXES = {
    "multi_similarity": ({"mining": False}, np.log(1 + np.exp(-1)) / 2 + np.log(1 + 2 * np.exp(-25)) / 50),
    "circle": ({"gamma": 1.0}, np.log(1 + 2 * np.exp(-1 / 16) * np.exp(-1 / 16))),
    "supervised_contrastive": ({"temperature": 1.0}, np.log((np.e + 2) / np.e)),
    "nt_xent": ({"temperature": 1.0}, np.log((np.e + 2) / np.e)),
    "n_pair": ({}, np.log(1 + 2 * np.exp(-1))),
    "margin": ({"alpha": 0.5}, 1.2 - np.sqrt(2) + 0.5),
    "random_triplet": ({"margin": 2.0}, 0 - np.sqrt(2) + 2),  # whichever pair is drawn
    "softmax": (
        {},
        np.log(1 + np.exp(-1)) + 0.05,
    ),  # the identity as classifier; 0.1 of the label is shared by two
    "arcface": ({"margin": 0.0, "scale": 1.0}, np.log(1 + np.exp(-1))),
    "proxy_nca": ({"scale": 1.0}, 0 + np.log(np.exp(-2))),
    "centre": ({}, 0.0),
}


@pytest.mark.parametrize("name", [*BY_HAND, *BY_HAND_ON_AXES])
def test_numbers_by_hand(name):
    settings, expected = (BY_HAND | BY_HAND_ON_AXES)[name]
    x, eye = (CORNERS if name in BY_HAND else np.eye(2)[[0, 0, 1, 1]]).astype(np.float32), jnp.eye(2)
    learnt = {"margin": {"beta": jnp.array(1.2)}, "softmax": {"kernel": eye, "bias": jnp.zeros(2)}}
    learnt |= {"arcface": {"kernel": eye}, "proxy_nca": {"proxies": eye}, "centre": {"centres": eye}}
    value = losses.create(name, **settings)(x, np.array([0, 0, 1, 1]), params=learnt.get(name))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def prepared(name, num_classes=CLASSES, dim=DIM):
    loss = losses.create(name)
    return loss, loss.init_params(jax.random.key(1), num_classes, dim)


def run(loss, params, x, labels, **arguments):
    if params is not None:
        arguments["params"] = params
    return loss(x, labels, **{"with_stats": True} | arguments)


@pytest.mark.parametrize("name", losses.names())
def test_split_over_devices_and_blocks_changes_nothing(name):
    loss, params = prepared(name)
    labels = np.where(np.arange(16) == 6, -1, LABELS)
    blocks = {"block_size": 3} if name not in OFF_ENGINE else {}
    matrix = jnp.eye(DIM)

    def step(matrix, params, x, labels, axis_name, **arguments):
        def value(matrix, params):
            embeddings = jnp.matmul(x, matrix, precision="highest")
            return run(loss, params, embeddings, labels, axis_name=axis_name, **arguments)

        out = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(matrix, params)
        return out if axis_name is None else (out[0], jax.lax.pmean(out[1], axis_name))

    expected = jax.jit(step, static_argnums=4)(matrix, params, X, labels, None)
    split = jax.jit(
        jax.vmap(
            lambda m, p, x, y: step(m, p, x, y, "devices", **blocks),
            axis_name="devices",
            in_axes=(None, None, 0, 0),
            out_axes=None,
        )
    )(matrix, params, X.reshape(4, 4, -1), labels.reshape(4, 4))
    assert expected[0][0] > 0
    assert set(split[0][1]) == set(expected[0][1])
    for got, wanted in zip(jax.tree.leaves(split), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5 * max(1, np.abs(wanted).max()))


OFF_ENGINE = {name for name in losses.names() if not losses.create(name).has_blocks}


@pytest.mark.parametrize("name", losses.names())
def test_odd_batches_stay_finite(name):
    batches = odd_batches()[:-1]  # all of one shape, so that each loss is compiled once
    loss, params = prepared(name, num_classes=len(batches[0][1]), dim=batches[0][1].shape[1])

    @jax.jit
    def value_and_grad(x, labels):
        return jax.value_and_grad(lambda x: run(loss, params, x, labels, with_stats=False))(x)

    for batch, x, labels in batches:
        got, gradient = value_and_grad(x, labels)
        assert np.isfinite(got), batch
        assert np.isfinite(gradient).all(), batch
        if batch == "all ignored":
            assert got == 0
            assert not np.any(gradient)


def pairs_of(x, labels, kind):
    gaps = np.array([[distance(a, b, kind) for b in x] for a in x])
    n = len(labels)
    positive = [[k for k in range(n) if k != a and labels[k] == labels[a]] for a in range(n)]
    negative = [[k for k in range(n) if labels[k] != labels[a]] for a in range(n)]
    return gaps, positive, negative


def test_semi_hard_is_a_loop():
    gaps, positive, negative = pairs_of(X, LABELS, "squared_euclidean")
    terms = []
    for a in range(len(X)):
        for p in positive[a]:
            beyond = [gaps[a, n] for n in negative[a] if gaps[a, n] > gaps[a, p]]
            chosen = min(beyond) if beyond else max(gaps[a, n] for n in negative[a])
            terms.append(max(gaps[a, p] - chosen + 0.2, 0))
    np.testing.assert_allclose(losses.semi_hard_loss(X, LABELS), np.mean(terms), rtol=1e-5)


def test_random_triplet_draws_evenly():
    # Every anchor's loss under a huge margin is margin + d_p - d_n, so the mean over many keys shows the
    # draws.
    gaps, positive, negative = pairs_of(X, LABELS, "euclidean")
    expected = [gaps[a, positive[a]].mean() - gaps[a, negative[a]].mean() for a in range(16) if positive[a]]
    values = jax.jit(jax.vmap(lambda key: losses.random_triplet_loss(X, LABELS, margin=100.0, key=key)))(
        jax.random.split(jax.random.key(0), 500)
    )
    np.testing.assert_allclose(np.mean(values) - 100, np.mean(expected), atol=0.02)
    assert len(np.unique(values)) > 400


def test_margin_draws_by_the_inverse_density():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    gaps, _, negative = pairs_of(unit, LABELS, "euclidean")
    alike = np.arange(400)
    rows = losses.margin.AnchorRow(
        jnp.tile(jnp.asarray(gaps[0], jnp.float32), (400, 1)),
        jnp.tile(jnp.asarray(LABELS[0] == LABELS).at[0].set(False), (400, 1)),
        jnp.tile(jnp.asarray(LABELS[0] != LABELS), (400, 1)),
        jnp.full(400, LABELS[0]),
        jnp.asarray(LABELS),
        jnp.asarray(alike),
    )
    key = jax.random.key_data(jax.random.key(0))
    loss = losses.margin.Margin(jnp.asarray(1.2), 0.2, 0.0, 0.5, key, DIM)
    draws = np.ravel(jax.jit(loss.draw)(loss.shares(rows), rows.index, 0))
    candidates = [n for n in negative[0] if gaps[0, n] < 1.4]
    near = np.maximum(gaps[0, candidates], 0.5)
    weights = 1 / (near ** (DIM - 2) * (1 - near**2 / 4) ** ((DIM - 3) / 2))
    counts = np.bincount(draws, minlength=16)
    assert counts[candidates].sum() == len(draws)
    np.testing.assert_allclose(counts[candidates] / len(draws), weights / weights.sum(), atol=0.02)


def test_margin_is_a_loop_over_its_draws():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    gaps, positive, negative = pairs_of(unit, LABELS, "euclidean")
    # One negative for each anchor leaves nothing to chance.
    keep = [0, *positive[0], negative[0][0]]
    labels = np.full(16, -1)
    labels[keep] = LABELS[keep]
    beta = np.linspace(0.8, 1.3, CLASSES).astype(np.float32)
    total, active = 0.0, 0
    for a in keep[:-1]:
        for p in keep[:-1]:
            if p != a:
                pull = max(gaps[a, p] - beta[LABELS[0]] + 0.2, 0)
                push = max(beta[LABELS[0]] - gaps[a, keep[-1]] + 0.2, 0)
                total, active = total + pull + push, active + (pull > 0) + (push > 0)
    got = losses.margin_loss(X, labels, params={"beta": jnp.asarray(beta)})
    np.testing.assert_allclose(got, total / active, rtol=1e-5)


def test_msml_and_quadruplet_are_loops():
    gaps, positive, negative = pairs_of(X, LABELS, "euclidean")
    hardest = max(gaps[a, p] for a in range(16) for p in positive[a])
    easiest = min(gaps[a, n] for a in range(16) for n in negative[a])
    np.testing.assert_allclose(losses.msml_loss(X, LABELS), max(hardest - easiest + 0.3, 0), rtol=1e-5)
    terms = []
    for a in range(16):
        if positive[a]:
            far, near = max(gaps[a, positive[a]]), min(gaps[a, negative[a]])
            others = min(gaps[i, j] for i in negative[a] for j in negative[a] if LABELS[i] != LABELS[j])
            terms.append(max(far - near + 0.3, 0) + max(far - others + 0.15, 0))
    np.testing.assert_allclose(losses.quadruplet_loss(X, LABELS), np.mean(terms), rtol=1e-5)


def test_class_losses_are_loops():
    x = X.astype(np.float64)
    loss, params = prepared("softmax")
    logits = x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"])
    terms = []
    for row, label in zip(logits, LABELS, strict=True):
        logs = row - np.log(np.exp(row).sum())
        target = np.full(CLASSES, 0.1 / CLASSES)
        target[label] += 0.9
        terms.append(-(target * logs).sum())
    value, stats = loss(X, LABELS, params=params, with_stats=True)
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(stats["accuracy"], np.mean(logits.argmax(1) == LABELS), rtol=1e-6)
    centres = np.random.default_rng(0).normal(size=(CLASSES, DIM))
    expected = np.mean([((a - centres[y]) ** 2).sum() / 2 for a, y in zip(x, LABELS, strict=True)])
    np.testing.assert_allclose(
        losses.centre_loss(X, LABELS, params={"centres": centres}), expected, rtol=1e-5
    )
    proxies = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    terms = []
    for a, y in zip(unit, LABELS, strict=True):
        gaps = ((3 * a - 3 * proxies) ** 2).sum(1)
        terms.append(gaps[y] + np.log(np.exp(-np.delete(gaps, y)).sum()))
    np.testing.assert_allclose(
        losses.proxy_nca_loss(X, LABELS, params={"proxies": centres}), np.mean(terms), rtol=1e-5
    )


@pytest.mark.parametrize("name", losses.names())
def test_what_is_not_finite_shows_in_the_value(name):
    loss, params = prepared(name)
    split = {"axis_name": "devices"} | ({"block_size": 3} if name not in OFF_ENGINE else {})

    @jax.jit
    def on_devices(x):
        values = jax.vmap(lambda a, y: run(loss, params, a, y, **split)[0], axis_name="devices")
        return values(x.reshape(4, 4, -1), LABELS.reshape(4, 4))

    for value in (np.nan, np.inf):
        broken = X.copy()
        broken[5, 2] = value
        assert not np.isfinite(run(loss, params, broken, LABELS)[0])
        # One broken sample is seen on every device.
        assert not np.isfinite(on_devices(broken)).any()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_lengths_that_overflow_show_in_tiles_and_in_the_whole(distance):
    for block_size in ("never", 5):
        value = losses.hap2s_loss(3e19 * X, LABELS, distance=distance, block_size=block_size)
        assert not np.isfinite(value)
        near = losses.hap2s_loss(1e18 * X, LABELS, distance=distance, block_size=block_size)
        assert np.isfinite(near)


@pytest.mark.parametrize("name", ["hap2s_e", "softmax", "quadruplet"])
def test_sample_weights_must_be_one_a_label(name):
    loss, params = prepared(name)
    for wrong in (np.ones((16, 1)), np.ones(3)):
        with pytest.raises(ValueError, match="one per label"):
            run(loss, params, X, LABELS, sample_weights=wrong)
    same = LABELS[:, None] == LABELS
    with pytest.raises(ValueError, match="one per label"):
        losses.hap2s_from_distances(
            np.ones((16, 16), np.float32), same, ~same, sample_weights=np.ones((16, 1))
        )


@pytest.mark.parametrize("name", losses.names())
def test_labels_of_all_kinds_are_the_same_classes(name):
    loss, params = prepared(name)
    expected = run(loss, params, X, LABELS)[0]
    for kind in (np.uint8, np.int8, np.uint16, np.uint32, np.int64):
        assert run(loss, params, X, LABELS.astype(kind))[0] == expected


def test_labels_keep_their_classes_or_are_refused():
    # 255 is not the ignored -1, and 2**32 is not 0.
    labels = np.where(LABELS == 4, 255, LABELS)
    assert losses.hap2s_loss(X, labels.astype(np.uint8)) == losses.hap2s_loss(X, LABELS)
    with pytest.raises(ValueError, match=r"number the classes from 0 on"):
        losses.hap2s_loss(X, np.where(LABELS == 4, 2**32, LABELS.astype(np.int64)))
    narrow = losses.hap2s_loss(
        X, LABELS.astype(np.int8), keys=X[:4], key_labels=np.array([256, 256, 257, 258])
    )
    assert narrow == losses.hap2s_loss(X, LABELS, keys=X[:4], key_labels=np.array([9, 9, 10, 11]))


def test_margin_loss_normalises_further_keys():
    keys, key_labels = 5 * X[:6] + 1, LABELS[:6]
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    got = losses.margin_loss(X, LABELS, keys=keys, key_labels=key_labels)
    np.testing.assert_allclose(
        got, losses.margin_loss(X, LABELS, keys=unit, key_labels=key_labels), rtol=1e-5
    )


def test_an_anchor_has_one_loss():
    with pytest.raises(ValueError, match="single numbers"):
        losses.hap2s_loss(X, LABELS, margin=np.ones(16, np.float32))


def test_weights_of_nothing_agree_in_tiles():
    def near(d, mask):
        return jnp.where(d < 2.0, -d, -jnp.inf)

    weighting = losses.Weighting(lambda d, mask: d, near, elementwise=True)

    def value(x, block_size):
        return losses.hap2s_loss(x, LABELS, weighting=weighting, block_size=block_size)

    expected = jax.value_and_grad(value)(jnp.asarray(X), "never")
    for size in (3, 4, 5):
        for got, wanted in zip(jax.value_and_grad(value)(jnp.asarray(X), size), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("block_size", ["never", 5])
def test_a_weighting_is_not_asked_about_what_is_masked(block_size):
    weighting = losses.Weighting(
        lambda d, mask: 2 * jnp.log(d), lambda d, mask: -2 * jnp.log(d), elementwise=True
    )

    def value(x):
        return losses.hap2s_loss(x, LABELS, weighting=weighting, distance="cosine", block_size=block_size)

    assert np.isfinite(jax.grad(value)(jnp.asarray(X))).all()


def test_class_losses_refuse_labels_out_of_range():
    loss, params = prepared("softmax")
    assert np.isnan(loss(X, np.full(16, CLASSES), params=params, with_stats=False))
    with pytest.raises(ValueError, match="do not fit embeddings"):
        loss(X[:, :3], LABELS, params=params)


def test_from_distances_takes_any_supervision():
    gaps, _positive, _negative = pairs_of(X, LABELS, "euclidean")
    is_positive = LABELS[:, None] == LABELS
    np.fill_diagonal(is_positive, False)
    is_negative = LABELS[:, None] != LABELS
    broken = np.where(is_positive | is_negative, gaps, np.nan).astype(np.float32)
    value, gradient = jax.value_and_grad(losses.hap2s_from_distances)(broken, is_positive, is_negative)
    np.testing.assert_allclose(value, losses.hap2s_loss(X, LABELS), rtol=1e-5)
    assert np.isfinite(gradient).all()
    unknown = np.where(is_positive, np.nan, gaps).astype(np.float32)
    assert np.isnan(losses.hap2s_from_distances(unknown, is_positive, is_negative))
    with pytest.raises(ValueError, match="one shape"):
        losses.hap2s_from_distances(broken, is_positive[:3], is_negative)


def test_memory_is_a_ring():
    state = memory.create(5, 2)
    state = memory.push(state, np.full((3, 2), 1.0), np.array([1, 1, 1]))
    state = jax.jit(memory.push)(state, np.full((3, 2), 2.0), np.array([2, 2, 2]))
    assert state.labels.tolist() == [2, 1, 1, 2, 2]
    assert state.embeddings[:, 0].tolist() == [2, 1, 1, 2, 2]
    assert int(state.cursor) == 1
    with pytest.raises(ValueError, match="larger"):
        memory.push(state, np.zeros((6, 2)), np.zeros(6, int))
    empty = memory.create(8, DIM)
    alone = losses.hap2s_loss(X, LABELS)
    np.testing.assert_allclose(
        losses.hap2s_loss(X, LABELS, keys=empty.embeddings, key_labels=empty.labels), alone, rtol=1e-6
    )
    pushed = jax.vmap(
        lambda x, y: memory.push(empty, x, y, axis_name="devices"), axis_name="devices", out_axes=None
    )(X[:8].reshape(2, 4, -1), LABELS[:8].reshape(2, 4))
    np.testing.assert_array_equal(pushed.labels, LABELS[:8])


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("active_only", [False, True])
def test_contrastive_is_a_loop_over_anchors(power, active_only):
    margin, terms = 1.6, []
    for anchor, label in enumerate(LABELS):
        others = [k for k in range(len(LABELS)) if k != anchor]
        gaps = {k: distance(X[anchor], X[k]) for k in others}
        pull = [gaps[k] ** power for k in others if LABELS[k] == label]
        push = [max(0.0, margin - gaps[k]) ** power for k in others if LABELS[k] != label]
        push = [value for value in push if value > 0] if active_only else push
        terms.append((sum(pull) / max(len(pull), 1) + sum(push) / max(len(push), 1)) / power)
    value = losses.contrastive_loss(X, LABELS, margin=margin, power=power, active_only=active_only)
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)


@pytest.mark.parametrize("name", ["batch_all", "semi_hard"])
def test_few_positives_and_many_are_one_loss(name, monkeypatch):
    x, labels = clustered(31, [4, 3, 1, 5, 3], dim=6)
    x[2] = x[5]
    loss = losses.create(name, margin=1.0)

    def run_with(few):
        monkeypatch.setattr(losses.by_positives, "_FEW", few)
        return jax.jit(jax.value_and_grad(lambda x: loss(x, labels)))(x)

    few, many = run_with(16), run_with(0)
    np.testing.assert_allclose(few[0], many[0], rtol=1e-5)
    np.testing.assert_allclose(few[1], many[1], atol=1e-6)


def test_of_keys_that_tie_the_first_has_the_gradient():
    # Two positives at distance 3 and two negatives at distance 4 from the first sample, which is the only anchor.
    x = np.array([[0, 0], [3, 0], [-3, 0], [0, 4], [0, -4]], np.float32)
    labels, weights = np.array([0, 0, 0, 1, 2]), np.array([1.0, 0, 0, 0, 0])
    for block_size in (None, "never", 2):
        slope = jax.grad(
            lambda x, b=block_size: losses.batch_hard_loss(
                x, labels, margin=2.0, sample_weights=weights, block_size=b
            )
        )(x)
        np.testing.assert_allclose(slope, [[-1, 1], [1, 0], [0, 0], [0, -1], [0, 0]], atol=1e-6)
