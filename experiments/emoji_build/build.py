"""Builds the shipped emoji set from six npm icon packages, byte for byte the same every time.

    npm install --prefix DIR @iconify-json/{noto@1.2.9,noto-v1@1.2.5,twemoji@1.2.5} \\
        @iconify-json/{fluent-emoji@1.2.7,emojione@1.2.3,fxemoji@1.2.2}
    pip install 'hap2s_jax[emoji-build]'
    python -m experiments.emoji_build.build --packages=DIR/node_modules --output=hap2s_jax/data/emoji

Takes about two minutes. Users never need it: its output is part of the package. What was decided by
eye stands in the tables under `reviewed/`, each exception with its reason.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.emoji_build.curate import (
    LEAST_CAMERAS,
    LEAST_IMAGES,
    Drawing,
    apply_exceptions,
    assign_splits,
    curate,
)
from experiments.emoji_build.names import CAMERA_OF_SET, IconSet, NameTable, base_code, read_table
from experiments.emoji_build.render import draw, encode_png
from hap2s_jax.data.emoji import ARCHIVE, INDEX, INDEX_FIELDS, SPLITS
from hap2s_jax.errors import UserError

VERSIONS = {
    "noto": "1.2.9",
    "twemoji": "1.2.5",
    "fluent-emoji": "1.2.7",
    "emojione": "1.2.3",
    "fxemoji": "1.2.2",
    "noto-v1": "1.2.5",
}
# Zip stores times; a fixed one keeps the archive the same from build to build.
EPOCH = (1980, 1, 1, 0, 0, 0)


def read_sets(packages: Path) -> dict[str, IconSet]:
    """Read the six packages.

    Raises:
      UserError: a package is missing, or is not of the version that was reviewed.
    """
    sets = {}
    for name, version in VERSIONS.items():
        try:
            sets[name] = IconSet.read(packages, name)
        except FileNotFoundError as error:
            raise UserError(
                f"--packages: {error.filename} not found; expected @iconify-json/{name} under {packages}; "
                f"mend it with: npm install --prefix {packages.parent} @iconify-json/{name}@{version}"
            ) from error
        if sets[name].version != version:
            raise UserError(
                f"--packages: @iconify-json/{name} is {sets[name].version}, the reviewed version is {version}; "
                f"mend it with: npm install --prefix {packages.parent} @iconify-json/{name}@{version}"
            )
    return sets


def class_names(sets: Mapping[str, IconSet], table: NameTable) -> dict[str, str]:
    """Code of a class -> its name, as the first set that publishes one spells it."""
    names: dict[str, str] = {}
    for set_name in sets:
        for (owner, icon), code in table.direct.items():
            if owner == set_name:
                names.setdefault(code, icon)
    return names


def gather(sets: Mapping[str, IconSet]) -> tuple[list[Drawing], dict[str, str]]:
    """Steps 1 and 2: draw every icon whose class can become large enough.

    Returns:
      The drawings, and class name -> code.
    """
    table = NameTable.build(sets, read_table("names.csv"))
    name_of = class_names(sets, table)
    members: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for set_name, icon_set in sets.items():
        for icon in icon_set.drawings():
            code = table.code(set_name, icon)
            base = base_code(code) if code is not None else None
            if code is not None and base is not None:
                members[base].append((set_name, icon, code))
    drawings = []
    for base, icons in sorted(members.items()):
        cameras = {CAMERA_OF_SET[set_name] for set_name, _, _ in icons}
        if len(icons) >= LEAST_IMAGES and len(cameras) >= LEAST_CAMERAS:
            for set_name, icon, code in icons:
                pixels = draw(sets[set_name], icon)
                drawings.append(Drawing(set_name, icon, code, name_of[base], pixels))
    return drawings, {name: code for code, name in name_of.items()}


def member_name(drawing: Drawing) -> str:
    """The archive member that holds a drawing."""
    return f"{drawing.class_name}/{drawing.set_name}.{drawing.icon}.png"


def index_rows(drawings: Sequence[Drawing], sides: Mapping[str, tuple[str, str]]) -> list[tuple[str, ...]]:
    """One row of the index per drawing, its values in the order of `INDEX_FIELDS`."""
    rows = []
    for drawing in drawings:
        family, split = sides[drawing.class_name]
        file, kind = member_name(drawing), drawing.class_name
        rows.append((file, kind, split, family, drawing.camera, drawing.set_name, drawing.icon))
    return rows


def write(drawings: Sequence[Drawing], rows: Iterable[tuple[str, ...]], output: Path) -> None:
    """Step 6: write the archive (a zip of stored PNGs) and the index (CSV)."""
    output.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for drawing in drawings:
            info = zipfile.ZipInfo(member_name(drawing), EPOCH)
            # The default names the operating system that wrote the archive.
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, encode_png(drawing.pixels))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(INDEX_FIELDS)
    writer.writerows(rows)
    # Only now, so that a build that fails or is stopped leaves the old pair whole.
    (output / ARCHIVE).write_bytes(packed.getvalue())
    (output / INDEX).write_bytes(text.getvalue().encode())


def build(packages: Path, output: Path) -> str:
    """Carry out all steps and return a line that sums up the result."""
    drawings, code_of_class = gather(read_sets(packages))
    drawings = curate(apply_exceptions(drawings, read_table("exceptions.csv")), code_of_class)
    classes = sorted({drawing.class_name for drawing in drawings})
    rows = index_rows(drawings, assign_splits(classes, read_table("families.csv"), read_table("splits.csv")))
    write(drawings, rows, output)
    counts = {split: sum(row[INDEX_FIELDS.index("split")] == split for row in rows) for split in SPLITS}
    size = (output / ARCHIVE).stat().st_size / 1e6
    return f"{len(classes)} classes, {len(rows)} images {counts}, {size:.1f} MB in {output / ARCHIVE}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the emoji set that the package ships.")
    parser.add_argument("--packages", type=Path, required=True, help="folder that holds @iconify-json")
    parser.add_argument("--output", type=Path, required=True, help="folder for the archive and the index")
    options = parser.parse_args(arguments)
    try:
        print(build(options.packages, options.output))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
