"""Encoders of one's own by name: linen, nnx through its bridge, and what is refused."""

import importlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import hap2s_jax
from hap2s_jax import embed, evaluate, models
from hap2s_jax.errors import UserError
from hap2s_jax.run import config as configs
from hap2s_jax.run.evaluator import embedding_function
from hap2s_jax.training.optimizer import matches

HERE = "tests.models.my_encoders"


@pytest.fixture(autouse=True)
def _importable(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath))


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["Tiny", "tiny_nnx"])
def test_trains_like_one_of_ours(name):
    encoder = models.create(f"{HERE}:{name}", embedding_dim=8, width=64, axis_name="devices")
    variables = encoder.init(jax.random.key(0), IMAGES)
    state = {key: value for key, value in variables.items() if key != "params"}

    @jax.jit
    def gradients(params):
        def loss(params):
            output, _ = encoder.apply({"params": params, **state}, IMAGES, train=True, mutable=list(state))
            return jnp.square(output.embedding - 1).mean()

        return jax.grad(loss)(params)

    output = encoder.apply(variables, IMAGES)
    assert isinstance(output, models.EncoderOutput)
    assert output.embedding.shape == (4, 8)
    assert output.embedding.dtype == jnp.float32
    found = jax.tree.leaves(gradients(variables["params"]))
    assert all(np.isfinite(leaf).all() for leaf in found)
    assert any(float(jnp.abs(leaf).max()) > 1e-3 for leaf in found)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_package.models:Tiny", {}, "cannot import 'no_such_package.models'"),
        (f"{HERE}:Tinny", {}, "has no 'Tinny'"),
        (f"{HERE}:no_module", {}, "makes a builtins.int, not a flax.linen module"),
        (f"{HERE}:IMAGES", {}, "has no 'IMAGES'"),
        (f"{HERE}:Tiny", {"last_stride": 1}, "takes no option 'last_stride'; it takes embedding_dim"),
    ],
)
def test_mistakes_are_one_line(name, options, message):
    with pytest.raises(UserError) as error:
        models.create(name, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_it_wants_frozen_is_found_in_its_parameters():
    encoder = models.create(f"{HERE}:Careful")
    params = jax.eval_shape(encoder.init, jax.random.key(0), IMAGES)["params"]
    frozen = matches(params, encoder.frozen_parameters)["module"]
    assert frozen == {"Conv_0": {"bias": True, "kernel": True}, "Dense_0": {"bias": False, "kernel": False}}


def test_an_encoder_that_returns_maps_is_told_so():
    encoder = models.create(f"{HERE}:Maps")
    with pytest.raises(TypeError, match=r"Maps returned \(4, 16, 16, 3\)"):
        encoder.init(jax.random.key(0), IMAGES)


def test_a_mean_over_views_has_length_1_where_embeddings_have():
    views = {"flip": True, "five_crops": True, "zooms": False, "crop": 0.5}
    settings = ml_collections.ConfigDict({"feature": "retrieval", "distance": "euclidean", **views})
    encoder = models.create(f"{HERE}:TinyUnit", normalize=True)
    found = embedding_function(encoder, settings)({}, IMAGES)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    # Of one that does not say so, it is the plain mean.
    mean = embedding_function(models.create(f"{HERE}:TinyUnit", normalize=False), settings)({}, IMAGES)
    assert np.all(np.linalg.norm(mean, axis=1) < 0.9999)


def test_a_function_is_not_called_for_whoever_only_opens_a_run(tmp_path, capsys):
    config = importlib.import_module("configs.emoji").get_config("tiny")
    for name, says in ((f"{HERE}:tiny_nnx", "--own_code"), ("os:system", "may do anything")):
        config.encoder.name = name
        configs.save(config, tmp_path)
        with pytest.raises(UserError, match=says):
            hap2s_jax.load(tmp_path)
    for name, flags in (("flax.linen:Dense", []), (f"{HERE}:tiny_nnx", ["--own_code"])):
        config.encoder.name = name
        configs.save(config, tmp_path)
        with pytest.raises(UserError, match="holds no finished checkpoint"):
            hap2s_jax.load(tmp_path, own_code=bool(flags))
        given = [f"--workdir={tmp_path}", *flags]
        assert evaluate.main(given) == 1
        assert embed.main([*given, "--images=x", f"--output={tmp_path}/x.npz"]) == 1
        assert capsys.readouterr().err.count("holds no finished checkpoint") == 2
