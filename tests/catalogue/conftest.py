"""A store of drawn individuals."""

from __future__ import annotations

import shutil

import pytest
from pixel_encoder import PixelEncoder, draw

from hap2s_jax.catalogue import adding
from hap2s_jax.catalogue.store import Store

pytest.importorskip("lancedb")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Four pictures of each of twelve individuals: VIEW/INDIVIDUAL.png, without labels in the folders' names."""
    root = tmp_path_factory.mktemp("pictures")
    for individual in range(12):
        for view in range(4):
            draw(root / f"{view}-{individual:02d}.png", individual, view)
    return root


@pytest.fixture(scope="session")
def csv_file(pictures, tmp_path_factory):
    """The first view of eight individuals with labels, and all else without; camera, time and a column of their own."""
    lines = ["path,label,camera,time,weight"]
    for view in range(4):
        for individual in range(12):
            label = f"animal {individual}" if view == 0 and individual < 8 else ""
            camera, time = ("north", "south")[individual % 2], f"2026-05-{1 + view:02d}"
            lines.append(f"{pictures}/{view}-{individual:02d}.png,{label},{camera},{time},{individual * 10}")
    file = tmp_path_factory.mktemp("csv") / "photos.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="session")
def enrolled(csv_file, tmp_path_factory):
    """A store of these pictures, to be copied."""
    folder = tmp_path_factory.mktemp("enrolled")
    encoder, made = PixelEncoder(folder), folder / "store"
    assert adding.add(Store.create(made, encoder), csv_file, encoder, show_progress=False) == (48, 0, [])
    return made


@pytest.fixture
def store(enrolled, tmp_path):
    return Store(shutil.copytree(enrolled, tmp_path / "store"))


@pytest.fixture
def encoder(enrolled):
    return PixelEncoder(enrolled.parent)
