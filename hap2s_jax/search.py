"""Finds the images of a gallery that are most like a query, or says that there is no match.

    python -m hap2s_jax.embed --workdir=runs/emoji --images=photos --output=gallery.npz
    python -m hap2s_jax.search --gallery=gallery.npz --query a.jpg b.jpg --picture=found.png
    python -m hap2s_jax.search --gallery=gallery.npz --query a.jpg --false_accepts=0.01
    python -m hap2s_jax.search --gallery='vectors-*.npz' --query a.jpg
    python -m hap2s_jax.search --workdir=runs/emoji --calibrate
    python -m hap2s_jax.search --gallery=labelled.npz --calibrate

A query has no match if its nearest image is beyond a threshold on the distance. By default, false accepts and false
rejects are equally frequent there; with --false_accepts, new classes have at most that share (with 95 % confidence).
Training measures both on the validation classes, if there are enough. --calibrate measures them again, on the run's
data set or on the labelled images of --gallery, which should not be training images.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hap2s_jax import cli, extras
from hap2s_jax.data.places import local, place
from hap2s_jax.data.regular_files import below
from hap2s_jax.errors import UserError, require, shown
from hap2s_jax.reporting import outputs
from hap2s_jax.reporting.outputs import Output
from hap2s_jax.serving import calibrating, commands, index, vectors
from hap2s_jax.serving.listing import claimed_folder, list_images
from hap2s_jax.serving.trained import Image, TrainedEncoder

if TYPE_CHECKING:
    from hap2s_jax.catalogue.searching import Match

_MISSING = np.uint8(225)  # grey, shown for a gallery image that no longer exists


@dataclasses.dataclass(frozen=True)
class Hit:
    """One answer: its rank from 1, its row and path in the gallery, its class ("" without one) and its distance."""

    rank: int
    row: int
    path: str
    label: str
    distance: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result of a query.

    Attributes:
      hits: nearest first, also those beyond the threshold.
      threshold: None where there is none.
    """

    hits: list[Hit]
    threshold: float | None

    @property
    def accepted(self) -> list[Hit]:
        """The hits within the threshold; all of them without one. None: no match."""
        return [hit for hit in self.hits if self.threshold is None or hit.distance <= self.threshold]

    @property
    def match(self) -> bool | None:
        """Whether there is a match; None where no threshold can say so."""
        return None if self.threshold is None else bool(self.accepted)


