"""The command that says which data sets are there and whether they are whole."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import trees
from PIL import Image

from hap2s_jax import check_data
from hap2s_jax.data import datasets, inspection, registry
from hap2s_jax.errors import UserError


def test_all_sets_are_listed_with_where_they_are_or_could_be(tmp_path):
    trees.market(tmp_path / "market1501", people=1)
    text = "\n".join(check_data.list_all(str(tmp_path)))
    for name in registry.names():
        assert name in text
    assert f"market1501   found     Market-1501 in {tmp_path / 'market1501'}" in text
    assert "msmt17       not found" in text
    assert registry.entry("msmt17").url in text
    assert "get it from  (" not in text  # your own images are nowhere to get
    assert "--name=hf --data_dir=FOLDER, or --option=path=OWNER/NAME" in text


def test_a_set_is_counted_decoded_and_drawn(tmp_path, capsys):
    trees.market(tmp_path)
    reports = check_data.run("market1501", str(tmp_path), {}, True, str(tmp_path / "sheet.png"))
    out = capsys.readouterr().out
    assert "train: 10 images, 4 classes, 3 cameras" in out
    assert "1 classes with one image: 2" in out
    assert "height x width: smallest 32x16, median 32x16, largest 32x16" in out
    assert "4 queries, 15 gallery images" in out
    assert "train has 10 entries, the published number is 12,936" in out
    assert reports[0].unreadable == []
    assert Image.open(tmp_path / "sheet.png").width > 300


def test_unreadable_images_are_named_and_end_with_an_error(tmp_path, capsys):
    root = trees.class_folders(tmp_path / "mine")
    broken = root / "Klasse 1 æøå" / "bild 2 ñ.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match="1 images cannot be read"):
        check_data.run("folder", str(root), {}, True, None)
    assert f"1 images that cannot be read: {broken}" in capsys.readouterr().out
    check_data.run("folder", str(root), {}, False, None)  # without decoding, its file looks whole


def test_images_that_lose_more_than_half_to_the_centre_crop_are_counted_and_drawn_as_they_are_seen(
    tmp_path, capsys
):
    root = tmp_path / "mine"
    for n in range(8):
        trees.put(root / str(n // 2) / f"{n}.png", trees.encoded(trees.picture(n, 40, 40), "PNG"))
    wide = root / "1" / "wide.png"
    stripes = np.zeros((40, 200, 3), np.uint8)
    stripes[:, 80:120] = 255  # all that a square in the middle sees
    trees.put(wide, trees.encoded(stripes, "PNG"))
    check_data.run("folder", str(root), {}, True, None)
    out = capsys.readouterr().out
    assert "1 images that lose more than half to the centre crop: " in out
    assert str(wide) in out
    dataset = datasets.load("folder", data_dir=root, validation_fraction=0.0)
    for source in (dataset.train, dataset.test):
        for n in range(len(source)):
            if source.describe(n) == str(wide):
                assert (inspection.View().image(source, n) == 255).all()
                return
    raise AssertionError("the image is in neither part")


def test_people_seen_by_one_camera_and_queries_without_an_answer(tmp_path, capsys):
    trees.market(tmp_path)
    for path in (tmp_path / "bounding_box_test").glob("0003_c[2-9]*"):
        path.unlink()
    for path in (tmp_path / "bounding_box_test").glob("0003_c12*"):
        path.unlink()
    check_data.run("market1501", str(tmp_path), {}, False, None)
    out = capsys.readouterr().out
    assert "1 classes seen by one camera: 3" in out
    assert re.search("query_gallery: 1 of . queries have no valid match and are left out: 1 have", out)


def test_options_take_the_type_of_their_defaults():
    options = registry.parse_options(
        ["detection=labeled", "split=3"], registry.entry("cuhk03").options
    ) | registry.parse_options(["with_val=true"], registry.entry("msmt17").options)
    assert options == {"detection": "labeled", "split": 3, "with_val": True}
    with pytest.raises(UserError, match="--option: expected split=INT, found 'split=x'"):
        registry.parse_options(["split=x"], registry.entry("cuhk03").options)


@pytest.mark.slow
def test_the_command_ends_with_one_line_where_there_is_nothing(tmp_path):
    command = [sys.executable, "-m", "hap2s_jax.check_data", "--name=sop", f"--data_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Stanford Online Products was not found below")
    assert done.stderr.count("\n") == 1
