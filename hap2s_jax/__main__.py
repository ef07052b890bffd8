"""The commands: ``python -m hap2s_jax`` lists them, ``hap2s embed ...`` is ``python -m hap2s_jax.embed ...``."""

from __future__ import annotations

import ast
import importlib
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import hap2s_jax
from hap2s_jax import cli
from hap2s_jax.errors import unknown_name

COMMANDS = (
    *("main", "evaluate", "embed", "search", "demo", "gallery"),
    *("export", "check_data", "pack", "rehearse", "convert"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Lists the commands, or runs one; returns its exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("--help", "-h"):
        return cli.ended(lambda: print(*_listing(), sep="\n"))
    if name == "--version":
        return cli.ended(lambda: print(f"hap2s_jax {hap2s_jax.__version__}"))
    command = name.replace("-", "_")
    if command not in COMMANDS:
        print(f"error: {unknown_name('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    # As with `python -m`: a user's config may import modules from the current folder.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(f"hap2s_jax.{command}").main(rest)


def _listing() -> Iterator[str]:
    yield "Run hap2s COMMAND --help for details; python -m hap2s_jax.COMMAND does the same as hap2s COMMAND.\n"
    for name in COMMANDS:
        source = (pathlib.Path(__file__).parent / f"{name}.py").read_text()
        summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        yield f"  {name:<{max(map(len, COMMANDS))}}  {summary.partition(':')[0].rstrip('.')}"


if __name__ == "__main__":
    sys.exit(main())
