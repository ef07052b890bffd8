"""Config files as the command line names them, with the values that it changes.

The files themselves and ``--config.KEY=VALUE`` are ml_collections'. A file that is not there is looked for among the
configs that come with the package, which your own config may import too: ``from configs import emoji``.
"""

from __future__ import annotations

import ast
import importlib
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence

from hap2s_jax.cli import UsageError
from hap2s_jax.data.places import local
from hap2s_jax.errors import UserError, did_you_mean, reason
from hap2s_jax.run import config as configs

_PACKAGE = pathlib.Path(__file__).parents[1]
# In an installed package, and in a checkout.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def shipped() -> dict[str, pathlib.Path]:
    """The configs that come with the package, by name."""
    found = (sorted(folder.glob("*.py")) for folder in _FOLDERS if folder.is_dir())
    return {path.stem: path for path in next(found, [])}


def listing() -> Iterator[str]:
    """A line for each of the configs that come with the package."""
    names = shipped()
    width = max(map(len, names), default=0)
    for name, path in names.items():
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        yield f"{name:<{width}}  {summary}"


def read(arguments: Sequence[str]) -> configs.Config:
    """The config, locked.

    Args:
      arguments: those that begin with ``--config``, as `hap2s_jax.cli.Parser` collects them.

    Raises:
      UsageError: in one line, for any mistake in the file, its argument, a key or a value.
    """
    given = _located(arguments)
    _offer_shipped_configs()
    try:
        return _parsed(given)
    except Exception as error:  # a config file is code: it may raise anything
        raise UsageError(_explain(error, given)) from error


def _located(arguments: Sequence[str]) -> list[str]:
    """The arguments with the path of the file in them, as ``--config=PATH:ARGUMENT``."""
    given: list[str] = []
    files = 0
    for item in arguments:
        if given and given[-1] in ("-config", "--config"):
            given[-1] = f"--config={item}"
        else:
            given.append(item)
    for i, item in enumerate(given):
        if match := re.fullmatch(r"--?config=([^:]*)(:.*)?", item, re.DOTALL):
            files += 1
            given[i] = f"--config={_find(match[1])}{match[2] or ''}"
    if files != 1:
        raise UsageError(
            f"--config is given {files} times; give one file, its argument after a colon"
            if files
            else "no config given; give --config=FILE, as --config=configs/emoji.py; --list_configs names more"
        )
    return given


def _find(name: str) -> str:
    path, known = local(name), shipped()
    if path.is_file():
        return str(path)
    if path.parent in (pathlib.Path("."), pathlib.Path("configs")) and path.name.removesuffix(".py") in known:
        return str(known[path.name.removesuffix(".py")])
    nearby = sorted(map(str, path.parent.glob("*.py"))) if path.parent.is_dir() and path.name != name else []
    there = f"there are: {', '.join(nearby)}" if nearby else f"known by name: {', '.join(known)}"
    raise UsageError(
        f"config file {name} does not exist; {there} (the working directory is {os.getcwd()})"
        f"{did_you_mean(path.stem, known)}"
    )


def _offer_shipped_configs() -> None:
    """Lets ``from configs import emoji`` find the shipped configs, after those in the user's own folder."""
    try:
        package = importlib.import_module("configs")
    except ImportError:
        package = sys.modules["configs"] = types.ModuleType("configs")
        package.__path__ = []
    folders = {str(path.parent) for path in shipped().values()} - set(getattr(package, "__path__", ()))
    if folders and hasattr(package, "__path__"):
        package.__path__ = [*package.__path__, *folders]


def _parsed(given: Sequence[str]) -> configs.Config:
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    line = [sys.argv[0], *given]
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=line)
    left = values(line)[1:]
    if left:
        raise UsageError(f"unknown argument {left[0]!r}; options are written --name=value")
    config = values["config"].value
    assert config is not None
    config.keys()  # an OSError in the file is raised only here
    return config


# Python's message for a value that cannot be converted -> what it should have been.
_KINDS = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "true or false",
}


def _explain(error: Exception, given: Sequence[str]) -> str:
    if isinstance(error, UserError):
        return str(error)
    text = str(error).strip()
    if "Error whilst parsing config file" in text:
        # The message holds a whole traceback; its last line is the error itself.
        last = text.splitlines()[-1]
        if match := re.fullmatch(r"hap2s_jax\.(?:errors|cli)\.\w+: (.*)", last):
            return match[1]
        lines = re.findall(r'File "([^"]+)", line (\d+)', text)
        return _failed(lines[-1] if lines else None, last)
    if unknown := _unknown_key(given):
        return unknown
    path = re.sub(r"^--config=([^:]*).*", r"\1", next(item for item in given if item.startswith("--config=")))
    inside = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename) == os.path.abspath(path)
    ]
    if isinstance(error, SyntaxError) and error.filename:
        return _failed((error.filename, error.lineno), f"SyntaxError: {error.msg}")
    if inside:
        return _failed(inside[-1], f"{type(error).__name__}: {text}{_moved(error)}")
    for words, kind in _KINDS.items():
        if words in text and (flag := re.match(r"flag (--config\.[\w.]+)=(.*?): ", text)):
            return f"{flag[1]}: must be {kind}, found {flag[2]!r}"
    return reason(error)


def _failed(where: tuple[object, object] | None, error: str) -> str:
    return (
        f"the config file failed at {where[0]}:{where[1]}: {error}"
        if where
        else f"the config file failed: {error}"
    )


def _moved(error: Exception) -> str:
    """The new place of the shared recipes, for an old config that expects them in its own folder."""
    if not isinstance(error, ImportError):
        return ""
    names = re.findall(r"\b(common|reid|fine_grained)\b", str(error))
    return (
        f"; it is hap2s_jax.recipes.{names[0]} now: from hap2s_jax.recipes import {names[0]}" if names else ""
    )


def _unknown_key(given: Sequence[str]) -> str | None:
    """The first override ``--config.KEY=...`` whose key the config lacks, explained."""
    keys = [m[1] for item in given if (m := re.match(r"--?(?:no)?config\.([\w.]+)", item))]
    if not keys:
        return None
    try:
        config = _parsed([item for item in given if item.startswith("--config=")])
    except Exception:  # the file itself is wrong
        return None
    known = configs.flatten(config)
    for key in keys:
        if key not in known and not any(k.startswith(key + ".") for k in known):
            return configs.nearest_key(config, key)
    return None
