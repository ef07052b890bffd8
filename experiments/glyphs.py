"""A second real data set, of another kind than emoji: characters as free type families draw them.

    pip install -e ".[train,study]"
    python experiments/glyphs.py                     # writes data/glyphs, 31,000 small PNGs
    python -m hap2s_jax.main --config=configs/glyphs.py

A class is a character, an image one style's drawing of it, a camera the family; the fonts are those that the packages
pymupdf-fonts and matplotlib carry (SIL Open Font Licence, Ubuntu Font Licence, Bitstream Vera and STIX). Characters
that most styles draw alike (Latin A, Greek Alpha) are one class, named by the first. Letters over the same base letter
(e, é, è) never part between training and test. Queries are the upright regular styles, the gallery all the others, and
a match of the query's own family does not count. The same packages give the same pixels.
"""

from __future__ import annotations

import argparse
import collections
import csv
import io
import pathlib
import unicodedata

import numpy as np

from hap2s_jax.data.draws import permutation

SIZE, POINTS, BASELINE = 64, 38, 46
# Latin, Greek and Cyrillic with their extensions, punctuation, currency, letterlike, arrows, operators, shapes.
RANGES = (
    (0x21, 0x2B0),
    (0x370, 0x530),
    (0x1E00, 0x2000),
    (0x2010, 0x2053),
    (0x20A0, 0x2150),
    (0x2190, 0x2600),
)
MIN_FAMILIES = 8
# In pymupdf-fonts: the stem of the module's name -> its styles, the upright regular one first.
PACKED = {
    "CascadiaMono": ("Regular", "Bold", "Italic", "BoldItalic"),
    "FiraGO": ("Regular", "Bold", "Italic", "BoldItalic"),
    "FiraMono": ("Regular", "Bold"),
    "NotoSans": ("Regular", "Bold", "Italic", "BoldItalic"),
    "SpaceMono": ("Regular", "Bold", "Italic", "BoldItalic"),
    "Ubuntu": ("Regular", "Bold", "Italic", "BoldItalic"),
    "UbuntuMono": ("Regular", "Bold", "Italic", "BoldItalic"),
}
# In matplotlib: family -> files, likewise.
BUNDLED = {
    "DejaVuSans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "DejaVuSansMono": (
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-Oblique",
        "DejaVuSansMono-BoldOblique",
    ),
    "DejaVuSerif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}
Drawings = dict[tuple[str, int], dict[int, np.ndarray]]


def fonts() -> dict[tuple[str, int], bytes]:
    """The font files by (family, number of the style)."""
    import importlib

    import matplotlib

    found = {}
    for family, styles in PACKED.items():
        for number, style in enumerate(styles):
            module = importlib.import_module(f"pymupdf_fonts.{family}_{style}")
            found[family, number] = module.fontbuffer
    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for family, files in BUNDLED.items():
        for number, name in enumerate(files):
            found[family, number] = (folder / f"{name}.ttf").read_bytes()
    return found


def draw(font: bytes, codes: list[int]) -> dict[int, np.ndarray]:
    """Drawings uint8 `[64, 64]` by code point, black on white, of those that the font has and that leave a mark."""
    from fontTools.ttLib import TTFont
    from PIL import Image, ImageDraw, ImageFont

    has = TTFont(io.BytesIO(font), lazy=True).getBestCmap() or {}
    face = ImageFont.truetype(io.BytesIO(font), POINTS, layout_engine=ImageFont.Layout.BASIC)
    found = {}
    for code in codes:
        if code in has:
            image = Image.new("L", (SIZE, SIZE), 255)
            ImageDraw.Draw(image).text((SIZE // 2, BASELINE), chr(code), fill=0, font=face, anchor="ms")
            pixels = np.asarray(image)
            if pixels.min() < 128:
                found[code] = pixels
    return found


def look_alikes(drawings: Drawings) -> dict[int, int]:
    """Each code point's representative: the first of those that at least half of their common styles draw alike."""
    common: collections.Counter[tuple[int, int]] = collections.Counter()
    for images in drawings.values():
        same = collections.defaultdict(list)
        for code in sorted(images):
            same[images[code].tobytes()].append(code)
        common.update((group[0], other) for group in same.values() for other in group[1:])
    first: dict[int, int] = {}
    for (a, b), alike in sorted(common.items()):
        both = sum(a in images and b in images for images in drawings.values())
        if 2 * alike >= both:
            first[b] = first.get(a, a)
    return first


def test_classes(codes: list[int]) -> set[int]:
    """About half of the classes, those over one base letter together."""
    groups = collections.defaultdict(list)
    for code in codes:
        groups[unicodedata.normalize("NFKD", chr(code))[0].casefold()].append(code)
    chosen: set[int] = set()
    names = sorted(groups)
    for number in permutation(len(names), 0):
        if 2 * len(chosen) < len(codes):
            chosen.update(groups[names[number]])
    return chosen


def build(folder: pathlib.Path, *, every: int = 1) -> dict[str, int]:
    """Draws the set into `folder`: ``glyphs.csv`` and an image for each of its rows.

    Args:
      folder: made where it is not there.
      every: take one code point of so many, for tests.

    Returns:
      The number of images of each part, and of classes, styles and families.
    """
    from PIL import Image

    codes = [
        code
        for begin, end in RANGES
        for code in range(begin, end, every)
        # Combining marks, spaces and letters without a name have no drawing of their own.
        if unicodedata.category(chr(code))[0] in "LNPS" and unicodedata.name(chr(code), "")
    ]
    drawings = {style: draw(font, codes) for style, font in fonts().items()}
    alike = look_alikes(drawings)
    families = sorted({family for family, _ in drawings})
    kept = [
        code
        for code in codes
        if code not in alike
        and len({family for (family, _), images in drawings.items() if code in images}) >= MIN_FAMILIES
    ]
    tested = test_classes(kept)
    rows = []
    for code in kept:
        (folder / f"{code:04x}").mkdir(parents=True, exist_ok=True)
        for (family, number), images in drawings.items():
            if code in images:
                path = f"{code:04x}/{family}-{number}.png"
                Image.fromarray(images[code]).save(folder / path)
                part = ("gallery" if number else "query") if code in tested else "train"
                label = f"{code:04x} {unicodedata.name(chr(code)).lower()}"
                rows.append((path, label, part, families.index(family)))
    with open(folder / "glyphs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split", "camera"))
        writer.writerows(rows)
    parts = collections.Counter(part for _, _, part, _ in rows)
    counts = {
        "classes": len(kept),
        "test classes": len(tested),
        "styles": len(drawings),
        "families": len(families),
    }
    return {**parts, **counts}


def main() -> None:
    """Builds the set."""
    parser = argparse.ArgumentParser(description="Draws the glyph data set.")
    parser.add_argument("--folder", default="data/glyphs", help="where it goes")
    options = parser.parse_args()
    counts = build(pathlib.Path(options.folder))
    print(f"{options.folder}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
