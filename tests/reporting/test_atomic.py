"""Files that one process at a time holds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hap2s_jax.errors import UserError
from hap2s_jax.reporting.atomic import holding

HOLDER = """
import sys, time
from hap2s_jax.reporting.atomic import holding
with holding(sys.argv[1]) as held:
    print(held, flush=True)
    time.sleep(600)
"""


def test_one_holds_and_who_dies_lets_go(tmp_path):
    path = tmp_path / "deeper" / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "True"
        with holding(path) as held:
            assert not held
        assert path.exists(), "who does not hold it does not take it away"
    finally:
        process.kill()
        process.communicate()
    with holding(path) as held:
        assert held
    assert not path.exists()


def test_a_file_that_was_taken_away_meanwhile_is_not_held(tmp_path):
    path = tmp_path / "lock"
    with holding(path) as first:
        path.unlink()
        with holding(path) as second:
            assert first
            assert second, "the path is another file now"


def test_a_folder_that_is_none_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), holding(tmp_path / "file" / "lock"):
        pass
