"""Whom the demo's page answers."""

from __future__ import annotations

import asyncio
import http.client

import pytest

from hap2s_jax.serving import gate
from hap2s_jax.serving.gate import Gate


def _asked(host, headers, *, kind="http", fails=False):
    """Status, headers and body of an answer; None where the application itself was not reached."""
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope)
        headers = [(b"access-control-allow-origin", b"*")]
        await send({"type": "http.response.start", "status": 500 if fails else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"/home/me/secret: KeyError"})

    async def send(message):
        sent.append(message)

    scope = {
        "type": kind,
        "method": "GET",
        "path": "/",
        "headers": [(k.encode(), v.encode()) for k, v in headers],
    }
    asyncio.run(Gate(app, host)(scope, None, send))
    return bool(reached), sent


SERVED = [
    ("127.0.0.1", "127.0.0.1:7860", None, True),
    ("127.0.0.1", "localhost:7860", "http://localhost:7860", True),
    ("127.0.0.1", "[::1]:7860", None, True),
    ("localhost", "LOCALHOST", "http://localhost", True),
    ("127.0.0.1", "evil.example", None, False),
    ("127.0.0.1", "evil.example:7860", "http://evil.example:7860", False),
    ("127.0.0.1", "127.0.0.1.evil.example", None, False),
    ("127.0.0.1", "localhost@evil.example", None, False),
    ("127.0.0.1", "10.0.0.1", None, False),
    ("127.0.0.1", "", None, False),
    ("127.0.0.1", "[", None, False),
    ("127.0.0.1", "127.0.0.1:7860", "http://evil.example", False),
    ("127.0.0.1", "127.0.0.1:7860", "null", False),
    ("127.0.0.1", "127.0.0.1:7860", "http://127.0.0.1:7861", False),
    ("127.0.0.1", "127.0.0.1:7860", "http://[", False),
    ("0.0.0.0", "10.0.0.1:7860", "http://10.0.0.1:7860", True),
    ("0.0.0.0", "evil.example", None, False),
    ("0.0.0.0", "10.0.0.1:7860", "http://evil.example", False),
    ("gallery.example", "gallery.example:7860", "https://gallery.example:7860", True),
]


@pytest.mark.parametrize(("at", "host", "origin", "is_let_in"), SERVED)
def test_own_names_and_own_pages_are_let_in(at, host, origin, is_let_in):
    headers = [("Host", host)] + ([] if origin is None else [("Origin", origin)])
    for kind in ("http", "websocket"):
        reached, sent = _asked(at, headers, kind=kind)
        assert reached == is_let_in
        if not is_let_in and kind == "http":
            assert sent[0]["status"] == 403
            assert not any(name.startswith(b"access-control") for name, _ in sent[0]["headers"])
    assert not _asked(at, [])[0]
    assert not _asked(at, [("Host", "localhost"), ("Host", "evil.example")])[0]


def test_errors_are_a_short_line_and_the_terminal_says_more(capsys):
    _, sent = _asked("127.0.0.1", [("Host", "localhost")], fails=True)
    assert [message.get("body") for message in sent][1:] == [
        b"This request cannot be answered; the terminal says more.\n"
    ]
    assert sent[0]["status"] == 500
    assert capsys.readouterr().err == "GET '/': 500\n"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Transfer-Encoding", "chunked"),
        *(("Content-Length", text) for text in ("999999999", "9" * 5000, "-1", "x")),
    ],
)
def test_requests_without_end_are_refused_unread(header, value):
    reached, sent = _asked("127.0.0.1", [("Host", "localhost"), (header, value)])
    assert not reached
    assert sent[0]["status"] == 413
    assert _asked("127.0.0.1", [("Host", "localhost"), ("Content-Length", str(gate.MAX_FILE))])[0]


def test_the_page_itself_is_behind_the_gate(monkeypatch):
    gradio = pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    with gradio.Blocks(analytics_enabled=False) as page:
        gradio.on([gradio.Button("x").click], lambda: 1 / 0, None, [gradio.Markdown()], api_name="fail")
    _, address, _ = gate.launch(page.queue(), block=False)
    port = int(address.rstrip("/").rsplit(":", 1)[1])

    def ask(method, path, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    try:
        assert ask("GET", "/")[0] == 200
        evil = "http://evil.example"
        for method, headers in (
            ("GET", {"Host": "evil.example"}),
            ("GET", {"Origin": evil}),
            ("POST", {"Origin": evil, "Host": "evil.example"}),
            ("OPTIONS", {"Origin": evil, "Host": "evil.example", "Access-Control-Request-Method": "POST"}),
            ("OPTIONS", {"Origin": evil, "Access-Control-Request-Method": "POST"}),
        ):
            status, found, _ = ask(method, "/gradio_api/upload", **headers)
            assert status == 403
            assert not any(name.lower().startswith("access-control") for name in found)
        for path in (
            "/gradio_api/file=/etc/passwd",
            "/gradio_api/call/none",
            "/nothing",
            "/gradio_api/upload",
        ):
            status, _, body = ask("POST" if "upload" in path or "call" in path else "GET", path)
            assert status >= 400
            assert body == b"This request cannot be answered; the terminal says more.\n"
    finally:
        page.close()
