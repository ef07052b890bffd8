import importlib.util
import json
import pathlib

import ml_collections
import pytest

from hap2s_jax import formats
from hap2s_jax.errors import UserError
from hap2s_jax.run import config as configs
from hap2s_jax.run import facts

DECODING = {"exif": True, "background": (255, 255, 255), "max_pixels": 1000}


def _config(**changes):
    values = {
        "steps": 10,
        "seed": 0,
        "data": {"name": "emoji", "data_dir": None, "image_size": (64, 64), **DECODING},
        "log": {"every_steps": 5},
        "loss": {"name": "hap2s_e", "sigma": 0.5},
    }
    config = ml_collections.ConfigDict(values)
    config.update_from_flattened_dict(changes)
    return config.lock()


def test_saved_config_comes_back(tmp_path):
    configs.save(_config(), tmp_path)
    loaded = configs.load(tmp_path)
    assert configs.flatten(loaded) == configs.flatten(_config())
    assert json.loads((tmp_path / configs.FILE_NAME).read_text())["format"] == formats.FORMAT
    assert loaded.is_locked
    configs.check_resumable(_config(), tmp_path)


def test_named_keys_may_change_between_runs(tmp_path):
    configs.save(_config(), tmp_path)
    configs.check_resumable(
        _config(**{"steps": 99, "log.every_steps": 1, "data.data_dir": "/elsewhere"}), tmp_path
    )


@pytest.mark.parametrize("section", ["data.sources", "evaluate.on"])
def test_each_data_set_may_have_moved_but_is_the_same_one(tmp_path, section):
    def of(place, **options):
        entry = {"name": "folder", "data_dir": place, "options": options}
        parent, _, name = section.rpartition(".")
        values = _config().to_dict()
        values.setdefault(parent, {})[name] = {"own": entry}
        return ml_collections.ConfigDict(values).lock()

    configs.save(of("/here"), tmp_path)
    configs.check_resumable(of("/there"), tmp_path)
    assert facts.of_config(of("/here")) == facts.of_config(of("/there"))
    with pytest.raises(UserError, match=rf"{section}.own.options.split was 'absent', is 'open'"):
        configs.check_resumable(of("/there", split="open"), tmp_path)


def test_other_changes_are_refused_with_both_values(tmp_path):
    configs.save(_config(), tmp_path)
    with pytest.raises(UserError, match=r"loss.sigma was 0.5, is 0.1") as caught:
        configs.check_resumable(_config(**{"loss.sigma": 0.1, "seed": 3}), tmp_path)
    assert "seed was 0, is 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_added_and_removed_keys_are_refused(tmp_path):
    configs.save(_config(), tmp_path)
    other = ml_collections.ConfigDict(_config().to_dict())
    other.loss = {"name": "hap2s_e", "alpha": 10.0}
    with pytest.raises(UserError, match=r"loss.alpha was 'absent', is 10.0; loss.sigma was 0.5, is 'absent'"):
        configs.check_resumable(other, tmp_path)


def test_a_key_added_since_is_what_it_was(tmp_path):
    old = {**_config().to_dict(), "evaluate": {"flip": True}}  # from before formats had numbers
    (tmp_path / configs.FILE_NAME).write_text(json.dumps(old))
    new = ml_collections.ConfigDict(configs.load(tmp_path).to_dict())
    assert new.evaluate.zooms is False
    configs.check_resumable(new, tmp_path)
    new.evaluate.zooms = True
    with pytest.raises(UserError, match=r"evaluate.zooms was False, is True"):
        configs.check_resumable(new, tmp_path)


def test_only_what_a_config_lacks_is_laid_at_its_door(tmp_path):
    with pytest.raises(UserError, match="another version"), configs.written_by(tmp_path):
        _ = _config().evaluate
    with pytest.raises(UserError, match="another version"), configs.written_by(tmp_path):
        _ = _config()["evaluate"]
    with pytest.raises(KeyError, match="mine"), configs.written_by(tmp_path):
        _ = {}["mine"]
    with pytest.raises(AttributeError, match="mine"), configs.written_by(tmp_path):
        _ = tmp_path.mine


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        configs.load(tmp_path)
    (tmp_path / configs.FILE_NAME).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        configs.load(tmp_path)


def test_nearest_key():
    assert "did you mean --config.loss.sigma?" in configs.nearest_key(_config(), "loss.sgma")
    assert "did you mean --config.loss.sigma?" in configs.nearest_key(_config(), "sigma")


def _common():
    path = pathlib.Path(__file__).parents[2] / "hap2s_jax" / "recipes" / "common.py"
    spec = importlib.util.spec_from_file_location("common_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_config_arguments_are_typed():
    common = _common()
    parsed = common.parse_arg("tiny,loss=batch_hard,width=8", tiny=False, loss="hap2s_e", width=32)
    assert (parsed.tiny, parsed.loss, parsed.width) == (True, "batch_hard", 8)
    assert common.parse_arg(None, tiny=False).tiny is False
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        common.parse_arg("tini", tiny=False)
    with pytest.raises(UserError, match="width needs a int, as in width=32"):
        common.parse_arg("width=wide", width=32)
    with pytest.raises(UserError, match="width needs a int"):
        common.parse_arg("width", width=32)


def test_setting_a_loss_brings_its_hyperparameters_and_no_others():
    common = _common()
    config = common.get_config()
    common.set_loss(config, "hap2s_p", alpha=7.0)
    assert config.loss.name == "hap2s_p"
    assert config.loss.alpha == 7.0
    assert "sigma" not in config.loss
    with pytest.raises(UserError, match="alpha"):
        common.set_loss(config, "hap2s_p", alpah=7.0)
    with pytest.raises(UserError, match="did you mean 'hap2s_p'"):
        common.set_loss(config, "hap2s_pp")
