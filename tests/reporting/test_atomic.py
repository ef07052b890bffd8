"""Files that one process at a time holds."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from hap2s_jax.errors import UserError
from hap2s_jax.models.weight_files import write_safetensors
from hap2s_jax.reporting import atomic
from hap2s_jax.reporting.atomic import holding, replacing

HOLDER = """
import sys, time
from hap2s_jax.reporting.atomic import holding, replacing
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


def test_one_holds_where_windows_locks(tmp_path, monkeypatch):
    taken = []

    def locking(descriptor, mode, length):
        """As msvcrt's: a byte of a file is locked once."""
        assert (mode, length) == (2, 1)
        file = os.fstat(descriptor).st_ino
        if file in taken:
            raise PermissionError(errno.EACCES, "Permission denied")
        taken.append(file)

    monkeypatch.setattr(atomic, "fcntl", None)
    monkeypatch.setattr(atomic, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    with atomic.holding(tmp_path / "lock") as first, atomic.holding(tmp_path / "lock") as second:
        assert (first, second) == (True, False)


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


@pytest.mark.parametrize("kind", ["pipe", "link", "link to a file", "folder"])
def test_a_lock_that_somebody_planted_is_refused(tmp_path, kind):
    lock, other = tmp_path / "lock", tmp_path / "other"
    {
        "pipe": lambda: os.mkfifo(lock),
        "link": lambda: lock.symlink_to(other),
        "link to a file": lambda: (other.write_text("mine"), lock.symlink_to(other)),
        "folder": lock.mkdir,
    }[kind]()
    before = sorted(tmp_path.iterdir())
    with (
        pytest.raises(UserError, match=r"cannot write .*lock: it is a link, or not a regular file"),
        holding(lock),
    ):
        pass
    assert sorted(tmp_path.iterdir()) == before
    assert not other.exists() or other.read_text() == "mine"


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_a_file_is_as_readable_as_the_user_s_mask_says_whoever_wrote_it(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "x") as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o600))
        write_safetensors({"a": np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [mode, mode]


def test_what_is_replaced_is_the_name_and_not_what_a_link_leads_to(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "config.json").symlink_to(tmp_path / "mine")
    # The names that temporary files once had.
    for name in ("config.json.tmp", f".config.{os.getpid()}.tmp.json"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    names = set()
    for text in "ab":
        with replacing(tmp_path / "config.json") as temporary:
            assert temporary.is_file()
            assert not temporary.is_symlink()
            names.add(temporary.name)
            temporary.write_text(text)
        assert not (tmp_path / "config.json").is_symlink()
        assert (tmp_path / "config.json").read_text() == text
    assert len(names) == 2
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "config.json").stat().st_mode & 0o777 == (tmp_path / "mine").stat().st_mode & 0o777
