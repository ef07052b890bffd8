"""Readers on generated trees in the official layouts, with the traps in."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil

import numpy as np
import pytest
import trees

from hap2s_jax.data import datasets, registry
from hap2s_jax.data.readers import cuhk03, own, person, retrieval
from hap2s_jax.data.readers.files import FileSource, list_images, number_identities
from hap2s_jax.data.splits import split_by_class, validation_classes
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation import evaluate
from hap2s_jax.serving import listing


def is_sound(parts):
    """What every reader promises; all images are there and decode."""
    for source in (parts.train, parts.test):
        labels = source.labels
        assert labels.dtype == np.int32
        assert set(labels) == set(range(len(source.class_names)))
        assert all(trees.Image.open(trees.io.BytesIO(source.read(i))).size for i in range(len(source)))
        assert os.path.sep in source.describe(0)
    if parts.query is not None:
        assert sorted([*parts.query, *parts.gallery]) == list(range(len(parts.test)))


def test_market_with_its_traps(tmp_path):
    parts = person.read_market1501(trees.market(tmp_path))
    is_sound(parts)
    # Sorted by number: 2, 4, 6, 8; the first person has a single image.
    assert parts.train.class_names == ("2", "4", "6", "8")
    assert np.bincount(parts.train.labels).tolist() == [1, 3, 3, 3]
    assert parts.test.class_names == ("0", "3", "5", "7", "9")
    assert len(parts.query) == 4
    gallery = parts.test.labels[parts.gallery]
    assert np.sum(gallery == 0) == 3  # the distractors, which no query matches; both junk images are gone
    assert 0 not in parts.test.labels[parts.query]
    assert len(gallery) == 3 + 12
    assert set(parts.train.cameras) == {0, 1, 11}
    assert set(parts.test.cameras[parts.query]) == {0}


def test_market_multi_query_pools_the_hand_drawn_boxes_of_the_queries(tmp_path):
    root = trees.market(tmp_path)
    with pytest.raises(UserError, match=r"data.options.multi_query: needs .*gt_bbox/, which the full"):
        person.read_market1501(root, multi_query=True)
    for person_number in (2, 3, 5, 7, 9):  # 2 is a training identity
        for camera in (1, 2):  # no query is of camera 2
            for number in range(2):
                trees.put(root / "gt_bbox" / f"{person_number:04d}_c{camera}s1_00000{number}_00.jpg")
    parts = person.read_market1501(root, multi_query=True)
    assert parts.protocols == ("query_gallery", "multi_query")
    assert len(parts.views) == 4 * 2
    assert not set(parts.views) & {*parts.query, *parts.gallery}
    assert sorted([*parts.query, *parts.gallery, *parts.views]) == list(range(len(parts.test)))
    assert all("gt_bbox" in parts.test.describe(i) for i in parts.views)
    of_query = set(zip(parts.test.labels[parts.query], parts.test.cameras[parts.query], strict=True))
    assert set(zip(parts.test.labels[parts.views], parts.test.cameras[parts.views], strict=True)) == of_query
    # What is judged is the same as without.
    plain = person.read_market1501(root)
    assert (len(plain.query), len(plain.gallery), plain.views) == (len(parts.query), len(parts.gallery), None)
    figures = evaluate(
        np.eye(10)[parts.test.labels],
        parts.test.labels,
        parts.test.cameras,
        query=parts.query,
        gallery=parts.gallery,
        views=parts.views,
        protocols=parts.protocols,
        ranks=(1,),
    )
    assert figures["multi_query_mAP"] == figures["mAP"] == 1
    for path in (root / "gt_bbox").glob("0005_c1*"):
        path.unlink()
    with pytest.raises(UserError, match="gt_bbox: has no image of person 5 by camera 1, whom a query shows"):
        person.read_market1501(root, multi_query=True)


def test_market_without_a_usable_name_says_what_it_wants(tmp_path):
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        trees.put(tmp_path / folder / "image.jpg")
    with pytest.raises(UserError, match="bounding_box_train: no image is named like 0002_c1s1"):
        person.read_market1501(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_msmt17(tmp_path, version):
    root = trees.msmt17(tmp_path, version)
    parts = person.read_msmt17(root)
    is_sound(parts)
    assert (len(parts.train), len(parts.query), len(parts.gallery)) == (6, 3, 6)
    assert parts.train.class_names == ("0", "1", "2")  # 0 is a person here
    assert set(parts.test.cameras) == {0, 8, 14}
    assert len(person.read_msmt17(root, with_val=True).train) == 9


def test_a_malformed_list_is_named(tmp_path):
    root = trees.msmt17(tmp_path)
    (root / "list_query.txt").write_text("0000/image.jpg 0\n")
    with pytest.raises(UserError, match=r"list_query.txt: expected .* found '0000/image.jpg 0'"):
        person.read_msmt17(root)


def test_cuhk03_new_protocol_from_the_mat_files(tmp_path):
    root = trees.cuhk03_mat(tmp_path / "cuhk03_release")
    parts = cuhk03.read_cuhk03(root)
    is_sound(parts)
    assert parts.train.class_names == ("1", "3", "101")
    assert len(parts.train) == 9 + 10 + 10
    assert parts.test.class_names == ("2", "4", "102")
    assert len(parts.query) == 6
    assert set(parts.test.cameras) == {0, 1, 2, 3}
    # The pixels survive: person 3 of pair 1, cell 1, is the tenth training image.
    image = np.asarray(trees.Image.open(trees.io.BytesIO(parts.train.read(9))))
    np.testing.assert_array_equal(image, trees.picture(20, 22, 11))
    assert parts.train.describe(9).endswith("cuhk-03.mat:detected{1}{3,1}")
    # Other toolboxes want the new protocol's files one folder higher.
    for path in root.glob("cuhk03_new_protocol_config_*.mat"):
        path.rename(root.parent / path.name)
    assert len(cuhk03.read_cuhk03(root).train) == 9 + 10 + 10
    (root.parent / "cuhk03_new_protocol_config_detected.mat").unlink()
    with pytest.raises(UserError, match="the new protocol needs "):
        cuhk03.read_cuhk03(root)


def test_cuhk03_old_protocol(tmp_path):
    root = trees.cuhk03_mat(tmp_path)
    parts = cuhk03.read_cuhk03(root, protocol="old", detection="labeled", split=1)
    is_sound(parts)
    assert parts.test.class_names == ("1_0002", "2_0001")
    assert len(parts.train.class_names) == 4
    assert len(parts.query) == len(parts.gallery) == 10
    assert set(parts.test.cameras[parts.query]) == {0, 2}
    assert set(parts.test.cameras[parts.gallery]) == {1, 3}
    assert parts.protocols == ("query_gallery", "single_gallery_shot")
    with pytest.raises(UserError, match=r"data.options.split: must lie in 0..1"):
        cuhk03.read_cuhk03(root, protocol="old", split=2)
    entry = registry.entry("cuhk03")
    assert registry.count_warnings(entry, parts) == []  # those that are published are of the new one
    assert registry.count_warnings(entry, dataclasses.replace(parts, is_usual=True))


def test_cuhk03_from_ready_folders(tmp_path):
    for number, detection in enumerate(("labeled", "detected")):
        trees.market(tmp_path / detection, people=3 + number)
    assert len(cuhk03.read_cuhk03(tmp_path).train.class_names) == 4
    assert len(cuhk03.read_cuhk03(tmp_path, detection="labeled").train.class_names) == 3
    with pytest.raises(UserError, match="the old protocol needs"):
        cuhk03.read_cuhk03(tmp_path, protocol="old")
    with pytest.raises(UserError, match=r"data\.options\.detection: must be one of labeled, detected"):
        cuhk03.read_cuhk03(tmp_path, detection="both")


@pytest.mark.parametrize("beside", ["mat", "json"])
def test_cuhk03_from_images_taken_out(tmp_path, beside):
    root = trees.cuhk03_images(tmp_path)
    expected = {p: cuhk03.read_cuhk03(root / "cuhk03_release", protocol=p) for p in cuhk03.PROTOCOLS}
    mat = root / "cuhk03_release" / "cuhk03_new_protocol_config_detected.mat"
    if beside == "mat":
        mat.rename(root / mat.name)
        (root / "splits_new_detected.json").unlink()
    shutil.rmtree(root / "cuhk03_release")
    assert registry.entry("cuhk03").find([tmp_path.parent, tmp_path]) == tmp_path
    for protocol, wanted in expected.items():
        parts = cuhk03.read_cuhk03(root, protocol=protocol)
        is_sound(parts)
        for found, old in ((parts.train, wanted.train), (parts.test, wanted.test)):
            assert found.labels.tolist() == old.labels.tolist()
            assert found.cameras.tolist() == old.cameras.tolist()
        assert parts.query.tolist() == wanted.query.tolist()
        assert parts.protocols == wanted.protocols
    with pytest.raises(UserError, match=r"needs .*cuhk-03.mat .* or its images in .*images_labeled"):
        cuhk03.read_cuhk03(root, detection="labeled")
    with pytest.raises(UserError, match=r"split: must lie in 0..1, found 2"):
        cuhk03.read_cuhk03(root, protocol="old", split=2)
    (root / "images_detected" / "1_003_1_02.png").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of the 29 train images, such as 1_003_1_02.png"):
        cuhk03.read_cuhk03(root)
    for path in root.glob("splits_*"):
        path.write_text("{}")
    with pytest.raises(UserError, match=r"splits_classic_detected\.json: is not a list of splits"):
        cuhk03.read_cuhk03(root, protocol="old")


def test_veri776(tmp_path):
    for folder, people in (("image_train", (1, 2)), ("image_query", (3,)), ("image_test", (3, 4))):
        for person_number in people:
            for camera in (1, 20) if folder != "image_query" else (20,):
                trees.put(
                    tmp_path / folder / f"{person_number:04d}_c{camera:03d}_00016450_0.jpg", seed=camera
                )
    parts = registry.read_parts(registry.entry("VeRi"), registry.entry("veri").find([tmp_path]), {})
    is_sound(parts)
    assert (len(parts.train), len(parts.query), len(parts.gallery)) == (4, 1, 4)
    assert set(parts.test.cameras) == {0, 19}
    assert parts.remarks == ()


def test_own_images_in_market_s_layout_and_names_that_say_nothing(tmp_path):
    trees.market(tmp_path)
    for path in [*tmp_path.rglob("*_c*.[jJ]*")]:
        if path.is_file():  # cameras from 0
            path.rename(path.with_name(re.sub(r"_c(\d+)", lambda m: f"_c{int(m[1]) - 1}", path.name)))
    strange = ("0004.jpg", "anna_c1.jpg", "--3_c1.jpg", "0002_c99999999999.jpg", "7_c.jpg")
    for name in strange:
        trees.put(tmp_path / "bounding_box_train" / name)
    data = datasets.load("folder", data_dir=tmp_path, validation_fraction=0.0)
    plain = person.read_market1501(trees.market(tmp_path.parent / "plain"))
    assert data.train.labels.tolist() == plain.train.labels.tolist()
    assert {*data.train.cameras} == {*plain.train.cameras}
    assert data.protocols == ("class", "query_gallery")
    assert data.remarks[0].startswith(
        "5 images are not named IDENTITY_cCAMERA, as in 0002_c1s1_000451_03.jpg"
    )
    assert "such as bounding_box_train/--3_c1.jpg" in data.remarks[0]
    # Of one camera alone: judged without the camera rule, and said so.
    for path in tmp_path.rglob("*_c*.jpg"):
        if not re.search(r"_c0\D", path.name) and path.is_file():
            path.unlink()
    for path in tmp_path.rglob("*.JPG"):
        path.rename(path.with_name(path.name.replace("_c11", "_c0")))
    alone = datasets.load("market_layout", data_dir=tmp_path, validation_fraction=0.0)
    assert alone.test.cameras is None
    assert any("all test images are of one camera" in line for line in alone.remarks)


def test_cub_is_split_by_class(tmp_path):
    root = trees.cub(tmp_path)
    parts = retrieval.read_cub(root)
    is_sound(parts)
    assert parts.train.class_names == ("1", "2", "3")
    assert parts.test.class_names == ("4", "5", "6")
    assert parts.train.boxes is None
    boxes = retrieval.read_cub(root, boxes=True).test.boxes
    assert boxes[2].tolist() == [5, 10, 27, 35]
    (root / "image_class_labels.txt").write_text("1 1\n")
    with pytest.raises(UserError, match="do not name the same images"):
        retrieval.read_cub(root)


@pytest.mark.parametrize("old", [True, False])
def test_cars_in_both_releases(tmp_path, old):
    root = trees.cars(tmp_path, old)
    parts = retrieval.read_cars(root, boxes=True)
    is_sound(parts)
    assert parts.train.class_names == ("1", "2")
    assert (len(parts.train), len(parts.test)) == (4, 4)
    assert parts.test.boxes[0].tolist() == [2, 4, 12, 30]


def test_cars_as_kaggle_nests_them(tmp_path):
    root = trees.cars(tmp_path, old=False)
    expected = retrieval.read_cars(root)
    for folder in ("cars_train", "cars_test"):
        (root / folder).rename(root / "aside")
        (root / folder).mkdir()
        (root / "aside").rename(root / folder / folder)
    (root / "car_devkit").mkdir()
    (root / "devkit").rename(root / "car_devkit" / "devkit")
    parts = retrieval.read_cars(registry.entry("cars196").find([root]))
    is_sound(parts)
    assert parts.train.labels.tolist() == expected.train.labels.tolist()
    assert parts.train.read(0) == (root / "cars_train" / parts.train.paths[0].split("/", 1)[1]).read_bytes()


def test_cars_without_test_labels_says_where_they_are(tmp_path):
    with pytest.raises(UserError, match=r"cars_test_annos_withlabels\.mat"):
        retrieval.read_cars(trees.cars(tmp_path, old=False, with_labels=False))


def test_sop_sorts_its_classes_by_number(tmp_path):
    parts = retrieval.read_sop(trees.sop(tmp_path))
    is_sound(parts)
    assert parts.train.class_names == ("1", "2", "10")
    assert parts.test.class_names == ("11", "12", "13")
    assert parts.query is None


@pytest.mark.parametrize("nested", [False, True])
def test_inshop(tmp_path, nested):
    parts = retrieval.read_inshop(trees.inshop(tmp_path, nested))
    is_sound(parts)
    assert parts.train.class_names == ("id_00000001", "id_00000003", "id_00000005")
    assert (len(parts.query), len(parts.gallery)) == (3, 6)
    assert parts.test.cameras is None


def test_class_folders_with_their_traps(tmp_path):
    root = trees.class_folders(tmp_path / "own images")
    parts = own.read_folder(root, test_fraction=0.5, seed=1)
    is_sound(parts)
    classes = {*parts.train.class_names, *parts.test.class_names}
    assert classes == {*(f"Klasse {c} æøå" for c in range(6)), "linked"}
    assert len(parts.train) + len(parts.test) == 7 * 4
    assert not set(parts.train.class_names) & set(parts.test.class_names)
    assert own.read_folder(root, seed=1).train.paths == parts.train.paths
    assert own.read_folder(root, seed=2).train.class_names != parts.train.class_names


def test_images_at_any_depth_and_in_no_class(tmp_path):
    root = trees.class_folders(tmp_path / "own")
    before = own.read_folder(root, seed=1)
    image = root / before.train.paths[0]
    (image.parent / "2024" / "may").mkdir(parents=True)
    shutil.copy(image, image.parent / "2024" / "may")
    shutil.copy(image, root / "loose.png")
    parts = own.read_folder(root, seed=1)
    assert len(parts.train) == len(before.train) + 1
    added = next(n for n, path in enumerate(parts.train.paths) if "2024" in path)
    assert parts.train.class_names[parts.train.labels[added]] == image.parent.name
    assert parts.remarks == ("1 images are in no folder of a class and are left out, such as loose.png",)
    assert before.remarks == ()


def test_class_folders_with_a_split(tmp_path):
    for part in ("train", "Val", "query", "gallery"):
        trees.class_folders(tmp_path / part, classes=2)
        shutil.rmtree(tmp_path / "elsewhere")
    parts = own.read_folder(tmp_path)
    assert (len(parts.train), len(parts.validation), len(parts.query), len(parts.gallery)) == (8, 8, 8, 8)
    assert len(parts.test.class_names) == 2
    dead, *_ = parts.remarks  # the links to what is elsewhere
    assert dead.startswith(
        "4 links lead nowhere, and what they should lead to is left out, such as Val/linked"
    )


def test_what_lies_beside_a_split_and_links_that_lead_nowhere_are_counted(tmp_path):
    for part in ("Train", "TEST", "extra", "2024 new", "val", "validation"):
        for number in range(8):
            trees.put(tmp_path / part / f"c{number // 2}" / f"{number}.jpg")
    (tmp_path / "notes").mkdir()  # without images
    trees.put(tmp_path / "loose.jpg")
    (tmp_path / "Train" / "ECL").symlink_to("/media/usb/ECL")
    (tmp_path / "TEST" / "c0" / "x.jpg").symlink_to("/media/usb/x.jpg")
    (tmp_path / "round").symlink_to("round")
    parts = own.read_folder(tmp_path)
    assert (len(parts.train), len(parts.validation), len(parts.query)) == (8, 8, 8)
    assert parts.remarks[0].startswith("3 links lead nowhere")
    assert parts.remarks[1] == (
        "24 images are in folders beside the split (TEST, Train, validation) and are left out: 2024 new, extra, val"
    )
    assert parts.remarks[2] == "1 images are in no folder of a class and are left out, such as loose.jpg"
    # Embedding tells them from files of other kinds.
    told = listing.list_images(tmp_path).remarks
    assert told[0] == parts.remarks[0]
    assert told[1].startswith("TEST and Train and validation in ")
    assert not any("of kinds that cannot be read" in line for line in told)


def test_links_that_lead_nowhere_and_folders_within_are_counted_in_markets_layout_too(tmp_path):
    trees.market(tmp_path)
    (tmp_path / person.TRAIN / "0002_c1s1_000001_00.jpg").symlink_to("/media/usb/x.jpg")
    trees.put(tmp_path / person.QUERY / "more" / "0003_c1s1_000001_00.jpg")
    before = len(person.read_market1501(trees.market(tmp_path / "same")).train)
    parts = own.read_folder(tmp_path)
    assert len(parts.train) == before
    told = "\n".join(parts.remarks)
    assert (
        f"1 links lead nowhere, and what they should lead to is left out, such as {person.TRAIN}/0002" in told
    )
    assert f"such as {person.QUERY}/more/0003_c1s1_000001_00.jpg" in told


def test_too_few_classes_and_no_images_are_named(tmp_path):
    with pytest.raises(UserError, match="found no image in a folder of its own class"):
        own.read_folder(tmp_path)
    trees.put(tmp_path / "$RECYCLE.BIN" / "1.jpg")
    trees.put(tmp_path / "may" / "a" / "1.jpg")
    with pytest.raises(
        UserError, match=r"found 1 images such as may/a/1.jpg: is .*/may the folder of classes\?"
    ):
        own.read_folder(tmp_path)
    trees.put(tmp_path / "loose.jpg")
    with pytest.raises(
        UserError, match=r"such as loose\.jpg: move them, or name each image's class in a CSV"
    ):
        own.read_folder(tmp_path)
    shutil.rmtree(tmp_path / "may")
    trees.put(tmp_path / "a" / "1.jpg")
    with pytest.raises(UserError, match="of the 1 classes"):
        own.read_folder(tmp_path)


def test_csv_with_everything(tmp_path):
    for n in range(8):
        trees.put(tmp_path / "bilder ø" / f"{n}.jpg", seed=n)
    rows = ["\ufeffPath,label,split,camera,x1,y1,x2,y2"]
    parts = ("train", "train", "train", "train", "query", "gallery", "gallery", "query")
    rows += [f"bilder ø/{n}.jpg,klasse {n // 2},{part},{n % 3},1,2,10,20.4" for n, part in enumerate(parts)]
    (tmp_path / "my.csv").write_text("\n".join(rows), encoding="utf-8")
    found = own.read_folder(tmp_path / "my.csv")
    is_sound(found)
    assert found.train.class_names == ("klasse 0", "klasse 1")
    assert found.test.cameras.tolist() == [1, 1, 2, 0]
    assert found.query.tolist() == [0, 1]
    assert found.train.boxes[0].tolist() == [1, 2, 10, 20]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b\n", "needs the columns path and label, found file, label"),
        ("path,label\n", "has no rows"),
        ("path,label\n" + "x" * 200_000, "is no CSV file"),
        ("path,label,split\na.jpg,1,all\n", "line 2: split must be one of"),
        ("path,label,split\na.jpg,1,tset\n", "line 2: split must be one of"),
        ("path,label,x1,y1,x2,y2\na.jpg,1,0,0,inf,9\n", "line 2: the box .* must be four numbers"),
        ("path,label\n,mug\n", "line 2: path must not be empty"),
        ("path,label\na.jpg,\n", "1 images are of an unknown individual .no label. and are left out"),
        ("path,path,label\na.jpg,b.jpg,mug\n", "has 2 columns 'path'; give them different names"),
        ("path,label,split\na.jpg,1,train\n", "needs a part named train"),
    ],
)
def test_a_malformed_csv_is_named(tmp_path, text, message):
    (tmp_path / "my.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        own.read_folder(tmp_path / "my.csv")


def test_listings_do_not_depend_on_the_file_system(tmp_path, monkeypatch):
    root = trees.market(tmp_path)
    before = person.read_market1501(root)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    after = person.read_market1501(root)
    assert before.test.paths == after.test.paths
    np.testing.assert_array_equal(before.train.labels, after.train.labels)
    assert "Thumbs.db" not in list_images(root / "query")


def test_numbers_sort_by_value_and_names_by_letters():
    labels, names = number_identities([10, 9, 100, 9])
    assert labels.tolist() == [1, 0, 2, 0]
    assert names == ("9", "10", "100")
    assert number_identities(["b9", "b10"])[1] == ("b10", "b9")
    assert number_identities([])[1] == ()
    with pytest.raises(ValueError, match="cameras: must be one per path"):
        FileSource("x", ".", ["a"], [1], [1, 2])


@pytest.mark.parametrize(
    "place",
    [
        "market1501/Market-1501-v15.09.15",
        "Market-1501-v15.09.15",
        "market1501",
        "Market-1501-v15.09.15/Market-1501-v15.09.15",
        ".",
    ],
)
def test_the_roots_that_people_have(tmp_path, place):
    trees.market(tmp_path / place, people=1)
    assert registry.entry("Market").find([tmp_path / "nothing", tmp_path]) == tmp_path / place


def test_every_set_is_found_by_its_markers(tmp_path):
    made = {
        "cub": trees.cub(tmp_path / "CUB_200_2011"),
        "cars196": trees.cars(tmp_path / "cars196"),
        "sop": trees.sop(tmp_path / "Stanford_Online_Products"),
        "inshop": trees.inshop(tmp_path / "inshop", nested=True),
        "market1501": trees.market(tmp_path / "Market-1501-v15.09.15"),
        "dukemtmc": trees.market(tmp_path / "DukeMTMC-reID"),
        "cuhk03": trees.cuhk03_mat(tmp_path / "cuhk03_release"),
        "msmt17": trees.msmt17(tmp_path / "MSMT17_V1"),
    }
    for name, root in made.items():
        entry = registry.entry(name)
        found = entry.find([tmp_path])
        assert found == root
        parts = registry.read_parts(entry, found, {})
        is_sound(parts)
        assert registry.count_warnings(entry, parts)  # these trees are far too small


def test_counts_that_are_right_are_silent(tmp_path):
    entry = registry.Entry(
        "x", "X", "", "", person.read_market1501, counts={"train": (10, 11), "query": 4, "classes": 4}
    )
    assert registry.count_warnings(entry, person.read_market1501(trees.market(tmp_path))) == []


def test_unknown_names_and_options_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'market1501'"):
        registry.entry("market1502")
    entry = registry.entry("cuhk03")
    with pytest.raises(
        UserError, match="option of the data set cuhk03 'detections'; did you mean 'detection'"
    ):
        registry.read_parts(entry, trees.cuhk03_mat(tmp_path), {"detections": "labeled"})


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"sop: cannot read .*Ebay_train.txt: No such file"):
        registry.read_parts(registry.entry("sop"), tmp_path, {})


def test_validation_classes_come_out_of_the_training_classes(tmp_path):
    parts = own.read_folder(trees.class_folders(tmp_path / "x", classes=19), test_fraction=0.5)
    train, validation = split_by_class(parts.train, 0.3, seed=4)
    assert len(validation.class_names) == 3
    assert sorted(train.class_names + validation.class_names) == sorted(parts.train.class_names)
    assert set(train.labels) == set(range(7))
    again, _ = split_by_class(parts.train, 0.3, seed=4)
    assert again.class_names == train.class_names
    assert split_by_class(parts.train, 0.0, seed=4) == (parts.train, None)
    assert validation_classes(100, 0.1, 0).tolist() != validation_classes(100, 0.1, 1).tolist()


@pytest.mark.parametrize(
    ("fraction", "message"), [(1.0, "must lie in"), (-0.1, "must lie in"), (0.9, "leaves 0")]
)
def test_validation_fractions_out_of_range_are_refused(fraction, message):
    with pytest.raises(UserError, match=f"validation_fraction: .*{message}"):
        validation_classes(4, fraction, 0)
