"""jit tells losses apart by their tree structure alone; JAX's own dataclasses of equal shape have equal structures."""

from dataclasses import dataclass, field

import jax
import numpy as np
import pytest
from loss_batches import clustered

from hap2s_jax import exponential, hap2s_loss
from hap2s_jax.losses import detached, mean_over_anchors
from hap2s_jax.losses.pairs import LiftedStructure, PositiveAgainstNegatives, SupervisedContrastive
from hap2s_jax.losses.pytrees import as_pytree, register_dataclass
from hap2s_jax.losses.triplets import BatchAll, SemiHard
from hap2s_jax.losses.weightings import as_weighting


def structure(loss):
    return jax.tree.structure(as_pytree(loss))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Once:
    factor: float

    def __call__(self, row):
        return self.factor * row.distances.sum(), row.is_positive.any()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Twice:
    factor: float

    def __call__(self, row):
        return 2 * self.factor * row.distances.sum(), row.is_positive.any()


def test_structures_of_losses_with_one_number_differ():
    kinds = (
        BatchAll,
        SemiHard,
        LiftedStructure,
        SupervisedContrastive,
        PositiveAgainstNegatives,
        Once,
        Twice,
    )
    for kind in kinds:
        assert structure(kind(0.1)) == structure(kind(0.2))
        assert all(structure(kind(0.1)) != structure(other(0.1)) for other in kinds if other is not kind)


class Scaled:
    def __call__(self, row):
        return self.scale() * row.distances.sum(), row.is_positive.any()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Half(Scaled):
    factor: float

    def scale(self):
        return self.factor / 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Third(Scaled):
    factor: float

    def scale(self):
        return self.factor / 3


def call(loss, row):
    return loss(row)


def test_what_lies_deeper_tells_losses_apart_too():
    partial = jax.tree_util.Partial
    assert structure(Half(1.0)) != structure(Third(1.0))
    assert structure(partial(call, Half(1.0))) != structure(partial(call, Third(1.0)))
    assert structure(partial(call, Half(1.0))) == structure(partial(call, Half(2.0)))
    assert structure(partial(call, [Half(1.0), Third(1.0)])) != structure(
        partial(call, [Third(1.0), Half(1.0)])
    )
    one = as_pytree(Half(1.0))
    assert structure(one) == jax.tree.structure(one)
    assert structure(partial(call, 2.0)) == jax.tree.structure(partial(call, 2.0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Growing:
    rate: float

    def __call__(self, distances, mask):
        return self.rate * distances


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Falling:
    rate: float

    def __call__(self, distances, mask):
        return -self.rate * distances


def test_weightings_of_users_dataclasses():
    embeddings, labels = clustered(0, [3, 3, 4])

    def value(rate, hold=lambda weighting: weighting, **options):
        weighting = hold((Growing(rate), Falling(rate)))
        return hap2s_loss(embeddings, labels, weighting=weighting, **options)

    def expected(rate, **options):
        return hap2s_loss(embeddings, labels, weighting=exponential(1 / rate), **options)

    for options in ({"block_size": "never"}, {"block_size": 4}):
        got, wanted = (jax.value_and_grad(f)(2.0, **options) for f in (value, expected))
        np.testing.assert_allclose(got, wanted, rtol=1e-4)
    kinds = [as_weighting(pair) for pair in ((Growing(1.0), Falling(1.0)), (Falling(1.0), Growing(1.0)))]
    assert jax.tree.structure(kinds[0]) != jax.tree.structure(kinds[1])
    assert jax.tree.structure(detached(kinds[0])) != jax.tree.structure(detached(kinds[1]))
    np.testing.assert_allclose(value(2.0, detached), value(2.0), rtol=1e-6)
    plain = hap2s_loss(
        embeddings, labels, weighting=detached((lambda d, mask: 2 * d, lambda d, mask: -2 * d))
    )
    np.testing.assert_allclose(plain, expected(2.0), rtol=1e-5)


def test_a_dataclass_that_jax_does_not_know_is_refused():
    @dataclass(frozen=True)
    class Unknown:
        rate: float

        def __call__(self, distances, mask):
            return self.rate * distances

    embeddings, labels = clustered(0, [3, 3, 4])
    with pytest.raises(TypeError, match=r"Unknown is a dataclass that JAX does not know; register it"):
        hap2s_loss(embeddings, labels, weighting=(Unknown(1.0), Unknown(-1.0)))


def test_a_users_own_dataclass_keeps_its_value_and_gradient():
    embeddings, labels = clustered(0, [3, 3, 4])

    def value(loss):
        return mean_over_anchors(loss, embeddings, labels, block_size=4)

    np.testing.assert_allclose(value(Twice(0.5)), value(Once(1.0)), rtol=1e-6)
    gradient = jax.grad(lambda factor: value(Twice(factor)))(1.0)
    np.testing.assert_allclose(gradient, value(Twice(1.0)), rtol=1e-6)


def test_static_fields_and_names_are_kept():
    @register_dataclass
    @dataclass(frozen=True)
    class Power:
        scale: float
        order: int = field(default=2, metadata={"static": True})

    power = Power(3.0, 4)
    leaves, kept = jax.tree_util.tree_flatten_with_path(power)
    assert leaves == [((jax.tree_util.GetAttrKey("scale"),), 3.0)]
    assert jax.tree.unflatten(kept, [5.0]) == Power(5.0, 4)
    assert kept != jax.tree.structure(Power(3.0, 5))
    assert jax.jit(lambda x: x.scale**x.order)(power) == pytest.approx(81.0)
