"""The review page: one image of the queue after another, its candidates side by side, and a key for each decision.

A decision is written at once. Several reviewers may work on one store, each in a window of their own. Names of files
and labels are shown as text, whatever they hold; pictures travel inside the page.
"""

from __future__ import annotations

import base64
import functools
import html
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hap2s_jax import extras
from hap2s_jax.catalogue.adding import box_of
from hap2s_jax.catalogue.columns import shown_id
from hap2s_jax.catalogue.searching import Finder, Match
from hap2s_jax.catalogue.store import Store
from hap2s_jax.data import pixels
from hap2s_jax.data.opencv import opencv
from hap2s_jax.data.regular_files import below, read_bytes
from hap2s_jax.errors import UserError
from hap2s_jax.serving import gate

CANDIDATES = 8
_SIDE = 320
_LEASE = 300.0  # seconds that an image is reserved for the reviewer who looks at it
_SHOWN = 12
_EVERY = 2.0
_CSS = """
.images { display: grid; grid-template-columns: 320px repeat(auto-fill, 150px); gap: 12px }
.images figure { margin: 0 } .images figure:first-child { grid-row: span 4 }
.images img { width: 100%; object-fit: contain }
.images .beyond { opacity: 0.55 } .images figcaption { overflow-wrap: anywhere; font-size: 14px }
.log td { padding: 0 12px 0 0; overflow-wrap: anywhere }
"""
# A key presses the button of its name, unless the user is typing into a field.
_HEAD = """<script>
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "TEXTAREA"].includes(event.target.tagName);
  if (event.key === "Escape") event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const names = { n: "new", u: "unusable", l: "later", z: "undo" };
  if (event.key === "a") document.querySelector("#another textarea, #another input").focus();
  else if (/^[1-8]$/.test(event.key)) document.querySelector("#same-" + event.key).click();
  else if (names[event.key]) document.querySelector("#" + names[event.key]).click();
  else return;
  event.preventDefault();
});
</script>"""

Session = dict[str, Any]


class Review:
    """The actions of the review page, without the page; one object for all its visitors.

    Args:
      finder: of the store.
      threshold: candidates beyond it are pale; None for none.
    """

    def __init__(self, finder: Finder, threshold: float | None = None):
        if not isinstance(finder.store, Store):
            raise TypeError("a review writes, and needs a Store")
        self.store, self.finder, self.threshold = finder.store, finder, threshold
        self._leases: dict[int, tuple[str, float]] = {}
        self._turn = threading.RLock()  # gradio calls this from several threads

    def open(self) -> Session:
        """The state of a window that has just been opened."""
        return {"key": secrets.token_hex(8), "image": None, "seen": 0, "names": []}

    def decide(self, session: Session, kind: str, by: str, label: str = "", place: int = 0) -> str:
        """Writes a decision about the image that a window shows; returns a message.

        Args:
          session: of the window.
          kind: "same" (as the candidate at `place`), "another" (the individual called `label`), "new", "unusable" or
            "later".
          by: the reviewer.
          label: an individual's name.
          place: of a candidate, from 0.
        """
        with self._turn:
            image = session["image"]
            if image is None:
                return "There is no image to decide about."
            try:
                if kind == "same":
                    if place >= len(session["names"]):
                        return f"There is no candidate {place + 1}."
                    label = session["names"][place]
                about: dict[str, Any] = {"by": by.strip(), "seen": session["seen"]}
                if kind in ("same", "another"):
                    self.store.same([image], label, **about)
                elif kind == "new":
                    self.store.new([image], label, **about)
                else:
                    self.store.mark([image], kind, **about)
            except UserError as error:
                self.store.refresh()
                row = self.store.rows_of([image])[0]
                if self.store.changed[row] > session["seen"]:
                    session["image"] = None  # another reviewer was quicker
                return str(error)
            session["image"] = None
            return ""

    def undo(self, session: Session, by: str) -> str:
        """Takes back the newest decision of this reviewer, and shows its image again; returns a message."""
        with self._turn:
            try:
                number, overtaken = self.store.undo(by=by.strip())
            except UserError as error:
                return str(error)
            last = self.store.log.column("image")[-1].as_py()
            session["image"] = None
            if self.store.rows_of([last])[0] in self.store.queue():
                self._leases[last] = (session["key"], time.monotonic() + _LEASE)
                session["image"] = last
            later = f"; {overtaken} images had been decided about later" if overtaken else ""
            return f"Undone, as decision {number}{later}."

    def show(self, session: Session) -> tuple[str, str]:
        """The image of a window, or the next one, with its candidates; and the log. Both are HTML."""
        with self._turn:
            self.store.refresh()
            image = session["image"]
            if image is None or self.store.labels[self.store.rows_of([image])[0]] > 0:
                image = session["image"] = self._next(session["key"])
            session["seen"] = self.store.last
            if image is None:
                return "<p>Nothing waits for a decision.</p>", self.log()
            row = int(self.store.rows_of([image])[0])
            query = self.store.embeddings[[row]]
            (matches,) = self.finder.search(query, CANDIDATES, without=np.array([row]))
            session["names"] = [match.label for match in matches]
            figures = [self._figure(row, self._caption(row))]
            for place, match in enumerate(matches, 1):
                beyond = self.threshold is not None and match.distance > self.threshold
                figures.append(self._figure(match.row, _candidate(place, match, beyond), beyond))
            return f'<div class="images">{"".join(figures)}</div>', self.log()

    def log(self) -> str:
        """The newest decisions and how many images wait, as HTML."""
        with self._turn:
            self.store.refresh()
            newest, waiting = self.store.history(_SHOWN), len(self.store.queue())
        lines = "".join(
            f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in cells)}</tr>"
            for d in reversed(newest)
            for cells in [(d.number, d.time, d.by, d.kind, d.label, f"{d.images:,} images" * (d.images > 1))]
        )
        return f'<p>{waiting:,} images wait.</p><table class="log">{lines}</table>'

    def _next(self, key: str) -> int | None:
        """The first image of the queue that nobody else looks at."""
        now = time.monotonic()
        self._leases = {image: lease for image, lease in self._leases.items() if lease[1] > now}
        for row in self.store.queue():
            image = int(self.store.ids[row])
            if self._leases.get(image, (key, 0))[0] == key:
                self._leases = {i: lease for i, lease in self._leases.items() if lease[0] != key}
                self._leases[image] = (key, now + _LEASE)
                return image
        return None

    def _caption(self, row: int) -> str:
        store = self.store
        facts = [store.text(name, row) for name in ("path", "camera", "time", "place")]
        return " · ".join([*filter(None, facts), shown_id(int(store.ids[row]))])

    def _figure(self, row: int, caption: str, beyond: bool = False) -> str:
        picture = self._picture(row)
        inside = f'<img alt="" src="{picture}">' if picture else "<p>(cannot be read)</p>"
        faint = ' class="beyond"' if beyond else ""
        return f"<figure{faint}>{inside}<figcaption>{html.escape(caption)}</figcaption></figure>"

    def _picture(self, row: int) -> str | None:
        """A small picture as a data address; None where the file cannot be read, or lies outside its folder."""
        store = self.store
        folder = store.folder_of(row)
        try:
            if folder is None:
                return None
            return _encoded(str(below(folder, store.text("path", row))), store.text("box", row))
        except (OSError, pixels.UnreadableImageError, MemoryError):
            return None


