"""The drill counts what ends badly, goes on behind it, and of files finds nothing."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

BAD = """
import os, pathlib, time
from drill import Trial, WrongError
from hap2s_jax.errors import UserError

def refuse(): raise UserError("one line")
def wrong(): raise WrongError("another number")
def trials(seed, folder):
    yield Trial("warm", int, is_warm_up=True)
    yield Trial("fine", int, folder)
    yield Trial("refused", refuse, folder)
    yield Trial("two lines", lambda: (_ for _ in ()).throw(UserError("a\\nb")), folder)
    yield Trial("traceback", lambda: 1 / 0, folder)
    yield Trial("wrong", wrong, folder)
    yield Trial("crash", os.abort, folder)
    yield Trial("hang", lambda: time.sleep(60), folder)
    yield Trial("memory", lambda: bytearray(2**29)[::4096], folder)
    yield Trial("written", lambda: (folder / "x").touch(), folder)
    yield Trial("fine", int, folder)
"""


def test_every_bad_end_is_counted_and_the_next_trial_goes_on(tmp_path):
    (tmp_path / "drills").mkdir()
    (tmp_path / "drills" / "__init__.py").touch()
    (tmp_path / "drills" / "bad.py").write_text(BAD)
    program = "import drill, sys\ndrill.PARTS = ('bad',)\ndrill.SECONDS = 5.0\n"
    program += "if __name__ == '__main__':\n    sys.exit(drill.main())\n"
    (tmp_path / "run.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "run.py", "--minutes=3", "--parts=bad"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'experiments'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    ends = {
        "fine": "taken",
        "refused": "refused",
        "two lines": "traceback",
        "traceback": "traceback",
        "warm": "taken",
    }
    ends |= {name: name for name in ("crash", "hang", "memory", "written", "wrong")}
    rows = {line.split("|")[1].strip(): line for line in done.stdout.splitlines()}
    names = [cell.strip() for cell in rows["kind"].split("|")[3:-1]]
    for kind, end in ends.items():
        numbers = [int(cell) for cell in rows[f"bad: {kind}"].split("|")[3:-1]]
        assert {name for name, n in zip(names, numbers, strict=True) if n} == {end}, kind
        assert end == "taken" or numbers[names.index(end)] == 1, kind


@pytest.mark.slow
def test_of_files_changed_at_random_none_does_harm():
    for library in ("torch", "pyarrow", "safetensors", "cv2"):
        pytest.importorskip(library)
    done = subprocess.run(
        [sys.executable, "experiments/drill.py", "--parts=files", "--minutes=0.5", "--seed=7"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
