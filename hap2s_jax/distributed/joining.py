"""Before processes join, they tell process 0 their number: JAX itself aborts if two have the same.

They use the coordinator's own port, which is free until JAX's service begins. Each sends one line of JSON and gets one.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from hap2s_jax.errors import UserError

_NAME = "hap2s_jax"
_MAX_LINE = 4096
# Seconds between two tries; for one line; until a port with other answers counts as not ours; and for telling
# latecomers of a mistake.
_PAUSE, _LINE, _STRANGE, _LATE = 0.2, 5.0, 10.0, 3.0


def agree(coordinator: str, num_processes: int, process_id: int, timeout: float) -> None:
    """Waits until all processes have reported different numbers and the same count.

    Args:
      coordinator: host:port of process 0.
      num_processes, process_id: what this process was given.
      timeout: seconds after which it returns; JAX itself will then give up waiting.

    Raises:
      UserError: on every process alike, naming what differs.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= process_id < num_processes:
        return  # JAX reports that itself
    until = time.monotonic() + timeout
    server = _listening(int(port)) if process_id == 0 else None
    desk = threading.Thread(target=_serve, args=(server, num_processes, until), daemon=True)
    if server:
        desk.start()
    mistake = _ask((host.strip("[]"), int(port)), num_processes, process_id, until)
    if server:
        desk.join()  # from here on JAX uses the port
    if mistake:
        raise UserError(mistake)


def _listening(port: int) -> socket.socket | None:
    """A socket on all of this machine's addresses; None if another process has the port."""
    with contextlib.suppress(OSError):
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    return None


def _ask(address: tuple[str, int], num_processes: int, process_id: int, until: float) -> str | None:
    """The mistake that process 0 finds, None without one."""
    strange = None
    line = {"is": _NAME, "num_processes": num_processes, "process_id": process_id}
    while time.monotonic() < until:
        try:
            with socket.create_connection(address, _LINE) as connection:
                connection.sendall(json.dumps(line).encode() + b"\n")
                connection.settimeout(max(until - time.monotonic(), 0.1))
                if answer := _received(connection):
                    return answer.get("mistake")
        except OSError:
            time.sleep(_PAUSE)
            continue
        strange = strange or time.monotonic()
        if time.monotonic() > strange + _STRANGE:
            return (
                f"at {address[0]}:{address[1]} no process 0 of this job answers, but another program, or a job that is "
                f"complete; see that --process_id={process_id} was not given before, or choose another port"
            )
        time.sleep(_PAUSE)
    return None


def _serve(server: socket.socket, num_processes: int, until: float) -> None:
    """Process 0's part: answers all together, once all have called or two of them conflict."""
    mistake, waiting = None, {}
    with server, contextlib.ExitStack() as stack:
        for connection, line in _callers(server, until):
            stack.enter_context(connection)
            theirs, number = line.get("num_processes"), line.get("process_id")
            if theirs != num_processes:
                mistake = (
                    f"--num_processes is {num_processes} on process 0 and {theirs} on process {number}; give the same "
                    "on every host"
                )
            elif number in waiting:
                mistake = (
                    f"--process_id={number} was given twice; give each process its own, below {num_processes}"
                )
            waiting.setdefault(number, []).append(connection)
            if mistake or len(waiting) == num_processes:
                break
        answer = json.dumps({"is": _NAME, "mistake": mistake}).encode() + b"\n"
        late = _callers(server, min(until, time.monotonic() + _LATE)) if mistake else ()
        for connection in [c for some in waiting.values() for c in some]:
            with contextlib.suppress(OSError):
                connection.sendall(answer)
        for connection, _ in late:
            with contextlib.suppress(OSError), connection:
                connection.sendall(answer)


def _callers(server: socket.socket, until: float) -> Iterator[tuple[socket.socket, dict[str, Any]]]:
    """Yields processes that call and give their number, until the time is up."""
    while (left := until - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
        except OSError:
            continue
        connection.settimeout(_LINE)
        if line := _received(connection):
            yield connection, line
        else:
            connection.close()


def _received(connection: socket.socket) -> dict[str, Any] | None:
    """A received line if it is one of ours, else None."""
    text = b""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        while not text.endswith(b"\n") and len(text) < _MAX_LINE:
            if not (more := connection.recv(_MAX_LINE)):
                break
            text += more
        line = json.loads(text)
        return line if isinstance(line, dict) and line.get("is") == _NAME else None
    return None
