"""What every shipped config resolves to, pinned: no key or value changes unseen.

    python tests/test_shipped_configs.py     # writes what is there now, for review

``shipped_configs.json`` holds all leaves of the common config, and of every other config what differs from it.
"""

from __future__ import annotations

import functools
import importlib
import json
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from hap2s_jax.recipes import common  # noqa: E402
from hap2s_jax.run import config as configs  # noqa: E402

PINNED = HERE / "shipped_configs.json"
# Every config as it is, and every argument that some of them take.
ARGUMENTS = {
    "emoji": ("", "identification=false", "tiny", "gpu"),
    "glyphs": ("", "tiny"),
    "market1501": ("", "trinet", "bot", "agw", "vit", "autoaugment", "ema", "scratch", "bot,tiny"),
    "cub": ("", "dinov2", "autoaugment", "ema", "scratch", "tiny"),
} | dict.fromkeys(
    ("cars196", "cuhk03", "dukemtmc", "folder", "hf", "inshop", "msmt17", "sop", "veri776"), ("",)
)
ARGUMENTS["folder"] = ("", "dinov2")
ARGUMENTS["nyala"] = ("", "lion")
NAMES = [f"{name}:{argument}".rstrip(":") for name, every in ARGUMENTS.items() for argument in every]


def _leaves(name):
    module, _, argument = name.partition(":")
    config = common if module == "common" else importlib.import_module(f"configs.{module}")
    made = config.get_config(argument) if argument else config.get_config()
    return json.loads(json.dumps(configs.flatten(made)))


def _exact(value):
    """As config.json has it: 1 is not 1.0."""
    return json.dumps(value, sort_keys=True)


def _differences(name):
    """Key -> its value, where it is not the common config's; under "" the keys that the common one alone has."""
    usual, leaves = _leaves("common"), _leaves(name)
    gone = sorted(usual.keys() - leaves.keys())
    changed = {k: v for k, v in leaves.items() if k not in usual or _exact(usual[k]) != _exact(v)}
    return changed | ({"": gone} if gone else {})


@functools.cache
def _pinned():
    return json.loads(PINNED.read_text())


def _compare(found, pinned):
    assert found == pinned
    assert _exact(found) == _exact(pinned)


def test_every_config_is_pinned():
    runnable = {p.stem for p in (HERE.parent / "configs").glob("*.py")}
    assert runnable == ARGUMENTS.keys()
    assert ["common", *NAMES] == list(_pinned())


def test_the_common_config_is_as_it_was():
    _compare(_leaves("common"), _pinned()["common"])


@pytest.mark.parametrize("name", NAMES)
def test_a_config_differs_from_the_common_one_as_it_did(name):
    _compare(_differences(name), _pinned()[name])


if __name__ == "__main__":
    found = {"common": _leaves("common")} | {name: _differences(name) for name in NAMES}
    PINNED.write_text(json.dumps(found, indent=1) + "\n")
