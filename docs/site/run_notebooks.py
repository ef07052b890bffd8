"""Runs the notebooks of docs/notebooks and writes them with what they show: `python docs/site/run_notebooks.py [NAME]`.

A notebook that raises, or takes longer than it may, ends the command.
"""

from __future__ import annotations

import os
import pathlib
import sys
import time

import jupytext
import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[2]
TARGET = ROOT / "build" / "notebooks"
SECONDS = 120


def main(names: list[str]) -> None:
    """Runs those of the names, or all."""
    TARGET.mkdir(parents=True, exist_ok=True)
    # The kernel finds the package and its configs whether or not they are installed.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.py")):
        if names and path.stem not in names:
            continue
        notebook, began = jupytext.read(path), time.monotonic()
        nbclient.NotebookClient(
            notebook, kernel_name="python3", resources={"metadata": {"path": str(TARGET)}}
        ).execute()
        seconds = time.monotonic() - began
        nbformat.write(notebook, TARGET / f"{path.stem}.ipynb")
        print(f"{path.stem}: {seconds:.0f} s", flush=True)
        if seconds > float(os.environ.get("NOTEBOOK_SECONDS", SECONDS)):
            sys.exit(f"{path.stem} took {seconds:.0f} s; it should take at most {SECONDS}")


if __name__ == "__main__":
    main(sys.argv[1:])
