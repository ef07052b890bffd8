"""The files that a command's user names for its results: none takes the place of another file unasked.

Whether a file that is there is an earlier result cannot be told safely: a table that was exported may hold hours of
work since. So none is replaced without ``--overwrite``, and nothing that the command reads is, even with it.
"""

from __future__ import annotations

import argparse
import glob
import os
import pathlib
from collections.abc import Iterator, Sequence

from hap2s_jax.data.places import is_bucket, place
from hap2s_jax.data.readers.files import EXTENSIONS
from hap2s_jax.errors import UserError

_RECORDS = ("config.json", "store.json")  # of a run, of a gallery's store
OVERWRITE = "replace files that are there already under the names of the results"


class Output(str):
    """The name of a file for results, as argparse's type; `check` looks for flags of this type."""


def check(options: argparse.Namespace, endings: Sequence[str] = ()) -> None:
    """Checks the names for results before any work.

    Args:
      options: of a command with the switch ``--overwrite``, and with flags of the type `Output`.
      endings: words that the command may add to these names, after "_".

    Raises:
      UserError: a file is there and not to be replaced, or two results have one name.
    """
    named = [value for value in vars(options).values() if isinstance(value, Output) and value]
    paths = [place(value) for value in named]
    for n, path in enumerate(paths):
        if path in paths[:n]:
            raise UserError(f"{path} is the name of two results; give them different names")
        for file in (path, *(path.with_stem(f"{path.stem}_{ending}") for ending in endings)):
            _refuse(file, options)


def _refuse(file: pathlib.Path, options: argparse.Namespace) -> None:
    """Raises a UserError if `file` is there and `options` do not allow to replace it."""
    if file.is_dir():
        raise UserError(f"{file} is a folder; give the name of a file for the result")
    if not file.is_file():  # nothing there, or a pipe
        return
    for given in _inputs(options):
        if given == str(file) or (not is_bucket(file) and _holds(given, file)):
            what = f"lies in {given}, which is" if os.path.isdir(given) else "is"
            raise UserError(
                f"{file} {what} what this command reads, and is not replaced; choose another name for the result"
            )
    if not options.overwrite:
        raise UserError(f"{file} exists; give --overwrite to replace it, or choose another name")


def _holds(given: str, file: pathlib.Path) -> bool:
    """Whether `given`, on this machine, is `file`, or holds it as an image, or as a part of a run or store."""
    if not os.path.isdir(given):
        return os.path.exists(given) and os.path.samefile(given, file)
    is_whole = any(os.path.exists(os.path.join(given, name)) for name in _RECORDS)
    inside = file.resolve().is_relative_to(os.path.realpath(given))
    return inside and (is_whole or file.suffix.lower() in EXTENSIONS)


def _inputs(options: argparse.Namespace) -> Iterator[str]:
    """The values of all other flags, as names of files: as they are, after a NAME: or KEY=, and what they match."""
    for value in vars(options).values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not isinstance(text, Output) and "\0" not in text:
                for part in filter(None, (text, text.partition(":")[2], text.partition("=")[2])):
                    name = os.path.expanduser(part)
                    yield from (name, *glob.glob(name))
