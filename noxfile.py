"""What CI runs, by name: `nox -s lint tests`, `nox -s lowest`, `nox -s wheel`. uv makes the environments."""

from __future__ import annotations

import os
import pathlib
import re
import tempfile

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "tests"]

ROOT = pathlib.Path(__file__).parent
TOOLS = ("hypothesis", "pytest", "pytest-xdist")
# What finds out soonest that a version does not suit; "-m not slow" leaves out the end-to-end tests.
QUICK = (
    "tests/test_distances.py",
    "tests/losses",
    "tests/models",
    "tests/training",
    "tests/run",
    "tests/serving",
)
# Of torch the CPU build, by its exact version.
TORCH = "torch==2.13.0"


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format and types."""
    session.install("-e", ".[train,dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, but for those that compare with torch; `nox -s tests -- -k NAME` runs some."""
    session.install("-e", ".[train,dev,demo,hub,parquet,study]")
    session.run("pytest", "-q", *session.posargs)


@nox.session(python="3.11", venv_backend="venv")
def peers(session: nox.Session) -> None:
    """The tests that compare with other libraries."""
    try:
        session.install("-q", TORCH)
    except nox.command.CommandFailed:
        session.skip(f"{TORCH} cannot be had: the tests that compare with it do not run")
    session.install("-q", "-e", ".[train,hub,parquet,bench]", *TOOLS)
    compares = re.compile(r'importorskip\("(torch|faiss)"\)')
    files = [
        str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if compares.search(path.read_text())
    ]
    session.run("pytest", "-q", *files, *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The quick tests and a tiny main job with the lowest versions that pyproject.toml allows."""
    session.install("--resolution=lowest-direct", "-e", ".[train,hub,parquet]")
    session.install(*TOOLS)
    _quick_tests_and_main_job(session)


@nox.session(python=["3.13", "3.12"])
def newest(session: nox.Session) -> None:
    """The same with the newest Python and the newest of everything."""
    session.install("--upgrade", "-e", ".[train,hub,parquet]", *TOOLS)
    _quick_tests_and_main_job(session)


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the site into build/site; dead links and public names without reference fail."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--config-file", "docs/site/mkdocs.yml")


@nox.session
def notebooks(session: nox.Session) -> None:
    """Runs each notebook, in two minutes at most, and leaves it with what it shows in build/notebooks."""
    session.install("-e", ".[train,notebooks]")
    session.run("python", "docs/site/run_notebooks.py", *session.posargs)


@nox.session(python="3.11")
def services(session: nox.Session) -> None:
    """The tests of what writes to other services and formats, whose libraries bring much with them."""
    session.install("-e", ".[train,onnx,wandb,mlflow,hf]", *TOOLS)
    chosen = (
        "tests/data/test_hf.py",
        "tests/reporting/test_trackers.py",
        "tests/serving/test_export_command.py",
        "-k",
        "has_one_run or onnx or test_hf",
    )
    session.run("pytest", "-q", *(session.posargs or chosen))


@nox.session
def wheel(session: nox.Session) -> None:
    """Builds the wheel, and does with it what a stranger would, from an empty folder."""
    session.install("build", "twine")
    with tempfile.TemporaryDirectory() as built:
        session.run("python", "-m", "build", "-q", "-o", built, str(ROOT))
        (path,) = pathlib.Path(built).glob("*.whl")
        session.run("twine", "check", "--strict", *map(str, pathlib.Path(built).iterdir()))
        session.log(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")
        session.install(f"hap2s_jax @ {path.as_uri()}")
        _as_stranger(session, "base")
        session.install(f"hap2s_jax[train] @ {path.as_uri()}")
        _as_stranger(session, "train")


def _quick_tests_and_main_job(session: nox.Session) -> None:
    session.run("pytest", "-q", "-m", "not slow", *(session.posargs or QUICK))
    workdir = os.path.join(session.create_tmp(), "tiny")
    session.run("python", "-m", "hap2s_jax.main", "--config=configs/emoji.py:tiny", f"--workdir={workdir}")


def _as_stranger(session: nox.Session, installed: str) -> None:
    with tempfile.TemporaryDirectory() as empty, session.chdir(empty):
        home = {"HOME": empty, "XDG_CACHE_HOME": f"{empty}/.cache", "PYTHONPATH": ""}
        session.run("bash", str(ROOT / ".ci" / "stranger"), installed, external=True, env=home)
