"""A real browser for the tests of pages, where this machine has one: chromium, and the package playwright."""

from __future__ import annotations

import contextlib
import shutil

import pytest


def chromium():
    """Its program, None without one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@contextlib.contextmanager
def opened(address, width=1280, height=700):
    """A page of a browser, and the list of addresses outside of `address` that it asks for."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        page, outside = browser.new_page(viewport={"width": width, "height": height}), []
        page.set_default_timeout(120_000)
        ours = (address, address.replace("http", "ws", 1), "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(ours) else outside.append(r.url))
        page.goto(address)
        yield page, outside
        browser.close()
