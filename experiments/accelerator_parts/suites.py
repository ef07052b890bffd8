"""The tests of losses and metrics, run on the device; see HAP2S_TEST_PLATFORM in tests/conftest.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import jax

from accelerator_parts.record import Record, has

_TESTS = Path(__file__).resolve().parents[2] / "tests"
# Title: what pytest is given. Those that need TensorFlow, several processes or a command are left out.
SUITES = {
    "tests of distances and losses": ("test_distances.py", "losses"),
    "tests of metrics": tuple(
        f"evaluation/test_{name}.py"
        for name in (
            "retrieval",
            "protocols",
            "reranking",
            "clustering",
            "thresholds",
            "statistics",
            "test_time",
        )
    ),
}
_TOY = {"tests of distances": ("test_distances.py::test_equals_direct_differences",)}
_OUTCOME = re.compile(
    r"(?:\[[^]]*\] )?(PASSED|FAILED|ERROR|SKIPPED)\s.*?(tests/\S+)|(tests/\S+) (PASSED|FAILED|ERROR|SKIPPED)"
)
_ENDING = 5.0
_WORKERS = 8


def run(record: Record) -> None:
    """A row for each suite, with the names of the tests that failed; where time runs out, of those that have run."""
    for title, files in (_TOY if record.toy else SUITES).items():
        with record.trying(title, seconds=1.0 if record.toy else 30.0):
            _suite(record, title, files)


def _suite(record: Record, title: str, files: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-m", "not slow", "-p", "no:cacheprovider"]
    # The project's own addopts are for its CI; other versions of libraries may warn.
    command += ["--override-ini=addopts=", "--override-ini=filterwarnings=default", "-rf"]
    if has("xdist") and not record.toy:
        command += ["-n", str(min(_WORKERS, os.cpu_count() or 1)), "--dist=load"]
    command += [str(_TESTS / name) for name in files]
    settings = {"HAP2S_TEST_PLATFORM": {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())}
    process = subprocess.Popen(
        command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watchdog = threading.Timer(max(record.left - _ENDING, 1), process.kill)
    watchdog.start()
    outcomes: dict[str, str] = {}
    output = ""
    assert process.stdout is not None
    for line in process.stdout:
        output += line
        if found := _OUTCOME.search(line):
            before, after, name, outcome = found.groups()
            outcomes[after or name] = before or outcome
    watchdog.cancel()
    counts = {
        kind.lower(): list(outcomes.values()).count(kind) for kind in ("PASSED", "FAILED", "ERROR", "SKIPPED")
    }
    failures = [name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]
    finished = process.wait() in (0, 1)
    wrong = counts["failed"] + counts["error"]
    goals = {"wrong": ("==", 0.0)} if finished else {}
    record.row(
        title, goals, wrong=wrong, **counts, finished=finished, failures=failures, output=output[-20_000:]
    )
