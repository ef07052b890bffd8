"""The example of docs/use.md on Ray Data, on this machine."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import hap2s_jax

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "use.md"


@pytest.mark.slow
def test_the_example_gives_the_embeddings_of_one_machine(run, folder, tmp_path):
    pytest.importorskip("ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    (block,) = (
        b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "import ray" in b
    )
    (folder[0] / "class 0000" / "none.jpg").write_text("no image")
    here = {"s3://bucket/photos": folder[0], "runs/emoji": run.workdir, '"vectors"': f'"{tmp_path}/vectors"'}
    for there, place in {**here, "concurrency=4": "concurrency=1"}.items():
        assert there in block
        block = block.replace(there, str(place))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        subprocess.run([sys.executable, "-c", block], check=True, timeout=600, env=environment)
    finally:
        (folder[0] / "class 0000" / "none.jpg").unlink()
    rows = {row["path"]: row for row in parquet.read_table(tmp_path / "vectors").to_pylist()}
    assert len(rows) == len(folder[1]) + 1
    (failed,) = (row for row in rows.values() if row["failure"])
    assert failed["path"].endswith("none.jpg")
    assert not np.any(failed["embedding"])
    found = [rows[str(path)]["embedding"] for path in folder[1]]
    np.testing.assert_allclose(found, hap2s_jax.load(run.workdir)(folder[1]), atol=1e-5)
