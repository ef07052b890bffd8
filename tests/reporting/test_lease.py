"""Who may write to a place in a bucket, decided by a real server."""

from __future__ import annotations

import concurrent.futures
import threading
import time

import buckets
import pytest

from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError
from hap2s_jax.reporting import lease
from hap2s_jax.reporting.atomic import holding, replacing


@pytest.fixture
def there(monkeypatch):
    with buckets.serving() as address:
        buckets.use(monkeypatch, address)
        monkeypatch.setattr(lease, "SECONDS", 3.0)
        monkeypatch.setattr(lease, "_held", set())
        yield place(buckets.new_bucket(address)) / "run"


def _answer(wanted):
    return next(answer for answer in wanted.attempts() if answer is not None)


def test_of_those_who_start_at_once_one_goes_on_and_the_next_when_it_has_left(there, capsys):
    together = threading.Barrier(6)
    wanted = [lease.Lease(there / ".lock") for _ in range(6)]

    def start(one):
        together.wait()
        return _answer(one)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(start, wanted))
    assert sorted(answers) == [False] * 5 + [True]
    time.sleep(1.2 * lease.SECONDS)  # its holder lives, so it does not end
    with holding(there / ".lock") as free:
        assert not free
    wanted[answers.index(True)].close()
    assert not (there / ".lock").exists()
    capsys.readouterr()
    with holding(there / ".lock") as free:
        assert free
    assert capsys.readouterr().err == ""


def test_the_lease_of_one_who_fell_silent_ends_and_he_writes_nothing_more(there, capsys):
    silent = lease.Lease(there / ".lock")
    silent._renew = lambda: None
    assert _answer(silent)
    began = time.monotonic()
    with holding(there / ".lock") as free:
        assert free
        assert time.monotonic() - began > lease.SECONDS
        assert "is held by a run" in capsys.readouterr().err
        silent._renewed = 0.0
        with (
            pytest.raises(UserError, match="another run has taken over"),
            replacing(there / "x") as temporary,
        ):
            temporary.write_text("too late")
        with pytest.raises(UserError, match="another run has taken over"):
            lease.check_known()
        assert not (there / "x").exists()
    silent.close()


def test_silence_of_the_bucket_that_nobody_used_is_no_loss(there):
    held = lease.Lease(there / ".lock")
    held._renew = lambda: None
    assert _answer(held)
    held._renewed = 0.0
    lease.check()
    with replacing(there / "x") as temporary:
        temporary.write_text("in time")
    assert (there / "x").read_text() == "in time"
    held.close()
