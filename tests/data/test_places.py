"""Places as users write them: ~ is the home folder wherever a file or folder is named."""

from __future__ import annotations

import argparse
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from hap2s_jax import check_data, evaluate
from hap2s_jax.data.places import local, place
from hap2s_jax.errors import UserError
from hap2s_jax.reporting import outputs
from hap2s_jax.reporting.outputs import Output
from hap2s_jax.run import config_file, trainer
from hap2s_jax.serving import index, joined, listing


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with photos and embeddings; the working directory is another one."""
    home = tmp_path / "home"
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(home))
    for label in ("a", "b", "c", "d"):
        (home / "photos" / label).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number, 9, ord(label))).save(home / "photos" / label / f"{number}.png")
    np.savez(home / "x.npz", embeddings=np.eye(4, dtype=np.float32), labels=[0, 0, 1, 1])
    (home / "pairs.csv").write_text("0,1\n0,2\n1,3\n2,3\n")
    (home / "mine.py").write_text("from configs.emoji import get_config\n")
    yield home
    assert list(pathlib.Path().iterdir()) == []


def test_a_place_is_expanded(home):
    assert place("~/x") == place(pathlib.Path("~/x")) == local("~/x") == home / "x"
    assert str(place("~nobody-of-this-name/x")) == "~nobody-of-this-name/x"
    assert str(place("a~/~")) == "a~/~"


def test_commands_read_and_write_at_home(home, capsys):
    arguments = ["--embeddings=~/x.npz", "--pairs=~/pairs.csv", "--json=~/out.json", "--per_query=~/out.csv"]
    assert evaluate.main(arguments) == 0, capsys.readouterr().err
    assert evaluate.main(arguments) == 1
    assert f"{home}/out.csv exists" in capsys.readouterr().err
    check = ["--name=folder", "--data_dir=~/photos", "--sheet=~/sheet.png"]
    assert check_data.main(check) == 0, capsys.readouterr().err
    assert {"out.json", "out.csv", "sheet.png"} <= {path.name for path in home.iterdir()}


def test_what_commands_read_is_found_at_home(home, monkeypatch):
    assert listing.list_images("~/photos").root == home / "photos"
    with pytest.raises(UserError, match=f"{home}/x.npz lacks"):  # it is found, and not of ours
        joined.read("~/x.npz")
    with pytest.raises(UserError, match=f"{home}/x.npz lacks"):
        joined.read("~/?.npz")
    assert index.cache_of("~/x.npz") == index.cache_of(home / "x.npz")
    assert config_file.read(["--config=~/mine.py"]).name == "emoji"
    options = argparse.Namespace(overwrite=True, query=["~/x.npz"], json=Output(home / "x.npz"))
    with pytest.raises(UserError, match="is what this command reads"):
        outputs.check(options)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    set_to = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    trainer.use_compilation_cache(argparse.Namespace(compilation_cache="~/cache"))  # type: ignore[arg-type]
    assert set_to["jax_compilation_cache_dir"] == f"{home}/cache"
