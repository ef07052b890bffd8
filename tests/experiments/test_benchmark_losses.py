"""The losses' benchmark runs, and its modes add up, each under its own machine."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_tiny_mode_adds_its_rows(tmp_path):
    output = tmp_path / "out.json"
    earlier = {
        "command": "benchmark_losses.py large",
        "environment": {"cpu": "Other", "devices": {"tpu": 4}, "python": "3.9", "packages": {"torch": "2.6"}},
        "threads": 7,
        "rows": [{"n": 8192, "d": 128, "method": "hap2s", "ms": 5.0}],
    }
    output.write_text(json.dumps({"large": earlier}))
    command = [sys.executable, "experiments/benchmark_losses.py", "tiny", f"--output={output}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600, capture_output=True)
    modes = json.loads(output.read_text())
    assert [row["method"] for row in modes["tiny"]["rows"]] == ["matmul", "hap2s"]
    assert all(row["ms"] > 0 and row["rounds"] == 1 for row in modes["tiny"]["rows"])
    table = output.with_suffix(".md").read_text()
    assert "8,192 x 128, hap2s | 5.000" in table
    assert "16 x 8, matmul" in table
    tiny, large = (table.split(f"## {mode}\n")[1].split("\n## ")[0] for mode in ("tiny", "large"))
    assert "Other, 7 threads, 4 x tpu; Python 3.9, torch 2.6." in large
    assert "Other" not in tiny
    assert "torch" not in tiny
