"""Embeds images with a trained encoder.

    python -m hap2s_jax.embed --workdir=runs/emoji --images=photos --output=vectors.npz
    python -m hap2s_jax.embed --workdir=runs/emoji --images=photos.csv --output=vectors.parquet
    python -m hap2s_jax.embed --workdir=runs/emoji --images=photos --output=vectors-3.npz --part=3/16

--images takes a folder (its direct subfolders are the classes), or a CSV file with the column path and optionally
label, camera and a box x1, y1, x2, y2. `evaluate --embeddings=` and `search --gallery=` read the .npz file. After an
interruption, run the same command again to continue. Memory does not grow with the number of images, except for their
names. --part=3/16 embeds the third of 16 parts, for work on many machines; `search --gallery='vectors-*.npz'` reads all
parts as one gallery.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from hap2s_jax import cli, extras, formats
from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError, reason, shown
from hap2s_jax.reporting.atomic import holding, replacing
from hap2s_jax.reporting.progress import ProgressBar
from hap2s_jax.serving import commands, listing, vectors
from hap2s_jax.serving.parts import Part, Parts
from hap2s_jax.serving.trained import TrainedEncoder

# How often embeddings are saved: an interruption loses no more than this.
ROWS_PER_PART = 8192
_SHOWN_FAILURES = 5


def embed_images(
    encoder: TrainedEncoder,
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    columns: str = "",
    part: tuple[int, int] | None = None,
    rows_per_part: int = ROWS_PER_PART,
    overwrite: bool = False,
    show_progress: bool = True,
) -> vectors.Outcome:
    """Embeds every readable image of a folder or CSV file into `output`.

    Args:
      encoder: made by `hap2s_jax.load`.
      images: see `listing.list_images`.
      output: an .npz or .parquet file; unfinished parts are kept in a folder beside it.
      batch_size, workers: see `TrainedEncoder.stream`.
      columns: what the columns of a CSV file are called, see `listing.list_images`.
      part: (number, of how many) of the equal parts of the images that is embedded; None for all.
      rows_per_part: images between two parts that an interrupted run goes on from.
      overwrite: whether a finished file of other images or weights may be replaced.
      show_progress: whether to draw a bar on standard error.

    Returns:
      How many were embedded, and (path, reason) of each image that could not be read; these are listed beside
      `output` too.

    Raises:
      UserError: no images, or nothing can be written, or the file there is of something else, or another process is
        making it.
    """
    output = place(output)
    if output.suffix not in vectors.SUFFIXES:
        raise UserError(f"--output: {output} must end in {' or '.join(vectors.SUFFIXES)}")
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, but is {workers}; leave it out for all cores")
    found = listing.list_images(images, columns)
    for remark in found.remarks:
        print(f"note: {shown(remark)}", file=sys.stderr)
    model = encoder.describe()
    if part is not None:
        if not 1 <= part[0] <= part[1] <= len(found.paths):
            raise UserError(
                f"--part is {part[0]}/{part[1]}; it should be between 1/N and N/N, with N up to the number of images, "
                f"{len(found.paths)}"
            )
        found = found.part(*part)
        model |= {"part": f"{part[0]}/{part[1]}"}
    model |= {"images": str(found.root), "listing": found.digest(), "contents": found.contents()}
    model |= {"boxes": found.boxes is not None}
    if output.exists() and not overwrite:
        return _finished(output, model)
    with holding(output.with_name(f"{output.name}.lock")) as is_free:
        if not is_free:
            raise UserError(f"another process is making {output}; wait until it ends, or choose another name")
        if output.exists() and not overwrite:  # another process has just finished it
            return _finished(output, model)
        identity = {"weights": encoder.fingerprint, "images": found.digest(), "folder": str(found.root)}
        identity["images' sizes"] = model["contents"]
        parts = Parts(output, identity, anew=overwrite)
        _make(parts, encoder, found, batch_size, workers, rows_per_part, show_progress)
        try:
            outcome = vectors.write(output, parts, found, model)
        except vectors.NothingReadableError:
            parts.remove()  # else missing images would never be tried again
            raise
        _list_unreadable(output, outcome.unreadable)
        parts.remove()
    return outcome


def _make(
    parts: Parts,
    encoder: TrainedEncoder,
    found: listing.Listing,
    batch_size: int | None,
    workers: int | None,
    rows_per_part: int,
    show_progress: bool,
) -> None:
    """Embeds the images that no part covers yet."""
    done = parts.done
    with ProgressBar(len(found.paths), done, "embedding", images_per_step=1, enabled=show_progress) as bar:
        waiting: list[Part] = []
        for begin, part in _embedded(encoder, found, done, batch_size, workers):
            waiting.append(part)
            done = begin + len(part.rows) + len(part.unreadable)
            bar.update(done)
            for row, reason in list(zip(part.unreadable, part.reasons, strict=True))[:_SHOWN_FAILURES]:
                bar.write(shown(f"warning: {found.paths[row]} cannot be read: {reason}"))
            if sum(len(p.rows) for p in waiting) >= rows_per_part:
                parts.add(done, _joined(waiting))
                waiting = []
        if waiting:
            parts.add(done, _joined(waiting))


def _embedded(
    encoder: TrainedEncoder, found: listing.Listing, start: int, batch_size: int | None, workers: int | None
) -> Any:
    """(first row, part) for each batch from image number `start` on."""

    def read(row: int) -> np.ndarray:
        box = None if found.boxes is None else found.boxes[row]
        return encoder.preprocess(found.root / found.paths[row], box=box)

    rows = range(start, len(found.paths))
    begin = start
    for batch in encoder.stream(rows, batch_size=batch_size, workers=workers, read=read):
        fine = np.array([failure is None for failure in batch.failures])
        numbers = np.arange(begin, begin + len(fine))
        reasons = [reason(failure) for failure in batch.failures if failure is not None]
        yield (
            begin,
            Part(batch.embeddings[fine], numbers[fine], numbers[~fine], np.array(reasons, str)),
        )
        begin += len(fine)


def _joined(parts: list[Part]) -> Part:
    return Part(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("embeddings", "rows", "unreadable", "reasons")
        )
    )


def _finished(output: pathlib.Path, model: dict[str, Any]) -> vectors.Outcome:
    try:
        there = vectors.read_model(output)
    except formats.NewerFormatError:
        raise
    except Exception:  # anything else there is not ours, so it is not replaced
        there = {}
    if all(there.get(key) == model[key] for key in ("fingerprint", "listing", "images")):
        if there.get("contents", model["contents"]) != model["contents"]:
            raise UserError(
                f"--output: {output} was made before some of these images changed; give --overwrite to make it again"
            )
        missing = there.get("unreadable", 0)
        but = f", but for {missing:,} images that could not be read" if missing else ""
        print(f"{output} already holds these embeddings{but}; --overwrite computes them again")
        return vectors.Outcome(there.get("count", 0), [])
    raise UserError(
        f"--output: {output} exists and holds something else; give --overwrite, or choose another name"
    )


def _list_unreadable(output: pathlib.Path, unreadable: Sequence[tuple[str, str]]) -> None:
    file = unreadable_list(output)
    if not unreadable:
        file.unlink(missing_ok=True)  # of the file that was there before: now nothing is unreadable
        return
    lines = "".join(f"{path}\t{reason}\n" for path, reason in unreadable)
    with replacing(file) as temporary:
        temporary.write_text(lines, encoding="utf-8", errors="surrogateescape")


def unreadable_list(output: str | os.PathLike[str]) -> pathlib.Path:
    """The file that lists the images that could not be read."""
    return place(f"{os.fspath(output)}.unreadable.txt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser("embed", __doc__)
    commands.add_encoder(parser)
    parser.add_argument("--images", required=True, help="a folder or a CSV file")
    parser.add_argument(
        "--columns", default="", help="columns of a CSV file, as in label=identity,path=file,box=x+y+w+h"
    )
    parser.add_argument("--part", type=_part, metavar="N/M", help="embed only part N of M, from 1/M to M/M")
    parser.add_argument("--output", required=True, help="an .npz or .parquet file")
    parser.add_argument("--batch_size", type=int, help="images at a time; by default as in evaluation")
    parser.add_argument("--workers", type=int, help="threads that read and decode; by default all cores")
    parser.add_switch("overwrite", default=False, help="start over, and replace an existing output file")
    return cli.start(
        _run,
        parser,
        arguments,
        interrupted="interrupted; the same command goes on where it stopped",
    )


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} should be a part such as 3/16")
    return int(number), int(count)


def _run(options: argparse.Namespace) -> None:
    extras.require("embed", "use")
    if options.output.endswith(".parquet"):
        extras.require("--output=...parquet", "parquet")
    encoder = commands.open_encoder(options)
    outcome = embed_images(
        encoder,
        options.images,
        options.output,
        batch_size=options.batch_size,
        workers=options.workers,
        columns=options.columns,
        part=options.part,
        overwrite=options.overwrite,
    )
    if outcome.unreadable:
        file = unreadable_list(options.output)
        print(f"{len(outcome.unreadable)} images could not be read; they are listed in {file}")
    print(f"{outcome.count:,} embeddings of {encoder.dim} numbers: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
