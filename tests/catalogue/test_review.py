"""The review page: through its own functions, and over HTTP as a browser would ask it."""

from __future__ import annotations

import html
import os
import re
import shutil

import browsers
import pytest
from pixel_encoder import draw

from hap2s_jax.catalogue import adding, review
from hap2s_jax.catalogue.searching import Finder
from hap2s_jax.catalogue.store import Store


@pytest.fixture
def page(store):
    return review.Review(Finder(store), 2.0)


def _captions(shown):
    return [html.unescape(text) for text in re.findall(r"<figcaption>(.*?)</figcaption>", shown)]


def test_the_queue_is_worked_through(page, store):
    window = page.open()
    images, log = page.show(window)
    query, *candidates = _captions(images)
    assert query.startswith("0-08.png · north · 2026-05-01 · ")
    assert len(candidates) == 8
    assert images.count("data:image/jpeg;base64,") == 9
    assert images.count('class="beyond"') == 8  # a new individual
    assert log.startswith("<p>40 images wait.</p>")
    assert page.decide(window, "new", " ann ") == ""
    images, log = page.show(window)
    assert _captions(images)[0].startswith("0-09.png")
    assert "<td>1</td>" in log
    assert "<td>ann</td><td>new</td><td>individual-0001</td>" in log
    for kind in ("unusable", "later"):
        assert page.decide(window, kind, "ann") == ""
        page.show(window)
    assert page.decide(window, "another", "ann", "individual-0001") == ""
    images, _ = page.show(window)
    assert _captions(images)[0].startswith("1-00.png")
    assert _captions(images)[1].startswith("1: animal 0 · 0.")
    assert page.decide(window, "same", "ann", place=0) == ""
    store.refresh()
    assert [store.name_of(row) for row in (8, 11, 12)] == ["individual-0001", "individual-0001", "animal 0"]
    assert page.undo(window, "ann") == "Undone, as decision 6."
    assert _captions(page.show(window)[0])[0].startswith("1-00.png")
    assert page.undo(window, "nobody").startswith("undo: nothing is left")


def test_mistakes_are_said_and_change_nothing(page, store):
    window = page.open()
    page.show(window)
    for kind, label, place, says in (
        ("another", "nobody", 0, "there is no individual 'nobody'"),
        ("another", "ANIMAL 1", 0, "other capitals"),
        ("another", "", 0, "letters that are printed"),
        ("same", "", 8, "no candidate 9"),
    ):
        assert says in page.decide(window, kind, "", label, place)
    assert "short name" in page.decide(window, "new", "x" * 300)
    assert window["image"] is not None
    assert store.refresh() is False
    assert page.decide(page.open(), "new", "") == "There is no image to decide about."


def test_two_reviewers_see_each_other_and_never_the_same_image(page, store):
    ann, bob = page.open(), page.open()
    first, second = (_captions(page.show(window)[0])[0] for window in (ann, bob))
    assert first != second
    assert page.decide(ann, "new", "ann", "first") == ""
    assert "<td>ann</td>" in page.log()
    # A third one decides elsewhere about what bob looks at.
    Store(store.tables.folder).relabel([bob["image"]], "by command", by="eve")
    assert "was decided meanwhile: relabel by command by eve" in page.decide(bob, "new", "bob")
    assert _captions(page.show(bob)[0])[0] not in (first, second)


def test_nothing_in_a_name_is_run(store, encoder, tmp_path):
    evil = "<img src=x onerror=alert(1)>'\" or 1=1 --"
    draw(tmp_path / "in" / evil.replace("/", "_") / "<script>alert(2)<.png", 0, 9)
    draw(tmp_path / "new" / "<b>bold.png", 0, 10)
    for folder in ("in", "new"):
        adding.add(store, tmp_path / folder, encoder, show_progress=False)
    store.mark([int(n) for n in store.ids[store.queue()[:-1]]], "later")
    page = review.Review(Finder(store))
    window = page.open()
    images, _ = page.show(window)
    assert evil in _captions(images)[1]
    assert page.decide(window, "same", "<i>me</i>", place=0) == ""
    images, log = page.show(window)
    for shown in (images, log):
        assert not re.search(r"<(img src=x|script|b>|i>)", shown)
        assert str(tmp_path) not in shown
    assert html.escape(evil) in log
    assert html.escape("<i>me</i>") in log


