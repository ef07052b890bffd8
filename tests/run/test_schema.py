"""Every key of a config has a type, a range and a meaning, and whatever breaks them is one line that names the key."""

import importlib.util
import math
import pathlib

import pytest

from hap2s_jax.errors import UserError
from hap2s_jax.recipes import common
from hap2s_jax.run import schema
from hap2s_jax.settings import reference

ROOT = pathlib.Path(__file__).parents[2]
KEYS = [name for name, *_ in reference(schema.Run) if name not in ("loss", "auxiliary", "data.options")]


def _with(key, value):
    """The defaults as nested dictionaries, as json.loads would give them, but for one key."""
    config = common.get_config().to_dict()
    section = config
    *above, last = key.split(".")
    for name in above:
        section = section[name]
    section[last] = value
    return config


def test_the_defaults_are_as_the_schema_wants_them():
    checked = schema.check(common.get_config())
    assert (checked.steps, checked.batch.classes, checked.loss["name"]) == (20_000, 16, "hap2s_e")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [{"a": 1}, [[1]], math.nan, -math.inf, b"x"], ids=str)
def test_a_value_of_no_sensible_type_is_refused_for_every_key(key, value):
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as raised:
        schema.check(_with(key, value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("evaluate.enlarge", 1e9, "between 1 and 16"),
        ("evaluate.batch_size", 1.5, "a whole number"),
        ("evaluate.batch_size", True, "a whole number"),
        ("evaluate.distance", "euclidian", "did you mean 'euclidean'"),
        ("data.image_size", -1, "2 values"),
        ("data.image_size", [64, 64, 3], "2 values"),
        ("data.image_size", [100_000, 100_000], "height and width in pixels"),
        ("data.image_size", "64,64", "2 values"),
        ("batch.classes", 0, "at least 1"),
        ("ema_decay", 1.0, "below 1"),
        ("schedule.boundaries", [0.5, 0.2], "rising"),
        ("optimizer.frozen", "encoder", "a list"),
        ("optimizer", [], "keys and values"),
        ("data.nmae", "x", "did you mean 'name'"),
        ("log.tensorboard", "yes", "true or false"),
    ],
)
def test_nonsense_is_one_line_with_the_key(key, value, told):
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as raised:
        schema.check(_with(key, value))
    assert told in str(raised.value)


def test_an_encoder_of_ones_own_has_options_of_its_own():
    config = _with("encoder", {"name": "mine:Net", "depth": 3, "embedding_dim": 8})
    assert schema.check(config).encoder.embedding_dim == 8
    config["encoder"]["embedding_dim"] = "many"
    with pytest.raises(UserError, match=r"encoder\.embedding_dim"):
        schema.check(config)


def test_every_key_is_explained_and_the_page_is_up_to_date():
    unexplained = [name for name, _, meaning in reference(schema.Run) if not meaning]
    assert not unexplained
    spec = importlib.util.spec_from_file_location("page", ROOT / "docs" / "write_config_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.page(), "run python docs/write_config_page.py"
