"""Lines of JSON, one for each measurement, written as soon as it is there, and the tables of them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import operator
import os
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hap2s_jax.reporting.table import to_markdown

# Besides those that a run records anyway.
_PACKAGES = ("torch", "pytorch-metric-learning", "transformers", "opencv-python-headless", "ml-collections")
_COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}
# Figures that stand in the file alone, not in tables.
_LONG = ("environment", "log", "results", "trace", "output", "failures")
_TEXT = 4000  # characters of an error that are kept
Goal = tuple[str, float]  # ("<=", 1.5)


class OutOfTime(Exception):
    """No time is left for what the argument names."""


class Record:
    """Appends the rows of one part to the file of results.

    Args:
      path: of the file.
      run: the same for all parts of a call.
      part: its name.
      deadline: seconds since the epoch at which the part must be done.
      toy: whether it only has to show that it runs.
    """

    def __init__(self, path: Path, run: str, part: str, deadline: float, toy: bool):
        self.path, self.part, self.deadline, self.toy = path, part, deadline, toy
        self._always = {"run": run, "part": part} | ({"toy": True} if toy else {})
        self._began = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that the part still has."""
        return self.deadline - time.time()

    def row(self, name: str, goals: Mapping[str, Goal] | None = None, **figures: Any) -> None:
        """Writes a row to the disk.

        Args:
          name: what was measured.
          goals: figure -> what it should be; whether it is so is written beside it.
          **figures: what JSON can hold.
        """
        line = {**self._always, "row": name, "at": round(time.monotonic() - self._began, 1), **figures}
        if goals:
            line["goals"] = {key: f"{how} {bound:g}" for key, (how, bound) in goals.items()}
            line["met"] = {
                key: bool(_COMPARE[how](figures[key], bound)) for key, (how, bound) in goals.items()
            }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())
        shown = {k: v for k, v in line.items() if k not in (*self._always, "row", *_LONG)}
        print(f"{self.part}: {name}: {_short(shown)}", flush=True)

    @contextlib.contextmanager
    def trying(self, name: str, seconds: float = 5.0) -> Iterator[None]:
        """Around one measurement: where it fails, that is a row too and the part goes on.

        Args:
          name: of the measurement.
          seconds: that it needs.

        Raises:
          OutOfTime: no such time is left.
        """
        if self.left < seconds:
            raise OutOfTime(name)
        try:
            yield
        except OutOfTime:
            raise
        except Exception as error:
            self.row(
                name,
                exception=f"{type(error).__name__}: {error}"[:_TEXT],
                trace=traceback.format_exc()[-_TEXT:],
            )


def environment(commit: str | None) -> dict[str, Any]:
    """Card, driver, versions and commit; `commit` counts where git does not know."""
    from hap2s_jax.reporting.environment import describe

    facts = describe()
    facts["commit"] = facts["commit"] or commit
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts["packages"][name] = importlib.metadata.version(name)
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
        facts["cards"] = answer.stdout.strip().splitlines()
    return facts


def has(*modules: str) -> bool:
    """Whether these can be imported."""
    return all(importlib.util.find_spec(name) for name in modules)


def report(path: Path, run: str | None) -> str:
    """Writes a table of all rows beside the file, and returns those of one call that have a goal, or failed.

    Args:
      path: the file of results.
      run: the call; None for all.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    text = "# On an accelerator\n"
    parts = {(line["run"], line["part"]): [] for line in lines}
    for line in lines:
        parts[line["run"], line["part"]].append(line)
    for (call, part), rows in parts.items():
        facts = next((row["environment"] for row in rows if row["row"] == "start"), {})
        command = next((row["command"] for row in rows if row["row"] == "start"), "")
        packages = ", ".join(f"{name} {version}" for name, version in facts.get("packages", {}).items())
        text += f"\n## {part}, {call}\n\n`{command}`\n\n"
        text += f"{'; '.join(facts.get('cards', facts.get('devices', {})))}; commit {facts.get('commit')}; "
        text += f"Python {facts.get('python')}, {packages}.\n\n"
        text += to_markdown({row["row"]: _cells(row) for row in rows if row["row"] != "start"}) + "\n"
    path.with_suffix(".md").write_text(text)
    shown = [line for line in lines if run in (None, line["run"]) and ("met" in line or "exception" in line)]
    return "\n".join(["", "goals:", *(_judged(line) for line in shown), f"written to {path}"])


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row's table: its figures, goals beside them."""
    left_out = ("run", "part", "row", "at", "toy", "goals", "met", "command", *_LONG)
    cells = {key: value for key, value in row.items() if key not in left_out}
    for key, goal in row.get("goals", {}).items():
        cells[f"goal: {key}"] = f"{goal}, {'met' if row['met'][key] else 'missed'}"
    return {
        key: value if isinstance(value, int | float | str) else _short(value) for key, value in cells.items()
    }


def _judged(line: Mapping[str, Any]) -> str:
    start = f"{line['part']}, {line['row']}: "
    if "exception" in line:
        return start + "failed, " + line["exception"].splitlines()[0][:200]
    goals = [
        f"{key} {_short(line[key])} (goal {goal}, {'met' if line['met'][key] else 'MISSED'})"
        for key, goal in line["goals"].items()
    ]
    return start + "; ".join(goals)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items() if k != "trace")
    return str(value)[:300]
