"""Serves a web page to search a gallery: drop a picture to see the most similar images, or that there is no match.

    python -m hap2s_jax.embed --workdir=runs/emoji --images=photos --output=gallery.npz
    python -m hap2s_jax.demo --gallery=gallery.npz

Needs the extra "demo" (gradio). Only this machine can open the page, unless you give --host, and nothing is sent
anywhere. Files that are not images or have too many pixels are refused.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from hap2s_jax import cli, extras, search
from hap2s_jax.data import pixels
from hap2s_jax.data.headers import UnreadableImageError, read_header
from hap2s_jax.data.regular_files import read_bytes
from hap2s_jax.distributed import signals
from hap2s_jax.errors import reason, shown
from hap2s_jax.serving import commands, gate, index

_SHOWN_SIDE = 256
# Of a visitor's picture, since several are decoded at a time. Only a JPEG is decoded at a fraction of its size, and
# OpenCV takes eight bytes for a pixel of others.
_MAX_JPEG, _MAX_PIXELS = 50_000_000, 25_000_000
_AT_ONCE = 4
# Otherwise gradio cuts captions to two thirds of the picture.
_CSS = "#gallery .caption-label { max-width: 100% !important; white-space: normal !important; }"


def answer(
    searcher: search.Searcher, path: str | os.PathLike[str] | None, k: int
) -> tuple[str, np.ndarray | None, list[tuple[np.ndarray, str]]]:
    """The page's answer to an uploaded file: the verdict, the query and the gallery images with captions.

    Whatever is wrong with the file is said in the verdict; nothing is raised.
    """
    if path is None:
        return "", None, []
    try:
        data = read_bytes(path, gate.MAX_FILE)
        most = _MAX_JPEG if read_header(data).kind == "jpeg" else _MAX_PIXELS
        pixels.allowed_header(data, pixels.DEFAULT._replace(max_pixels=most))
        seen = searcher.encoder.preprocess(data)
        (found,) = searcher.search_pixels(seen[None], k)
    except (OSError, UnreadableImageError, MemoryError) as error:
        return f"**This file cannot be used:** {_plain(reason(error))}", None, []
    hits = [(_enlarged(searcher.picture_of(hit)), _caption(hit, hit in found.accepted)) for hit in found.hits]
    verdict = search.verdict(next(iter(found.hits), None), found.threshold)
    return f"### {_plain(verdict)}", _enlarged(seen), hits


def build(searcher: search.Searcher, words: str, k: int = 10) -> Any:
    """The page, as gradio's Blocks.

    Raises:
      UserError: gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = extras.load("the demo", "gradio", "demo")
    count = len(searcher.gallery.paths)
    most = min(50, count)
    # Every ten minutes gradio removes visitors' pictures that are older than an hour.
    with gradio.Blocks(title="hap2s_jax", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"## Which of {count:,} images are most like yours?")
        with gradio.Row():
            with gradio.Column(scale=1):
                upload = gradio.File(label="Drop a picture", file_types=["image"], elem_id="upload")
                number = gradio.Slider(1, most, value=max(1, min(k, most)), step=1, label="Answers")
                query = gradio.Image(
                    label="As the encoder sees it", interactive=False, buttons=["fullscreen"]
                )
            with gradio.Column(scale=3):
                verdict = gradio.Markdown(elem_id="verdict")
                gallery = gradio.Gallery(
                    label="Nearest first", columns=5, elem_id="gallery", object_fit="contain"
                )
        gradio.Markdown(_plain(words) + ("" if searcher.threshold is None else "; ✗: beyond it"))
        gradio.on(
            [upload.change, number.release],
            lambda path, wanted: answer(searcher, path, min(max(int(wanted), 1), most)),
            [upload, number],
            [verdict, query, gallery],
            api_name="search",
            concurrency_limit=_AT_ONCE,
        )
    return page.queue(max_size=64)


def _caption(hit: search.Hit, accepted: bool) -> str:
    return f"{'' if accepted else '✗ '}{hit.distance:.3f} {shown(hit.label or hit.path)[:200]}"


def _plain(text: str) -> str:
    """Text that may come out of somebody's file, as Markdown that shows it: no picture or link of theirs, which would
    tell another machine who looks.
    """
    return re.sub(r"([\\`*_\[\]<>!|~$&#])", r"\\\1", shown(text)[:1000])


def _enlarged(image: np.ndarray) -> np.ndarray:
    times = max(1, _SHOWN_SIDE // max(image.shape[:2]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("demo", __doc__)
    commands.add_encoder(parser, required=False, where="; by default the one that embedded the gallery")
    parser.add_argument("--gallery", required=True, help="a file made by hap2s_jax.embed")
    parser.add_argument("--images", help="folder of the gallery's images, if they have moved")
    parser.add_argument("--threshold", default="auto", help="auto, none or the largest distance of a match")
    parser.add_argument(
        "--false_accepts", type=float, metavar="SHARE", help="largest share of false accepts, 0 to 1"
    )
    parser.add_argument("--index", choices=index.KINDS, default="auto", help="auto: exact below a million")
    parser.add_argument("--k", type=int, default=10, help="number of answers shown at first")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: open to everyone who can reach this machine"
    )
    parser.add_argument("--port", type=int, help="by default the first free port from 7860 on")
    return cli.start(_run, parser, arguments)


def _run(options: argparse.Namespace) -> None:
    extras.require("demo", "demo")
    gate.check_shown(options.host, options.images, "--images")
    searcher, words = search.open_searcher(options)
    # Visitors' pictures and answers are in there; gradio does not delete them at its end.
    with signals.temporary_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(searcher, words, options.k)
        gate.launch(page, css=_CSS, host=options.host, port=options.port)


if __name__ == "__main__":
    sys.exit(main())
