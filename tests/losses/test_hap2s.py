"""HAP2S against float64 loops, finite differences, its limits, and the odd batches of practice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_batches import CORNER_LABELS, CORNERS, clustered, odd_batches, radius_of
from loss_oracles import difference_gradient, hap2s

from hap2s_jax import exponential, hap2s_loss, hardest, polynomial, ranked, uniform
from hap2s_jax.losses import Weighting, detached
from hap2s_jax.losses.weightings import as_weighting

# What every corner of the rectangle makes of its negatives at distances 4 and 5.
BY_HAND = [
    (hardest(), 4),
    (uniform(), 4.5),
    (exponential(1.0), (4 * np.e + 5) / (np.e + 1)),
    (polynomial(1.0), (4 / 25 + 5 / 36) / (1 / 25 + 1 / 36)),
    (ranked(0.5), (4 + 5 / 2) / (1 + 1 / 2)),
]


@pytest.mark.parametrize(
    ("weighting", "to_negatives"), BY_HAND, ids=["hardest", "uniform", "e", "p", "ranked"]
)
def test_numbers_by_hand(weighting, to_negatives):
    value = hap2s_loss(CORNERS, CORNER_LABELS, weighting=weighting, margin=3.0)
    np.testing.assert_allclose(value, 3 - to_negatives + 3, rtol=1e-6)


FORMS = {"exponential": exponential, "polynomial": polynomial}
DEFAULTS = {"exponential": 0.5, "polynomial": 10.0}


def value_and_grad(x, labels, **settings):
    settings["weighting"] = as_weighting(settings.get("weighting", exponential()))
    return compiled(jnp.asarray(x), labels, **settings)


# Whole and at module level: compiling is what these tests cost, and one program serves all batches of a shape.
@functools.partial(jax.jit, static_argnames=("soft_margin", "distance", "block_size"))
def compiled(x, labels, **settings):
    return jax.value_and_grad(lambda x: hap2s_loss(x, labels, **settings))(x)


# One compilation each, so not the full product: every form, margin and distance, blocked and not.
CASES = [
    ("exponential", False, "euclidean", "never"),
    ("exponential", True, "cosine", 5),
    ("polynomial", True, "squared_euclidean", "never"),
    ("polynomial", False, "euclidean", 5),
    ("exponential", False, "squared_euclidean", 5),
    ("polynomial", False, "cosine", "never"),
]


# The others' values are compared where their gradients are.
@pytest.mark.parametrize(("form", "soft", "kind", "block_size"), CASES[:3])
def test_equals_a_loop(form, soft, kind, block_size):
    x, labels = clustered(1, [4, 1, 2, 6, 3])
    expected, _ = hap2s(x, labels, form=form, parameter=DEFAULTS[form], soft=soft, kind=kind)
    got = hap2s_loss(
        x, labels, weighting=FORMS[form](), soft_margin=soft, distance=kind, block_size=block_size
    )
    np.testing.assert_allclose(got, expected, atol=1e-5 * max(radius_of(x), 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "block_size"), [("exponential", "never"), ("exponential", 7), ("polynomial", "never")]
)
@pytest.mark.parametrize("class_radius", [1.0, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_error_is_small_against_the_radius(form, scale, class_radius, block_size):
    x, labels = clustered(2, [4, 4, 5, 1, 2], radius=class_radius, scale=scale)
    # sigma follows the scale: a temperature far below the distances' own rounding has no right answer in
    # float32.
    parameter = 0.5 * scale if form == "exponential" else 10.0
    margin = 3 * scale
    expected, _ = hap2s(x, labels, form=form, parameter=parameter, margin=margin)
    got, gradient = value_and_grad(
        x, labels, weighting=FORMS[form](parameter), margin=margin, block_size=block_size
    )
    assert abs(got - expected) < 1e-5 * radius_of(x)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("spread", [1.0, 1e-2])
def test_collapsed_batch_around_a_far_point(spread):
    x, labels = clustered(3, [4] * 5, scale=spread, centre=1e3 / spread)
    expected, _ = hap2s(x, labels, parameter=0.5 * spread, margin=3 * spread)
    got, gradient = value_and_grad(x, labels, weighting=exponential(0.5 * spread), margin=3 * spread)
    assert abs(got - expected) < 1e-5 * radius_of(x)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("weighting", "kind", "block_size"),
    [
        (exponential(), "euclidean", "never"),
        (exponential(), "cosine", 4),
        (polynomial(), "euclidean", 4),
        (hardest(), "squared_euclidean", "never"),
        (ranked(), "euclidean", 4),
    ],
    ids=["e", "e cosine", "p blocked", "hardest squared", "ranked blocked"],
)
@pytest.mark.parametrize(("name", "x", "labels"), odd_batches(), ids=[b[0] for b in odd_batches()])
def test_odd_batches_stay_finite(name, x, labels, weighting, kind, block_size):
    value, gradient = value_and_grad(x, labels, weighting=weighting, distance=kind, block_size=block_size)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    if name in ("one class", "all distinct", "all ignored", "one sample"):
        assert value == 0
        assert not np.any(gradient)


@pytest.mark.parametrize(("name", "x", "labels"), odd_batches(), ids=[b[0] for b in odd_batches()])
@pytest.mark.parametrize("form", list(FORMS))
def test_odd_batches_equal_a_loop(name, x, labels, form):
    expected, _ = hap2s(np.nan_to_num(x), labels, form=form, parameter=DEFAULTS[form])
    np.testing.assert_allclose(hap2s_loss(x, labels, weighting=FORMS[form]()), expected, atol=1e-5)


def test_coincident_pairs_have_no_gradient():
    x = jnp.array([[1.0, 2.0], [1.0, 2.0], [4.0, 6.0], [4.0, 6.0]])
    # All positives coincide, so the gradient is that of the negatives alone.
    gradient = jax.grad(lambda x: hap2s_loss(x, jnp.array([0, 0, 1, 1]), margin=10.0))(x)
    np.testing.assert_allclose(gradient[0], np.array([0.6, 0.8]) / 2, atol=1e-6)
    assert not np.any(jax.grad(lambda x: hap2s_loss(x, jnp.array([0, 0, 1, 1])))(jnp.ones((4, 2))))


@pytest.mark.parametrize(("form", "soft", "kind", "block_size"), CASES)
def test_gradient_equals_finite_differences(form, soft, kind, block_size):
    x32, labels = clustered(5, [3, 1, 2, 3], dim=3)
    settings = {"form": form, "parameter": DEFAULTS[form], "soft": soft, "kind": kind, "margin": 1.0}
    expected = difference_gradient(lambda x: hap2s(x, labels, **settings)[0], x32.astype(np.float64), 1e-6)
    with jax.enable_x64(True):
        value, gradient = value_and_grad(
            x32.astype(np.float64),
            labels,
            weighting=FORMS[form](),
            soft_margin=soft,
            distance=kind,
            margin=1.0,
            block_size=block_size,
        )
        assert gradient.dtype == np.float64
        gradient = np.asarray(gradient)
    np.testing.assert_allclose(value, hap2s(x32, labels, **settings)[0], rtol=1e-9)
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


@pytest.mark.parametrize("block_size", ["never", 5])
def test_parameters_have_gradients(block_size):
    x, labels = clustered(6, [3, 4, 2])

    def loss(parameters):
        sigma, margin = parameters
        return hap2s_loss(x, labels, weighting=exponential(sigma), margin=margin, block_size=block_size)

    sigma_slope, margin_slope = jax.jit(jax.grad(loss))((0.5, 1.0))
    slope = (
        hap2s(x, labels, parameter=0.5001, margin=1)[0] - hap2s(x, labels, parameter=0.4999, margin=1)[0]
    ) / 2e-4
    np.testing.assert_allclose(sigma_slope, slope, rtol=1e-3)
    np.testing.assert_allclose(margin_slope, 1, rtol=1e-6)


def test_limits_are_batch_hard_and_the_mean():
    x, labels = clustered(7, [4, 3, 1, 5])
    batch_hard = hap2s(x, labels, form="hardest")[0]
    mean = hap2s(x, labels, form="uniform")[0]
    for weighting in (exponential(1e-4), polynomial(1e5), hardest()):
        np.testing.assert_allclose(hap2s_loss(x, labels, weighting=weighting), batch_hard, rtol=1e-5)
    for weighting in (exponential(1e6), polynomial(0.0), uniform()):
        np.testing.assert_allclose(hap2s_loss(x, labels, weighting=weighting), mean, rtol=1e-5)


@pytest.mark.parametrize("block_size", ["never", 5])
@pytest.mark.parametrize(
    ("form", "make", "parameter"), [("ranked", ranked, 0.5), ("ranked", ranked, 0.8), ("first", hardest, 3)]
)
def test_weights_by_rank_equal_a_loop(form, make, parameter, block_size):
    x, labels = clustered(1, [4, 1, 2, 6, 3])
    weighting = make(parameter)
    expected, _ = hap2s(x, labels, form=form, parameter=parameter, margin=3.0)
    value, gradient = value_and_grad(x, labels, weighting=weighting, margin=3.0, block_size=block_size)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    differences = difference_gradient(
        lambda x: hap2s(x, labels, form=form, parameter=parameter, margin=3.0)[0], x.astype(np.float64), 1e-6
    )
    np.testing.assert_allclose(gradient, differences, atol=1e-5)


def test_weights_by_rank_do_not_see_the_scale_and_reach_both_ends():
    x, labels = clustered(7, [4, 3, 1, 5])
    near = hap2s_loss(x, labels, weighting=ranked(), margin=3.0)
    np.testing.assert_allclose(
        hap2s_loss(1000 * x, labels, weighting=ranked(), margin=3000.0), 1000 * near, rtol=1e-5
    )
    for weighting, form in ((ranked(1e-50), "hardest"), (ranked(1.0), "uniform"), (hardest(99), "uniform")):
        value = hap2s_loss(x, labels, weighting=weighting)
        np.testing.assert_allclose(value, hap2s(x, labels, form=form)[0], rtol=1e-5)


def test_ties_of_rank_have_the_same_weight():
    distances, mask = jnp.array([3.0, 1.0, 3.0, 2.0, 9.0]), jnp.array([True, True, True, True, False])
    logs = ranked(0.5).positive(distances, mask)[:4]
    np.testing.assert_allclose(jnp.exp(logs), [1, 1 / 8, 1, 1 / 4], rtol=1e-6)
    np.testing.assert_allclose(
        jnp.exp(ranked(0.5).negative(distances, mask)[:4]), [1 / 4, 1, 1 / 4, 1 / 2], rtol=1e-6
    )
    assert (hardest(2).positive(distances, mask)[:4] == jnp.array([0, -jnp.inf, 0, -jnp.inf])).all()


def test_the_ratio_may_be_traced():
    x, labels = clustered(7, [4, 3, 1, 5])
    grid = jnp.array([0.3, 0.7])
    values = jax.jit(jax.vmap(lambda ratio: hap2s_loss(x, labels, weighting=ranked(ratio))))(grid)
    for ratio, value in zip(grid, values, strict=True):
        np.testing.assert_allclose(value, hap2s_loss(x, labels, weighting=ranked(float(ratio))), rtol=1e-6)
    with pytest.raises(ValueError, match=r"ratio is 0\.0; it should be positive"):
        ranked(0.0)
    with pytest.raises(ValueError, match="count is 0; it should be at least 1"):
        hardest(0)


def test_silent_weights_are_uniform():
    x, labels = clustered(8, [4, 3, 5])

    def silent(distances, mask):
        return jnp.full_like(distances, -jnp.inf)

    value, gradient = value_and_grad(x, labels, weighting=(silent, silent))
    np.testing.assert_allclose(value, hap2s(x, labels, form="uniform")[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, value_and_grad(x, labels, weighting=uniform())[1], atol=1e-6)


def test_own_weighting():
    x, labels = clustered(9, [4, 3, 5])
    pair = (lambda d, mask: d / 0.5, lambda d, mask: -d / 0.5)
    expected = hap2s_loss(x, labels, weighting=exponential(0.5))
    assert hap2s_loss(x, labels, weighting=pair) == expected
    assert hap2s_loss(x, labels, weighting=Weighting(*pair)) == expected


@pytest.mark.parametrize("block_size", ["never", 5])
def test_undefined_weights_show_in_the_value(block_size):
    x, labels = clustered(5, [4, 3, 5])

    def log_weights(d, mask):
        return jnp.log(d - 2.0)  # NaN for all nearer ones

    weighting = Weighting(log_weights, log_weights, elementwise=True)
    assert np.isnan(hap2s_loss(x, labels, weighting=weighting, block_size=block_size))


def test_negative_distances():
    x, labels = clustered(5, [4, 3, 5])
    for weighting in (polynomial(2.0), detached(polynomial(2.0))):
        with pytest.raises(
            ValueError, match="distances of at least 0; choose another distance than negative_dot"
        ):
            hap2s_loss(x, labels, weighting=weighting, distance="negative_dot")
    # Far from the origin all products are positive, and all distances negative.
    x, labels = 5 + np.abs(x), np.array([*labels[:-1], 99])
    gaps = -(x @ x.T)
    for block_size in ("never", 5):
        _, stats = hap2s_loss(x, labels, distance="negative_dot", with_stats=True, block_size=block_size)
        hardest = [
            max(gaps[a, k] for k in range(len(x)) if k != a and labels[k] == labels[a])
            for a in range(len(x))
            if np.sum(labels == labels[a]) > 1
        ]
        np.testing.assert_allclose(stats["hardest_positive_distance"], np.mean(hardest), rtol=1e-5)


def test_detached_weights_push_no_positive_away():
    x, labels = clustered(9, [4, 3, 5])
    plain, held = exponential(0.1), detached(exponential(0.1))
    assert hap2s_loss(x, labels, weighting=held) == hap2s_loss(x, labels, weighting=plain)
    for block_size in ("never", 4):
        slope = jax.jit(
            jax.grad(
                lambda s, b=block_size: hap2s_loss(
                    x, labels, weighting=detached(exponential(s)), block_size=b
                )
            )
        )(0.1)
        assert slope == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_input(dtype):
    x, labels = clustered(10, [4, 3, 5])
    narrow = jnp.asarray(x, dtype)
    value, gradient = value_and_grad(narrow, labels)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(value, hap2s(np.asarray(narrow, np.float64), labels)[0], atol=1e-5)


def test_compiles_once():
    x, labels = clustered(11, [4, 3, 5], dim=13)
    compiled = []

    def counting(distances, mask):
        compiled.append(1)
        return distances

    for margin in (0.1, 0.2, 0.7):
        hap2s_loss(x, labels, weighting=(counting, counting), margin=margin)
    assert len(compiled) == 2  # traced for the positives and the negatives, once
    assert hash(jax.tree_util.tree_structure(exponential(0.5))) == hash(
        jax.tree_util.tree_structure(exponential(0.7))
    )
    traces = []

    @jax.jit
    def annealed(weighting, margin):
        traces.append(1)
        return hap2s_loss(x, labels, weighting=weighting, margin=margin)

    values = [annealed(exponential(s), m) for s, m in ((0.5, 0.3), (0.25, 0.3), (0.25, 0.1))]
    assert len(traces) == 1
    assert len({float(v) for v in values}) == 3


def test_grid_of_sigmas_under_vmap():
    x, labels = clustered(12, [4, 3, 5])
    sigmas = jnp.array([0.1, 0.5, 2.0])
    for block_size in ("never", 5):
        values = jax.jit(
            jax.vmap(lambda s, b=block_size: hap2s_loss(x, labels, weighting=exponential(s), block_size=b))
        )(sigmas)
        expected = [hap2s(x, labels, parameter=float(s))[0] for s in sigmas]
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_stats_are_those_of_a_loop():
    x, labels = clustered(13, [4, 3, 1, 5])
    value, stats = hap2s_loss(x, labels, with_stats=True)
    _, losses = hap2s(x, labels)
    assert stats["valid_anchors"] == len(losses) == 12
    np.testing.assert_allclose(stats["active_fraction"], np.mean([v > 0 for _, v in losses]), rtol=1e-6)
    gaps = np.sqrt(((x[:, None].astype(np.float64) - x[None]) ** 2).sum(-1))
    anchors = [a for a, _ in losses]
    positive = [gaps[a][(labels == labels[a]) & (np.arange(len(x)) != a)] for a in anchors]
    negative = [gaps[a][labels != labels[a]] for a in anchors]
    for name, expected in {
        "mean_positive_distance": [p.mean() for p in positive],
        "mean_negative_distance": [n.mean() for n in negative],
        "hardest_positive_distance": [p.max() for p in positive],
        "hardest_negative_distance": [n.min() for n in negative],
        "effective_positives": [_effective(np.exp(p / 0.5)) for p in positive],
        "effective_negatives": [_effective(np.exp(-n / 0.5)) for n in negative],
    }.items():
        np.testing.assert_allclose(stats[name], np.mean(expected), rtol=1e-5, err_msg=name)
    assert all(s.dtype == jnp.float32 and s.shape == () for s in stats.values())
    uniform_stats = hap2s_loss(x, labels, weighting=uniform(), with_stats=True)[1]
    np.testing.assert_allclose(
        uniform_stats["effective_negatives"], np.mean([len(n) for n in negative]), rtol=1e-5
    )
    assert value == hap2s_loss(x, labels)


def _effective(weights):
    shares = weights / weights.sum()
    return np.exp(-(shares * np.log(shares)).sum())


def test_plain_path_has_forward_mode_and_second_derivatives():
    with jax.enable_x64(True):
        x, labels = clustered(14, [3, 2, 3], dim=3)
        x = jnp.asarray(x, jnp.float64)

        def loss(x):
            return hap2s_loss(x, labels, margin=2.0)

        direction = jnp.ones_like(x).at[0].set(2)
        slope_of = jax.jit(jax.grad(loss))
        gradient = slope_of(x)
        forward = jax.jit(lambda x: jax.jvp(loss, (x,), (direction,))[1])
        np.testing.assert_allclose(forward(x), (gradient * direction).sum(), rtol=1e-9)
        step = 1e-6
        curve = (slope_of(x + step * direction) - slope_of(x - step * direction)) / (2 * step)
        for block_size in ("never", 3):

            def slope(x, block_size=block_size):
                return (
                    jax.grad(lambda x: hap2s_loss(x, labels, margin=2.0, block_size=block_size))(x)
                    * direction
                ).sum()

            np.testing.assert_allclose(jax.jit(jax.grad(slope))(x), curve, atol=1e-7)
        np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(loss)))(x), gradient, rtol=1e-12)
