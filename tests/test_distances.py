import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hap2s_jax.distances
from hap2s_jax.distances import (
    check_distance,
    distances_between,
    gram_distances,
    pairwise_distances,
    products,
    safe_sqrt,
    scores,
    squares,
)


def direct(a, b, kind):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if kind == "cosine":
        a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
        return 1 - np.einsum("id,jd->ij", a, b)
    if kind == "negative_dot":
        return -np.einsum("id,jd->ij", a, b)
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return squared if kind == "squared_euclidean" else np.sqrt(squared)


@pytest.mark.parametrize("kind", ["euclidean", "squared_euclidean", "cosine", "negative_dot"])
def test_equals_direct_differences(kind):
    random = np.random.default_rng(0)
    a, b = random.normal(size=(5, 8)).astype("f"), random.normal(size=(7, 8)).astype("f")
    np.testing.assert_allclose(pairwise_distances(a, b, distance=kind), direct(a, b, kind), atol=2e-5)
    got = pairwise_distances(a, distance=kind)
    np.testing.assert_allclose(got, direct(a, a, kind), atol=2e-5)
    if kind.endswith("euclidean"):
        assert not np.diag(got).any()


def test_far_from_the_origin():
    random = np.random.default_rng(1)
    a = (1e4 + random.normal(size=(20, 16))).astype("f")
    np.testing.assert_allclose(pairwise_distances(a), direct(a, a, "euclidean"), atol=1e-4)


@pytest.mark.parametrize("dim", [2, 128, 512])
def test_duplicates_are_coincident(dim):
    a = np.random.default_rng(2).normal(size=(40, dim)).astype("f")
    got = pairwise_distances(np.concatenate([a, a]))
    assert not np.diag(got, 40).any()
    gradient = jax.grad(lambda x: pairwise_distances(x).sum())(jnp.ones((3, dim)))
    assert not gradient.any()


@pytest.mark.parametrize("kind", ["euclidean", "squared_euclidean", "cosine", "negative_dot"])
def test_ignored_rows_do_not_spread(kind):
    a = np.random.default_rng(3).normal(size=(6, 4)).astype("f")
    valid = np.array([True, True, False, True, True, True])
    broken = np.where(valid[:, None], a, np.nan)
    got, pull = jax.vjp(lambda x: pairwise_distances(x, distance=kind, valid=valid), jnp.asarray(broken))
    kept = np.ix_(valid, valid)
    np.testing.assert_allclose(np.asarray(got)[kept], direct(a, a, kind)[kept], atol=2e-5)
    (gradient,) = pull(jnp.ones_like(got))
    assert np.isfinite(gradient).all()
    assert not gradient[2].any()


def test_zero_vector_under_cosine():
    gradient = jax.grad(lambda x: pairwise_distances(x, distance="cosine").sum())(jnp.zeros((3, 4)))
    assert np.isfinite(gradient).all()


def test_safe_sqrt():
    np.testing.assert_allclose(safe_sqrt(jnp.array([4.0, 0.0, -1.0])), [2, 0, 0])
    np.testing.assert_allclose(jax.vmap(jax.grad(safe_sqrt))(jnp.array([4.0, 0.0, -1.0])), [0.25, 0, 0])


def test_bad_input():
    with pytest.raises(ValueError, match="distance is 'l1'"):
        pairwise_distances(np.ones((2, 2), np.float32), distance="l1")
    with pytest.raises(TypeError, match="embeddings are int"):
        pairwise_distances(np.ones((2, 2), np.int32))


@pytest.mark.parametrize("kind", ["euclidean", "squared_euclidean", "cosine", "negative_dot"])
def test_what_is_not_a_number_is_not_coincident(kind):
    a = np.ones((3, 4), np.float32)
    a[1, 2] = np.nan
    assert np.isnan(pairwise_distances(a, distance=kind)[1]).all()
    assert np.isnan(safe_sqrt(jnp.nan))


def test_metrics_geometry_is_the_losses():
    random = np.random.default_rng(4)
    a, b = random.normal(size=(5, 8)).astype("f"), random.normal(size=(7, 8)).astype("f")
    squared = direct(a, b, "squared_euclidean")
    np.testing.assert_allclose(gram_distances(jnp.asarray(a), jnp.asarray(b)), squared, atol=2e-5)
    np.testing.assert_allclose(squares(a), squares(jnp.asarray(a)), rtol=1e-6)
    own = squares(np.asarray(a, np.float64))[:, None]
    np.testing.assert_allclose(
        own + scores(products(jnp.asarray(a), jnp.asarray(b)), squares(jnp.asarray(b))), squared, atol=2e-5
    )
    for kind in ("euclidean", "squared_euclidean", "cosine", "negative_dot"):
        np.testing.assert_allclose(
            distances_between(a, b[:5], kind), direct(a, b, kind).diagonal(), atol=1e-12
        )
    with pytest.raises(ValueError, match="distance is 'negative_dot'; it should be one of euclidean, cosine"):
        check_distance("negative_dot", ("euclidean", "cosine"))


# Who else may multiply vectors, and what. Every entry must be needed.
MULTIPLIERS = {
    "distances": "the one geometry",
    "data.emoji.baseline": "the metrics of raw pixels by its own lines, in float64",
    "data.augment": "corners of images",
    "data.auto_augment": "corners of images",
    "models.attention": "tokens and weights of a transformer",
    "models.conv": "convolutions written as products",
    "models.vit": "positions of patches, resized",
    "reporting.plots": "principal axes of a picture",
    "evaluation.statistics": "drawn counts times sums",
    "evaluation.test_time": "images resized by matrices",
}
PRODUCTS = {"matmul", "einsum", "tensordot", "dot", "dot_general", "vdot", "vecdot", "inner"}


def multiplies(node):
    """Whether a node of a syntax tree is a product of arrays, or the sum of something's square."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if node.func.attr in PRODUCTS:
        return True
    if node.func.attr != "sum":
        return False
    of = [*node.args[:1], node.func.value]
    return any(
        isinstance(x, ast.BinOp)
        and (
            (isinstance(x.op, ast.Pow) and ast.unparse(x.right) == "2")
            or (isinstance(x.op, ast.Mult) and ast.unparse(x.left) == ast.unparse(x.right))
        )
        for x in of
    )


def test_no_other_module_multiplies_embeddings():
    package = pathlib.Path(hap2s_jax.distances.__file__).parent
    found = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if any(multiplies(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert found == set(MULTIPLIERS)
