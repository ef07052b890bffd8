"""Images that are not there: how few are too few, and who says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trees

from hap2s_jax import check_data
from hap2s_jax.data import datasets, presence
from hap2s_jax.data.readers.files import FileSource
from hap2s_jax.data.source import Subset
from hap2s_jax.errors import UserError


@pytest.fixture
def source(tmp_path):
    """Three classes of two images, in files."""
    paths = [f"{c}/{n}.jpg" for c in "abc" for n in range(2)]
    for path in paths:
        trees.put(tmp_path / path)
    return FileSource("own test", tmp_path, paths, [path[0] for path in paths])


def lose(source, *rows):
    for row in rows:
        path = Path(source.describe(row))
        path.write_bytes(b"") if row % 2 else path.unlink()


@pytest.mark.parametrize(
    ("lost", "query", "gallery", "says"),
    [
        (
            range(6),
            None,
            None,
            "none of the 6 own test images can be read, such as .*a/0.jpg; check the paths",
        ),
        ((0, 1), [0, 1], [2, 3, 4, 5], "none of the 2 own test queries can be read, such as .*a/0.jpg"),
        (
            (2, 3),
            [0, 1, 4, 5],
            [2, 3],
            "none of the 2 own test gallery images can be read, such as .*b/0.jpg",
        ),
        ((0, 1, 4, 5), None, None, "of the 3 classes of own test only b has images .* such as .*a/0.jpg"),
        ((0, 1, 2, 4), None, None, None),
        ((1, 2), [0, 1], [2, 3, 4, 5], None),
    ],
)
def test_too_few_are_refused_by_their_files_and_by_what_was_read(lost, query, gallery, says, source):
    rows = [None if r is None else np.array(r) for r in (query, gallery)]
    presence.check(source, *rows)
    lose(source, *lost)
    seen = np.isin(np.arange(6), lost, invert=True)
    for asked in (None, seen.__getitem__):
        for these in (source, Subset(source, np.arange(6))):
            if says is None:
                presence.check(these, *rows, can_read=asked)
                continue
            with pytest.raises(UserError, match=says):
                presence.check(these, *rows, can_read=asked)


def test_one_class_is_enough_where_there_never_were_two(source):
    lose(source, 1)
    presence.check(Subset(source, [0, 1]))


@pytest.mark.parametrize(
    ("part", "verdict"),
    [
        ("both", "this cannot be trained on: none of the 12 own train images can be read"),
        ("train", "this cannot be trained on: none of the 12 own train images can be read"),
        (
            "test",
            "this cannot be trained on: of the 4 classes of own test only linked has images that can be read",
        ),
        ("one", "this can be trained on, but first check"),
    ],
)
@pytest.mark.parametrize("decode", [False, True])
def test_files_that_are_missing_or_empty_are_found_without_decoding(decode, part, verdict, tmp_path, capsys):
    root = trees.class_folders(tmp_path / "mine")
    dataset = datasets.load("folder", data_dir=str(root), validation_fraction=0.0)
    lines = ["path,label,split"]
    for name in ("train", "test"):
        source = getattr(dataset, name)
        lines += [
            f"{p},{source.class_names[c]},{name}" for p, c in zip(source.paths, source.labels, strict=True)
        ]
        lose(source, *{"one": [1], name: range(12), "both": range(12)}.get(part, ()))
    (root / "all.csv").write_text("\n".join(lines))
    with pytest.raises(
        UserError, match=r"images cannot be read; fix or remove them(, or train with)?"
    ) as error:
        check_data.run("folder", str(root / "all.csv"), {}, decode, None)
    assert ("on_unreadable=skip" in str(error.value)) == (part == "one")
    out = capsys.readouterr().out
    assert "under more than one label" not in out  # empty files are no images
    assert f"verdict: {verdict}" in out
    assert "(the file is empty)" in out
    assert ("hap2s_jax.main" in out) == (part == "one")
