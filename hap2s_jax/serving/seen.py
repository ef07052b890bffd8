"""Finds images of a gallery that were trained on, by the bytes of their files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator

from hap2s_jax.data.places import local
from hap2s_jax.data.regular_files import below, read_bytes
from hap2s_jax.data.source import Source
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation.stored import read_model, read_npz
from hap2s_jax.serving import vectors


def count_trained_on(
    gallery: vectors.Vectors,
    workdir: str | os.PathLike[str],
    *,
    data_dir: str | None = None,
    images: str | None = None,
) -> int:
    """How many images of a gallery are training images of a run.

    Args:
      gallery: the file of embeddings; its images are still where they were embedded, or below `images`.
      workdir: of the run.
      data_dir: where its data lie here, if elsewhere than its config says.
      images: see `gallery`.

    Raises:
      ImportError, OSError, UserError, KeyError: the run's data or the images are not here.
    """
    from hap2s_jax.run import foreign
    from hap2s_jax.run.evaluator import load_dataset

    root = local(images) if images else gallery.model["images"]
    files = [below(root, str(path)) for path in gallery.paths]
    train = load_dataset(foreign.load(pathlib.Path(workdir), data_dir=data_dir)).train
    trained = _digests(train, {os.stat(file).st_size for file in files})
    return sum(hashlib.sha256(read_bytes(file)).digest() in trained for file in files)


def remarks(path: str) -> Iterator[str]:
    """A line if a file of `hap2s_jax.embed` holds training images of its run; none if images or run are not here."""
    with contextlib.suppress(OSError, ValueError, KeyError, UserError):
        known = read_npz(path, ("model", "paths", "class_names"))
        workdir = pathlib.Path(read_model(known["model"], path)["workdir"])
        if (workdir / "config.json").is_file() and (
            count := count_trained_on(gallery := vectors.read(path), workdir)
        ):
            yield (
                f"{count:,} of {len(gallery.paths):,} images are training images of {workdir}; figures are not of "
                "unseen classes"
            )


def _digests(source: Source, sizes: set[int]) -> set[bytes]:
    """Digests of the images with one of these sizes; other files are not read."""
    found = set()
    for n in range(len(source)):
        try:
            if os.stat(source.describe(n)).st_size not in sizes:
                continue
        except OSError:  # an image inside an archive
            pass
        found.add(hashlib.sha256(source.read(n)).digest())
    return found
