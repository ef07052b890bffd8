"""The experiments' scripts run, at their smallest."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_emoji_seeds(tmp_path):
    command = [sys.executable, "experiments/emoji_seeds.py", "--seeds=3", "--config=configs/emoji.py:tiny"]
    command += [f"--workdir={tmp_path / 'runs'}", f"--output={tmp_path / 'out.json'}"]
    for _ in range(2):  # the second time nothing is run again
        subprocess.run(command, cwd=ROOT, check=True, timeout=600, capture_output=True)
    clock = tmp_path / "runs" / "configs-emoji.py-tiny" / "seed3" / "seconds.json"  # of this config alone
    assert json.loads(clock.read_text())["finished"]
    summary = json.loads((tmp_path / "out.json").read_text())
    assert summary["rows"]["trained, worst"] == summary["rows"]["trained, seed 3"]
    assert summary["config"]["seed"] == 3
    assert "raw pixels" in (tmp_path / "out.md").read_text()


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "experiments").glob("*.py")))
def test_every_script_says_what_it_takes(script):
    if script == "peer_torch.py" and importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    done = subprocess.run(
        [sys.executable, f"experiments/{script}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr  # absl's --help ends with 1
    assert "--" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
