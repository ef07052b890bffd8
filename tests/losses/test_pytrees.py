"""jit tells losses apart by their tree structure alone; JAX's own dataclasses of equal shape have equal structures."""

from dataclasses import dataclass, field

import jax
import numpy as np
import pytest
from loss_batches import clustered

from hap2s_jax.losses import mean_over_anchors
from hap2s_jax.losses.pairs import LiftedStructure, PositiveAgainstNegatives, SupervisedContrastive
from hap2s_jax.losses.pytrees import as_pytree, register_dataclass
from hap2s_jax.losses.triplets import BatchAll, SemiHard


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
