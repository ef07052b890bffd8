"""The demo: what is uploaded cannot hurt it, and a real browser shows the ranked gallery where there is one."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import struct
import threading
import zlib

import browsers
import numpy as np
import pytest
from PIL import Image

import hap2s_jax
from hap2s_jax import demo, embed, search
from hap2s_jax.errors import UserError
from hap2s_jax.serving import gate, vectors


@pytest.fixture(scope="module")
def searcher(run, folder, tmp_path_factory):
    encoder = hap2s_jax.load(run.workdir)
    path = tmp_path_factory.mktemp("gallery") / "gallery.npz"
    embed.embed_images(encoder, folder[0], path, show_progress=False)
    return search.Searcher(encoder, vectors.read(path), threshold=0.3)


def _bomb(side=60_000):
    """A PNG of a few hundred bytes whose header promises `side` x `side` pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(9999))),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*parts, (b"IEND", b"")]
    )


HOSTILE = {
    "text": b"<html>404</html>",
    "empty": b"",
    "cut": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "bomb": _bomb(),
    "tiff": b"II*\x00" + bytes(100),
    "script": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
}


def test_a_gallery_image_finds_itself(searcher, folder):
    verdict, seen, hits = demo.answer(searcher, folder[1][0], 3)
    assert verdict == f"### match, {folder[1][0].parent.name}"
    assert seen is not None
    assert seen.shape == (256, 256, 3)
    assert len(hits) == 3
    assert hits[0][1] == f"0.000 {folder[1][0].parent.name}"
    np.testing.assert_array_equal(hits[0][0], seen)
    assert hits[2][1].startswith("✗ 0.")


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_image_is_said_so(searcher, tmp_path, kind):
    (tmp_path / "x.png").write_bytes(HOSTILE[kind])
    verdict, seen, hits = demo.answer(searcher, tmp_path / "x.png", 3)
    assert verdict.startswith("**This file cannot be used:**")
    assert (seen, hits) == (None, [])
    assert ("60000 x 60000" in verdict) == (kind == "bomb")


def test_no_file_too_large_a_file_and_a_folder(searcher, tmp_path, monkeypatch):
    assert demo.answer(searcher, None, 3) == ("", None, [])
    monkeypatch.setattr(gate, "MAX_FILE", 10)
    (tmp_path / "x.png").write_bytes(bytes(11))
    for path in (tmp_path / "x.png", tmp_path, tmp_path / "none"):
        assert "cannot be used" in demo.answer(searcher, path, 3)[0]


def test_parallel_questions_get_their_own_answers(searcher, folder):
    def ask(path):
        return demo.answer(searcher, path, 1)[2][0][1]

    asked = folder[1][:12] * 2
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, asked))
    assert found == [f"0.000 {path.parent.name}" for path in asked]


def test_without_gradio(searcher, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r'pip install "hap2s_jax\[demo\]"'):
        demo.build(searcher, "")


def test_it_listens_to_this_machine_alone():
    import inspect

    assert inspect.signature(gate.launch).parameters["host"].default == "127.0.0.1"


@pytest.fixture(scope="module")
def address(searcher):
    pytest.importorskip("gradio")
    page = demo.build(searcher, "threshold 0.3, as the test has it")
    _, local, shared = gate.launch(page, block=False)
    assert shared is None
    assert "127.0.0.1" in local
    yield local
    page.close()


@pytest.mark.slow
def test_over_http(address, folder, tmp_path):
    client = pytest.importorskip("gradio_client")
    mine = threading.local()

    def connect():
        # One a thread: a client that several threads share now and then takes the end of one's answer for another's.
        mine.connection = client.Client(address, verbose=False, download_files=False)

    def ask(path):
        return mine.connection.predict(client.handle_file(path), 3, api_name="/search")

    for kind, data in HOSTILE.items():
        (tmp_path / f"{kind}.png").write_bytes(data)
    with concurrent.futures.ThreadPoolExecutor(4, initializer=connect) as pool:
        hostile = pool.map(ask, [tmp_path / f"{kind}.png" for kind in HOSTILE])
        good = list(pool.map(ask, folder[1][:6]))
        assert all("cannot be used" in verdict for verdict, _, _ in hostile)
    for path, (verdict, _, hits) in zip(folder[1], good, strict=False):
        assert verdict == f"### match, {path.parent.name}"
        assert len(hits) == 3


@pytest.mark.slow
@pytest.mark.skipif(browsers.chromium() is None, reason="no chromium on this machine")
def test_in_a_real_browser(address, folder, tmp_path):
    """Set HAP2S_SCREENSHOT to a file to keep the picture of the page, as docs/use.md shows it."""
    (tmp_path / "no.png").write_bytes(HOSTILE["bomb"])
    with browsers.opened(address) as (page, outside):
        upload = page.locator("#upload input[type=file]")
        upload.wait_for(state="attached")
        upload.set_input_files(folder[1][0])
        page.get_by_role("heading", name=f"match, {folder[1][0].parent.name}").wait_for()
        page.locator("#gallery img").nth(9).wait_for()
        captions = page.locator("#gallery").inner_text()
        assert f"0.000 {folder[1][0].parent.name}" in captions
        page.wait_for_load_state("networkidle")
        shot = page.screenshot()
        assert len(shot) > 20_000
        if os.environ.get("HAP2S_SCREENSHOT"):
            pathlib.Path(os.environ["HAP2S_SCREENSHOT"]).write_bytes(shot)
        page.locator("#upload").get_by_label("Remove this file").or_(
            page.locator("#upload").get_by_label("Clear")
        ).first.click()
        upload.wait_for(state="attached")
        upload.set_input_files(tmp_path / "no.png")
        page.get_by_text("60000 x 60000").wait_for()
    assert Image.MAX_IMAGE_PIXELS is not None
    assert outside == []