@pytest.mark.slow
def test_over_http(page, store):
    pytest.importorskip("gradio")
    client = pytest.importorskip("gradio_client")
    blocks = review.build(page, "threshold <2>")
    _, address, shared = review.launch(blocks, block=False)
    assert shared is None
    try:
        ann, bob = (client.Client(address, verbose=False, download_files=False) for _ in range(2))
        said = [one.predict("ann", api_name="/show") for one in (ann, bob)]
        assert _captions(said[0][0])[0] != _captions(said[1][0])[0]
        images, log, text, _ = ann.predict("ann", api_name="/new")
        assert text == ""
        assert _captions(images)[0].startswith("0-10.png")
        assert "individual-0001" in log
        assert "individual-0001" in bob.predict(api_name="/log")
        assert "no individual" in bob.predict("bob", "nobody", api_name="/another")[2]
        assert bob.predict("bob", "individual-0001", api_name="/another")[2] == ""
        assert "Undone" in bob.predict("bob", api_name="/undo")[2]
        for kind in ("later", "unusable", "same_1"):
            assert ann.predict("ann", api_name=f"/{kind}")[2] == ""
        assert str(store.tables.folder) not in str(ann.view_api(return_format="dict"))
    finally:
        blocks.close()
    store.refresh()
    assert [entry.by for entry in store.history()] == ["ann", "bob", "bob", "ann", "ann", "ann"]


def test_fifty_thousand_images_are_not_sent(page, store, monkeypatch):
    """What a window gets does not grow with the queue."""
    window = page.open()
    short = len("".join(page.show(window)))
    many = 2000
    texts = {name: [""] * many for name in ("box", "label", "camera", "time", "place", "more")}
    rows = {
        "id": range(10, 10 + many),
        "size": [1] * many,
        "path": [f"{n}.png" for n in range(many)],
        **texts,
    }
    rows["folder"] = ["/nowhere"] * many
    store.tables.add_images(store.encoder["fingerprint"], rows, store.embeddings[[0] * many])
    long = len("".join(page.show(window)))
    assert "2,040 images wait" in page.log()
    assert abs(long - short) < 100
    shutil.rmtree(store.tables.folder)


@pytest.mark.slow
@pytest.mark.skipif(browsers.chromium() is None, reason="no chromium on this machine")
def test_keys_alone_in_a_real_browser(page, store):
    """Set HAP2S_SCREENSHOT to a file to keep the picture of the page, as docs/gallery.md shows it."""
    pytest.importorskip("gradio")
    blocks = review.build(page, "threshold 2.0, as the test has it")
    _, address, _ = review.launch(blocks, block=False)
    try:
        with browsers.opened(address, height=1000) as (window, outside):
            decisions = (
                ("n", "0-08.png", "new", "individual-0001"),
                ("u", "0-09.png", "unusable", ""),
                ("l", "0-10.png", "later", ""),
                ("1", "0-11.png", "same", None),
                ("a", "1-00.png", "same", "animal 3"),
            )
            for number, (keys, path, kind, label) in enumerate(decisions, 1):
                window.locator("#images figcaption", has_text=path).wait_for()
                window.keyboard.press(keys)
                if keys == "a":
                    window.keyboard.type("animal 3\n")  # with an n and an l, which decide nothing there
                    window.keyboard.press("Escape")
                row = window.locator("#log tr").first
                row.locator("td").first.get_by_text(str(number), exact=True).wait_for()
                row.get_by_text(kind, exact=True).wait_for()
                assert label is None or label in row.inner_text()
            window.locator("#images figcaption", has_text="1-01.png").wait_for()
            if os.environ.get("HAP2S_SCREENSHOT"):
                window.screenshot(path=os.environ["HAP2S_SCREENSHOT"])
            window.keyboard.press("z")
            window.locator("#log tr").first.get_by_text("undo", exact=True).wait_for()
            window.locator("#images figcaption", has_text="1-00.png").wait_for()
            assert outside == []
    finally:
        blocks.close()
    store.refresh()
    assert [entry.kind for entry in store.history()] == ["new", "unusable", "later", "same", "same", "undo"]