def _candidate(place: int, match: Match, beyond: bool) -> str:
    return f"{place}: {match.label} · {match.distance:.3f}{' ✗' if beyond else ''}"


@functools.lru_cache(512)
def _encoded(path: str, box: str) -> str:
    data = read_bytes(path, gate.MAX_FILE)
    corners = box_of(box)
    height, width = pixels.image_shape(data)
    if corners is not None:
        height, width = int(corners[3] - corners[1]), int(corners[2] - corners[0])
    scale = _SIDE / max(height, width, 1)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = pixels.for_evaluation(data, size, box=corners, enlarge=1.0, keep_aspect=False)
    cv2 = opencv()
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def build(review: Review, words: str = "") -> Any:
    """The page, as gradio's Blocks; `words` says where the threshold comes from.

    Raises:
      UserError: gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = extras.load("the review page", "gradio", "demo")
    with gradio.Blocks(title="hap2s_jax: review", analytics_enabled=False) as page:
        session = gradio.State(None)
        by = gradio.Textbox(label="Reviewer", elem_id="by", max_length=100)
        images, said = (
            gradio.HTML(elem_id="images"),
            gradio.Textbox(show_label=False, container=False, elem_id="said", interactive=False),
        )
        with gradio.Row():
            same = [
                gradio.Button(str(n + 1), elem_id=f"same-{n + 1}", min_width=40) for n in range(CANDIDATES)
            ]
        another = gradio.Textbox(
            label="a: another individual, by name; Enter", elem_id="another", max_length=200
        )
        with gradio.Row():
            others = {
                kind: gradio.Button(f"{kind[0]}: {words_}", elem_id=kind)
                for kind, words_ in (("new", "new individual"), ("unusable", "unusable"), ("later", "later"))
            }
            undo = gradio.Button("z: undo", elem_id="undo")
        log = gradio.HTML(elem_id="log")
        gradio.HTML(f"<p>{html.escape(words)}</p>")
        outputs = [session, images, log, said, another]

        def answered(work: Callable[..., str]) -> Callable[..., tuple[Any, ...]]:
            def handler(kept: Session | None, by_: str, *more: str) -> tuple[Any, ...]:
                kept = kept or review.open()
                text = work(kept, by_ or "", *more)
                return kept, *review.show(kept), text, ""

            return handler

        def bind(event: Any, name: str, work: Callable[..., str], *inputs: Any) -> None:
            event(answered(work), [session, by, *inputs], outputs, api_name=name, show_progress="hidden")

        bind(page.load, "show", lambda kept, by_: "")
        for place, button in enumerate(same):
            bind(
                button.click, f"same_{place + 1}", lambda s, b, p=place: review.decide(s, "same", b, place=p)
            )
        bind(another.submit, "another", lambda s, b, label: review.decide(s, "another", b, label), another)
        for kind, button in others.items():
            bind(button.click, kind, lambda s, b, k=kind: review.decide(s, k, b))
        bind(undo.click, "undo", review.undo)
        timer = gradio.Timer(_EVERY)
        timer.tick(review.log, None, [log], api_name="log", show_progress="hidden")
    return page.queue(max_size=64)


def launch(page: Any, **where: Any) -> Any:
    """Serves the page; arguments and result are those of `gate.launch`."""
    return gate.launch(page, css=_CSS, head=_HEAD, **where)
