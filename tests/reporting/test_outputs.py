"""No command replaces a file that is there, or one that it reads, and it says so before any work."""

from __future__ import annotations

import argparse

import pytest

from hap2s_jax import check_data, cli, convert, evaluate, export, gallery, rehearse, search
from hap2s_jax.errors import UserError
from hap2s_jax.reporting import outputs
from hap2s_jax.reporting.outputs import Output

# Each would fail for another reason if it began its work.
_COMMANDS = {
    "search --picture": (search, ["--gallery=g.npz", "--query", "q.jpg", "--picture=mine"]),
    "search --json": (search, ["--gallery=g.npz", "--query", "q.jpg", "--json=mine"]),
    "search --calibrate": (search, ["--gallery=g.npz", "--calibrate", "--query", "q.jpg", "--json=mine"]),
    "check_data": (check_data, ["--name=folder", "--data_dir=photos", "--sheet=mine"]),
    "evaluate --json": (evaluate, ["--embeddings=x.npz", "--json=mine"]),
    "evaluate --roc": (evaluate, ["--embeddings=x.npz", "--roc=mine"]),
    "evaluate --worst": (evaluate, ["--workdir=x", "--worst=mine"]),
    "evaluate --per_query": (evaluate, ["--embeddings=x.npz", "--per_query=mine"]),
    "rehearse": (rehearse, ["--config=emoji:tiny", "--json=mine"]),
    "convert": (convert, ["a.pth", "mine.safetensors"]),
    "gallery export": (gallery, ["export", "store", "--output=mine"]),
    "export": (export, ["--workdir=x", "--output=folder"]),
    "export of one format": (export, ["--workdir=x", "--output=folder", "--formats=saved_model"]),
}


@pytest.mark.parametrize("name", _COMMANDS)
def test_a_file_that_is_there_stays(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hap2s_jax.extras.require", lambda *names: None)
    for file in ("mine", "mine.safetensors", "folder/saved_model/mine"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("my own")
    command, arguments = _COMMANDS[name]
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert "exists; give --overwrite to replace it, or choose another" in error
    assert error.count("\n") == 1
    assert {file.read_text() for file in tmp_path.rglob("*") if file.is_file()} == {"my own"}
    assert command.main([*arguments, "--overwrite"]) == 1  # now for what is missing
    assert "--overwrite" not in capsys.readouterr().err


@pytest.mark.parametrize("module", [search, check_data, evaluate, rehearse, convert, gallery])
def test_every_flag_that_names_a_result_is_checked(module, monkeypatch):
    """By their helps: what is written, drawn or replaced is an output, and its command has --overwrite."""
    parsers = []
    monkeypatch.setattr(cli, "start", lambda work, parser, *_, **__: parsers.append(parser))
    for subcommand in gallery.SUBCOMMANDS if module is gallery else [None]:
        module.main([subcommand, "x"] if subcommand else [])
    found = 0
    for action in (action for parser in parsers for action in parser._actions):
        words = (action.help or "").split()
        if action.metavar == "FILE" and {"write", "draw", "curve"} & {*words}:
            assert action.type is Output, action.option_strings
        found += action.type is Output
    assert found
    for parser in parsers:
        if any(action.type is Output for action in parser._actions):
            assert "--overwrite" in parser._flags()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"query": ["a.jpg", "b.jpg"]}, "b.jpg is what this command reads"),
        ({"query": ["photos/../b.jpg"]}, "b.jpg is what this command reads"),
        ({"query": ["link.jpg"]}, "b.jpg is what this command reads"),
        ({"gallery": "?.jpg"}, "b.jpg is what this command reads"),
        ({"data": ["folder:b.jpg"]}, "b.jpg is what this command reads"),
        ({"option": ["path=b.jpg"]}, "b.jpg is what this command reads"),
        ({"images": "."}, r"b.jpg lies in \., which is what this command reads"),
        ({"workdir": "run", "json": Output("run/results.json")}, "results.json lies in run, which is what"),
        ({"json": Output("b.jpg")}, "b.jpg is the name of two results"),
        ({"json": Output("photos")}, "photos is a folder"),
    ],
)
def test_what_a_command_reads_is_not_replaced_even_if_told_to(tmp_path, monkeypatch, value, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "run").mkdir()
    for name in ("b.jpg", "run/config.json", "run/results.json", "photos/out.json"):
        (tmp_path / name).write_text("my own")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "b.jpg")
    options = argparse.Namespace(overwrite=True, picture=Output("b.jpg"))
    outputs.check(options)
    outputs.check(argparse.Namespace(overwrite=True, images=".", json=Output("photos/out.json")))
    with pytest.raises(UserError, match=says):
        outputs.check(argparse.Namespace(**vars(options), **value))


def test_names_that_the_command_makes_of_one_are_checked(tmp_path):
    (tmp_path / "out_class.csv").write_text("my own")
    options = argparse.Namespace(overwrite=False, per_query=Output(tmp_path / "out.csv"))
    outputs.check(options)
    with pytest.raises(UserError, match=r"out_class.csv exists; give --overwrite"):
        outputs.check(options, ["class"])
