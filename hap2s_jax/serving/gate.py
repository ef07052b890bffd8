"""Serves a local page, behind an ASGI layer that decides which requests it answers.

A web page anywhere may send a browser's requests to this machine, by another name for its address (DNS rebinding) or
straight, and would read the answers if it were let.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from hap2s_jax.errors import UserError, reason

# Names of this machine.
LOCAL = ("127.0.0.1", "localhost", "::1")
# Of what is uploaded, and of a whole request, with what a form puts around it.
MAX_FILE = 32 * 2**20
_MAX_BODY = MAX_FILE + 2**20
_REFUSED = b"This page answers requests from its own address alone.\n"
_TOO_LARGE = b"A request has at most 33 MiB, and says its length.\n"
_FAILED = b"This request cannot be answered; the terminal says more.\n"


def check_shown(host: str, folder: str | None, option: str) -> None:
    """Raises UserError unless a page that others can reach is told which folder's pictures it may show."""
    if host not in LOCAL and not folder:
        raise UserError(
            f"--host={host} shows pictures to others: name the folder that holds only them with {option}"
        )


class Gate:
    """Refuses requests under foreign names and from foreign pages, and keeps the texts of errors to the terminal.

    Args:
      app: the ASGI application.
      host: the address that it is served at. Of one that others can reach, every name of this machine and every
        address in numbers counts, which no web page can take for a name of its own.
    """

    def __init__(self, app: Any, host: str):
        self._app, self._is_local = app, host in LOCAL
        self._names = (
            {*LOCAL, host} if self._is_local else {*LOCAL, host, socket.gethostname(), socket.getfqdn()}
        )

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        """Answers one request, or hands it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        if (
            len(hosts) != 1
            or not self._is_served(hosts[0])
            or any(_place(o) != hosts[0].lower() for o in origins)
        ):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await _answer(send, 403, _REFUSED)
            return
        given = dict(headers)
        # Browsers say how long a request is, and the server reads no more.
        length = given.get(b"content-length", "0")
        if b"transfer-encoding" in given or not length.isdecimal() or float(length) > _MAX_BODY:
            await _answer(send, 413, _TOO_LARGE)
            return
        failed = False

        async def watched(message: Any) -> None:
            nonlocal failed
            if message["type"] == "http.response.start" and message["status"] >= 400:
                failed = True
                print(
                    f"{scope.get('method')} {scope.get('path')!r:.200}: {message['status']}", file=sys.stderr
                )
                await _answer(send, message["status"], _FAILED)
            elif not failed:
                await send(message)

        await self._app(scope, receive, watched)

    def _is_served(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in {known.lower() for known in self._names} or (not self._is_local and _is_number(name))


def launch(
    page: Any,
    *,
    css: str = "",
    head: str = "",
    host: str = "127.0.0.1",
    port: int | None = None,
    block: bool = True,
) -> Any:
    """Serves a gradio page behind `Gate`.

    Returns:
      What gradio's launch does: (app, local address, None).
    """
    try:  # gradio would try on, and say nothing of the name
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port or 0), family=family).close()
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"cannot serve at --host={host}{f' --port={port}' if port else ''}: {reason(error)}"
        ) from None
    from gradio.themes import Default

    app, address, shared = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        max_file_size=MAX_FILE,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,  # show no exception's text
        css=css,
        head=head or None,
        # Local fonts: the default theme fetches some from the network.
        theme=Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    # Outside of gradio's own middleware, which would allow other origins.
    app.middleware_stack = Gate(app.middleware_stack or app.build_middleware_stack(), host)
    if block:
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        page.block_thread()
    return app, address, shared


def _place(origin: str) -> str:
    """host:port of a page's address; "" for anything else."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _answer(send: Callable[[Any], Awaitable[None]], status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
