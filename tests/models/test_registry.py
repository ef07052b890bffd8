"""Parameter counts of every named encoder, and what `create` refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hap2s_jax import models
from hap2s_jax.errors import UserError
from hap2s_jax.models.vit_families import VITS

# With the 1000-class classifier. Published by torchvision, resnet26 by timm; resnet10 is counted by hand from
# its table: stem 9,536, stages 73,984 + 230,144 + 919,040 + 3,673,088, classifier 513,000.
PARAMETERS = {
    "resnet10": 5_418_792,
    "resnet18": 11_689_512,
    "resnet26": 15_995_176,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
}


def count(model):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def test_no_name_is_left_out_of_the_table():
    assert set(PARAMETERS) | set(VITS) == set(models.names())  # transformers have a table of their own


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    assert count(models.create(name, embedding_dim=0, num_classes=1000)) == PARAMETERS[name]


def test_parameter_count_of_the_papers_head():
    headless = count(models.create("resnet50", embedding_dim=0))
    # FC 2048 x 1024 without bias, scale and bias of the normalisation, FC 1024 x 128 without bias.
    expected = headless + 2048 * 1024 + 2 * 1024 + 1024 * 128
    assert count(models.create("resnet50", hidden_dim=1024, embedding_dim=128)) == expected


def test_width_none_is_the_published_width():
    assert count(models.create("resnet18", embedding_dim=0, num_classes=1000, width=None)) == 11_689_512


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5O", {}, "did you mean 'resnet50'"),
        ("resnet50", {"last_strid": 1}, "did you mean 'last_stride'"),
        ("resnet50", {"stem": "small46"}, "did you mean 'small64'"),
        ("resnet50", {"last_stride": 3}, "last_stride is 3; choose one of 1, 2"),
        ("resnet50", {"pooling": "max"}, "pooling is 'max'"),
        ("resnet50", {"width": 0}, "width is 0"),
        ("resnet50", {"width": 31.5}, "width is 31.5"),
        ("resnext50_32x4d", {"width": 8}, "need at least 16"),
        ("resnet50", {"dtype": "bf16"}, "dtype is 'bf16'"),
        ("resnet50", {"remat_stages": (0,)}, "remat_stages is 0"),
        ("resnet50", {"hidden_dim": 64, "embedding_dim": 0}, "hidden_dim needs an embedding_dim"),
    ],
)
def test_a_mistake_is_one_clear_line(name, options, message):
    with pytest.raises(UserError) as error:
        models.create(name, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
