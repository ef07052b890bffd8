"""Images of every format, changed at random, through all that read images: check_data, training, embed and the page."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from drill import Trial, WrongError

from drills import small_run
from drills.files import changed_bytes
from hap2s_jax.data import pixels, regular_files
from hap2s_jax.data.images import DecodedImages
from hap2s_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "AVIF")


def encoded(kind: str, random: np.random.Generator) -> bytes:
    """A picture of a format, of any of its modes."""
    from PIL import Image

    side = tuple(random.integers(1, 60, 2))
    mode = str(
        random.choice({"JPEG": ["RGB", "L", "CMYK"], "PPM": ["RGB", "L"]}.get(kind, ["RGB", "L", "RGBA"]))
    )
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    picture = Image.fromarray(random.integers(0, 256, (*side, *channels)).astype(np.uint8), mode)
    file = io.BytesIO()
    settings = (
        {"exif": bytes(random.bytes(30))} if kind in ("JPEG", "WEBP") and random.integers(0, 4) == 0 else {}
    )
    picture.save(file, kind, **settings)
    return file.getvalue()


class _One:
    """A source of one image."""

    def __init__(self, path: pathlib.Path):
        self.name, self._path = "one", path
        self.labels, self.cameras, self.class_names = np.zeros(1, np.int32), None, ("one",)

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> bytes:
        """The image's bytes."""
        return regular_files.read_bytes(self._path)

    def describe(self, index: int) -> str:
        """Its path."""
        return str(self._path)


def _readable(decode: Callable[[], object]) -> None:
    try:
        decode()
    except pixels.UnreadableImageError as error:
        raise UserError(str(error)) from error


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Without end, one format after the other."""
    from PIL import features

    from hap2s_jax import demo, embed, search
    from hap2s_jax.serving import vectors

    encoder = small_run.encoder()
    encoder(np.zeros((1, small_run.SIZE, small_run.SIZE, 3), np.uint8))
    small_run.images(folder / "gallery")
    embed.embed_images(encoder, folder / "gallery", folder / "gallery.npz", show_progress=False)
    searcher = search.Searcher(encoder, vectors.read(folder / "gallery.npz"))
    (folder / "new").mkdir()

    def check_data(path: pathlib.Path) -> None:
        _readable(lambda: pixels.decode_whole(regular_files.read_bytes(path)))

    def training(path: pathlib.Path) -> None:
        source = _One(path)
        _readable(lambda: DecodedImages(source).get(0, lambda h, w: (0, 0, (h + 1) // 2, w), (32, 32)))
        _readable(lambda: pixels.for_evaluation(source.read(0), (32, 32)))

    def embedding(path: pathlib.Path) -> None:
        output = folder / "out.npz"
        try:
            outcome = embed.embed_images(encoder, path.parent, output, show_progress=False, overwrite=True)
            if outcome.count and not np.isfinite(vectors.read(output).embeddings).all():
                raise WrongError("embeddings that are not finite")
        finally:
            for file in folder.glob("out.npz*"):
                file.unlink()

    def page(path: pathlib.Path) -> None:
        verdict, seen, hits = demo.answer(searcher, path, 3)
        if seen is None and not verdict.startswith("**This file cannot be used"):
            raise WrongError(verdict)
        if "\n" in verdict or (seen is not None and not hits):
            raise WrongError(verdict)

    known = [kind for kind in FORMATS if kind != "AVIF" or features.check("avif")]
    number = 0
    while True:
        for kind in known:
            number += 1
            random = np.random.default_rng((seed, number))
            data = encoded(kind, random)
            path = folder / "new" / f"x.{kind.lower()}"
            path.write_bytes(changed_bytes(data, random) if number > 3 * len(known) else data)
            for name, run in (
                ("check_data", check_data),
                ("main", training),
                ("embed", embedding),
                ("demo", page),
            ):
                yield Trial(
                    f"{kind}, {name}", lambda r=run, p=path: r(p), is_warm_up=number <= 3 * len(known)
                )
            path.unlink()