class Searcher:
    """A gallery that can be asked with images.

    Args:
      encoder: the one that embedded the gallery.
      gallery: its vectors.
      threshold: the greatest distance of an answer, None for any.
      kind: see `index.open_index`; cache likewise.
      pictures: the folder of the gallery's images; by default the one that was embedded, by the gallery's own account,
        unless that is the home folder or one above it.

    Raises:
      UserError: the gallery was embedded with other weights.
    """

    def __init__(
        self,
        encoder: TrainedEncoder,
        gallery: vectors.Vectors,
        *,
        threshold: float | None = None,
        kind: str = "auto",
        cache: pathlib.Path | None = None,
        pictures: str | os.PathLike[str] | None = None,
    ):
        calibrating.check_weights(gallery, encoder)
        self.encoder, self.gallery, self.threshold = encoder, gallery, threshold
        self._index = index.open_index(gallery.embeddings, encoder.distance, kind=kind, cache=cache)
        self._pictures = local(pictures) if pictures else claimed_folder(str(gallery.model.get("images")))

    def search(self, images: Sequence[Image] | Image, k: int = 10) -> list[Answer]:
        """The `k` nearest gallery images (all, where there are fewer) to each query; errors are `TrainedEncoder`'s."""
        return self._search(self.encoder(images), k)

    def search_files(self, images: Sequence[str], k: int = 10) -> tuple[list[Answer], list[Exception | None]]:
        """As `search`, and goes on after what cannot be read: answers to the readable images, and why each is none."""
        batches = list(self.encoder.stream(images))
        failures = [failure for batch in batches for failure in batch.failures]
        embedded = np.concatenate([batch.embeddings for batch in batches])
        return self._search(embedded[[failure is None for failure in failures]], k), failures

    def search_pixels(self, images: np.ndarray, k: int = 10) -> list[Answer]:
        """As `search`, for what the encoder's `preprocess` gave, uint8 `[n, *image_size, 3]`."""
        return self._search(self.encoder.embed_pixels(images), k)

    def _search(self, queries: np.ndarray, k: int) -> list[Answer]:
        if not len(queries):
            return []
        distances, rows = self._index.search(queries, min(k, len(self.gallery.embeddings)))
        return [
            Answer(
                [
                    Hit(rank, int(row), str(self.gallery.paths[row]), self.gallery.class_of(row), float(far))
                    for rank, (far, row) in enumerate(zip(*pair, strict=True), 1)
                    if row >= 0
                ],
                self.threshold,
            )
            for pair in zip(distances, rows, strict=True)
        ]

    def picture_of(self, hit: Hit) -> np.ndarray:
        """A gallery image as the encoder sees it, uint8 `[h, w, 3]`; grey where it cannot be read, or lies elsewhere
        than below `pictures`.

        A gallery made from a CSV file with boxes keeps no boxes: the whole image is shown.
        """
        with contextlib.suppress(OSError, ValueError):
            if self._pictures is not None:
                return self.encoder.preprocess(below(self._pictures, hit.path))
        return np.full((*self.encoder.image_size, 3), _MISSING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("search", __doc__)
    commands.add_encoder(parser, required=False, where="; by default the one that embedded the gallery")
    parser.add_argument("--gallery", help="a file made by hap2s_jax.embed, or a quoted pattern for several")
    parser.add_argument(
        "--query", nargs="+", action="extend", metavar="IMAGE", help="images, or folders of images"
    )
    parser.add_argument("--k", type=int, default=10, help="number of answers per query")
    parser.add_argument("--threshold", default="auto", help="auto, none or the largest distance of a match")
    parser.add_argument(
        "--false_accepts", type=float, metavar="SHARE", help="largest share of false accepts, 0 to 1"
    )
    parser.add_argument("--index", choices=index.KINDS, default="auto", help="auto: exact below a million")
    parser.add_argument("--images", help="folder of the gallery's images, for --picture, if they have moved")
    parser.add_argument(
        "--picture", type=Output, metavar="FILE", help="draw queries and answers as a PNG file"
    )
    parser.add_argument("--json", type=Output, metavar="FILE", help="write the answers to a JSON file")
    parser.add_switch("overwrite", default=False, help=outputs.OVERWRITE)
    parser.add_switch(
        "calibrate",
        default=False,
        help="measure the error rates again, on the run's validation classes or the labelled images of --gallery",
    )
    parser.add_switch(
        "with_test_classes",
        default=False,
        help="calibrate on the test classes too; the run's test figures are then no longer held out",
    )
    parser.add_argument("--data_dir", help="where the run's data is now, for --calibrate, if it has moved")
    return cli.start(_run, parser, arguments)


def _run(options: argparse.Namespace) -> None:
    extras.require("search", "use")
    outputs.check(options)
    if options.with_test_classes and (options.gallery or not options.calibrate):
        raise UserError("--with_test_classes goes with --calibrate --workdir, without --gallery")
    if options.calibrate:
        calibrating.calibrate(options)
        if not options.query:
            return
    if options.index == "faiss":
        extras.require("--index=faiss", "faiss")
    if options.gallery is None or not options.query:
        raise UserError(
            "give --gallery=FILE and --query IMAGE..., or --calibrate with --workdir or --gallery"
        )
    searcher, words = open_searcher(options)
    queries: list[str] = []
    for name in options.query:
        if local(name).is_dir():
            found = list_images(name)
            queries += [str(found.root / path) for path in found.paths]
        else:
            queries.append(name)
    found, failures = searcher.search_files(queries, options.k)
    readable = [query for query, failure in zip(queries, failures, strict=True) if failure is None]
    answers = dict(zip(readable, found, strict=True))
    for query, failure in zip(queries, failures, strict=True):
        _print(query, answers[query] if failure is None else failure)
    print(words + ("; x: beyond it" if any(a.threshold is not None for a in found) else ""))
    if options.json:
        record = [
            {"query": query, "error": str(failure)}
            if failure is not None
            else {
                "query": query,
                "match": answers[query].match,
                **dataclasses.asdict(answers[query]),
            }
            for query, failure in zip(queries, failures, strict=True)
        ]
        place(options.json).write_text(json.dumps(record, indent=2) + "\n")
    if options.picture and readable:
        _draw(searcher, readable, found, options.picture)
    if lost := [pair for pair in zip(queries, failures, strict=True) if pair[1] is not None]:
        many = (
            f"{len(lost):,} of {len(queries):,} queries cannot be read, such as " if len(queries) > 1 else ""
        )
        raise UserError(f"{many}{lost[0][0]}{'' if many else ' cannot be read'}: {lost[0][1]}")


def open_searcher(options: argparse.Namespace) -> tuple[Searcher, str]:
    """The searcher that the flags of this command (or of the demo) describe, and its threshold in words."""
    require(options.k > 0, "--k", options.k, "at least 1")
    gallery = calibrating.open_gallery(options)
    workdir = commands.workdir_of(options, options.gallery, gallery.model["workdir"])
    encoder = commands.open_encoder(options, workdir)
    threshold, words = calibrating.choose_threshold(
        encoder.workdir, encoder.fingerprint, options.threshold, options.false_accepts
    )
    cache = index.cache_of(options.gallery)
    more = {"kind": options.index, "cache": cache, "pictures": options.images}
    if len(encoder.trained_on) > 1:
        words += f"; trained on {', '.join(encoder.trained_on)}"
    return Searcher(encoder, gallery, threshold=threshold, **more), words


def verdict(nearest: Hit | Match | None, threshold: float | None) -> str:
    """The answer in a few words. Something is always nearest: without a threshold nothing is called a match."""
    if nearest is None:
        return "no match"
    name = nearest.label or nearest.path
    if threshold is None:
        return f"nearest, {name}"
    if nearest.distance <= threshold:
        return f"match, {name}"
    return f"no match (the nearest is at {nearest.distance:.4f})"


def _print(query: str, answer: Answer | Exception) -> None:
    if isinstance(answer, Exception):
        print(shown(f"{query}: cannot be read: {answer}"))
        return
    print(shown(f"{query}: {verdict(next(iter(answer.hits), None), answer.threshold)}"))
    width = max((len(hit.label) for hit in answer.hits), default=0)
    for hit in answer.hits:
        mark = " " if hit in answer.accepted else "x"
        print(shown(f"  {hit.rank:>3} {mark} {hit.distance:>9.4f}  {hit.label:<{width}}  {hit.path}"))


def _draw(searcher: Searcher, queries: Sequence[str], answers: Sequence[Answer], path: str) -> None:
    from hap2s_jax.reporting.pictures import retrievals

    # An approximate index may find fewer images for some queries.
    shown = min(len(answer.hits) for answer in answers)
    if not shown:
        raise UserError("--picture: a query found nothing to draw; give --index=exact")
    answers = [dataclasses.replace(answer, hits=answer.hits[:shown]) for answer in answers]
    hits = [answer.hits for answer in answers]
    within = [[hit in answer.accepted for hit in answer.hits] for answer in answers]
    retrievals(
        path,
        np.stack([searcher.encoder.preprocess(query) for query in queries]),
        np.stack([[searcher.picture_of(hit) for hit in row] for row in hits]),
        None if searcher.threshold is None else within,
        query_captions=[pathlib.Path(query).name for query in queries],
        neighbour_captions=[[f"{hit.distance:.3f} {hit.label}".strip() for hit in row] for row in hits],
        title="Queries and the nearest images of the gallery",
        legend=("within the threshold", "beyond it"),
    )


if __name__ == "__main__":
    sys.exit(main())
