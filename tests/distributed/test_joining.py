"""Processes that do not fit together say so, each in one line, before JAX could abort."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import peers
import pytest

from hap2s_jax.distributed import joining
from hap2s_jax.errors import UserError


def _together(processes, monkeypatch, timeout=20.0):
    """What each of (num_processes, process_id) is told, "" for nothing."""
    monkeypatch.setattr(joining, "_LATE", 1.0)

    def told(number):
        try:
            num_processes, process_id = processes[number]
            joining.agree(address, num_processes, process_id, timeout)
        except UserError as error:
            return str(error)
        return ""

    with peers.free_address() as address, ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(told, range(len(processes))))


def test_different_numbers_of_equally_many_go_on(monkeypatch):
    assert _together([(3, 2), (3, 0), (3, 1)], monkeypatch) == ["", "", ""]


@pytest.mark.parametrize(
    ("processes", "says"),
    [
        ([(3, 0), (3, 1), (3, 1)], "--process_id=1 was given twice; give each process its own, below 3"),
        ([(2, 0), (2, 0)], "--process_id=0 was given twice"),
        ([(2, 0), (3, 1), (3, 2)], "--num_processes is 2 on process 0 and 3 on process"),
        ([(3, 0), (3, 1), (2, 1)], " on process"),
    ],
)
def test_what_does_not_fit_is_one_line_on_every_process(processes, says, monkeypatch):
    told = _together(processes, monkeypatch)
    assert all(says in line and "\n" not in line for line in told), told
    assert len(set(told)) == 1


def test_a_program_that_answers_otherwise_and_callers_who_say_nothing(monkeypatch):
    monkeypatch.setattr(joining, "_STRANGE", 0.5)
    monkeypatch.setattr(joining, "_LINE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            with contextlib.suppress(OSError):  # the end of the test
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" * 400)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match="no process 0 of this job answers, but another program"):
            joining.agree(f"127.0.0.1:{port}", 2, 1, 20)
    with peers.free_address() as address:
        host, port = address.split(":")
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(joining.agree, address, 2, 0, 20)
            until = time.monotonic() + 10
            while True:
                try:
                    stranger = socket.create_connection((host, int(port)))
                    break
                except OSError:
                    assert time.monotonic() < until
            stranger.sendall(b"[" * 5000 + b"\n")
            silent = socket.create_connection((host, int(port)))
            pool.submit(joining.agree, address, 2, 1, 20).result()
            first.result()
            stranger.close()
            silent.close()


def test_nobody_comes():
    with peers.free_address() as address:
        joining.agree(address, 2, 1, 0.3)  # JAX and its watchdog say the rest
        joining.agree("nowhere", 2, 1, 20)
        joining.agree(address, 2, 2, 20)
