"""Data sets of the library `datasets`, written here; nothing is asked of the hub."""

from __future__ import annotations

import csv
import pathlib
import pickle

import numpy as np
import pytest
import trees

from hap2s_jax.data import datasets, duplicates
from hap2s_jax.errors import UserError

library = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)


def image(seed):
    return trees.encoded(trees.picture(seed), "PNG")


def load(data_dir=None, **options):
    return datasets.load("hf", data_dir=data_dir, validation_fraction=0.0, **options)


def by_class(source):
    names = np.array(source.class_names)[source.labels]
    return sorted((name, source.read(n)) for n, name in enumerate(names))


def table(classes, start=0, count=3, **more):
    """Rows of `count` images a class, with the image inside."""
    rows = [(c, start + 10 * c + n) for c in classes for n in range(count)]
    pictures = [{"bytes": image(seed), "path": f"{seed}.png"} for _, seed in rows]
    return {"image": pictures, "label": [c for c, _ in rows], **{k: f(rows) for k, f in more.items()}}


def parquet(path, columns, names=None):
    """As the hub keeps it: with what `Image` and `ClassLabel` mean in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"image": library.Image()} | ({"label": library.ClassLabel(names=names)} if names else {})
    made = library.Dataset.from_dict(columns)
    for column, kind in kinds.items():
        made = made.cast_column(column, kind)
    made.to_parquet(path)


def test_a_folder_of_images_with_a_split(tmp_path):
    root = tmp_path / "photos"
    for part, classes in (("train", "ab"), ("test", "cd")):
        for c in classes:
            for n in range(2):
                trees.put(root / part / c / f"{n}.png", image(ord(c) + n))
    data = load(root)
    assert (data.train.class_names, data.test.class_names) == (("a", "b"), ("c", "d"))
    assert by_class(data.test) == sorted((c, image(ord(c) + n)) for c in "cd" for n in range(2))
    assert data.protocols == ("class",)
    assert data.train.describe(0).startswith(f"{root}/train/")


def test_parquet_with_the_image_inside_and_columns_by_our_rules(tmp_path):
    columns = table(range(6), camera=lambda rows: [f"cam {seed % 2}" for _, seed in rows])
    columns["bbox"] = [[0, 0, 4, 5]] * len(columns["label"])
    columns["who"] = columns.pop("label")
    parquet(tmp_path / "one.parquet", columns)
    with pytest.raises(UserError, match=r"needs the columns path and label, found image, camera, bbox, who"):
        load(tmp_path / "one.parquet")
    data = load(tmp_path / "one.parquet", columns="label=who,box=bbox", test_fraction=0.5)
    assert sorted([*data.train.class_names, *data.test.class_names]) == list("012345")
    assert data.train.boxes.tolist()[0] == [0, 0, 4, 5]
    assert {*data.test.cameras} == {0, 1}
    assert data.protocols == ("class", "query_gallery")
    assert len(data.train) == len(data.test) == 9
    held = columns["image"][[*map(str, columns["who"])].index(data.train.class_names[0])]["bytes"]
    assert data.train.read(0) == held


def test_classes_have_names_and_splits_are_chosen(tmp_path):
    names = [f"class {c}" for c in range(4)]
    for split in ("train", "validation", "extra"):
        parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet", table(range(4), count=2), names)
    with pytest.raises(UserError, match=r"needs a part named train, .*found images in train and validation"):
        load(tmp_path / "set")
    data = load(tmp_path / "set", splits="train=train,test=validation")
    assert data.train.class_names == tuple(names)
    assert data.protocols == ("closed_set",)
    anew = load(tmp_path / "set", splits="all=train+validation", test_fraction=0.5)
    assert len(anew.train) == len(anew.test) == 8
    assert not {*anew.train.class_names} & {*anew.test.class_names}
    with pytest.raises(UserError, match=r"data.options.splits: 'test=valid' should be all or one of"):
        load(tmp_path / "set", splits="train=train,test=valid")


def test_a_set_saved_to_disk_and_plain_bytes(tmp_path):
    plain = library.Dataset.from_dict(
        {"photo": [image(n) for n in range(8)], "label": [n // 2 for n in range(8)]}
    )
    plain.save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert sorted(pair[1] for pair in by_class(data.train) + by_class(data.test)) == sorted(
        map(image, range(8))
    )
    library.DatasetDict({"train": plain, "test": plain}).save_to_disk(tmp_path / "both")
    assert load(tmp_path / "both", split="closed").protocols == ("closed_set",)


def test_nothing_is_run_unpickled_or_looked_for_elsewhere(tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "burst",)

    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "train.pkl").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text(f"open({str(tmp_path / 'burst')!r}, 'w')")
    (tmp_path / "text").mkdir()
    with (tmp_path / "text" / "train.csv").open("w") as file:
        csv.writer(file).writerows([["path", "label"], ["a.png", "a"]])
    for folder, words in (
        ("pickled", "hf: "),
        ("script", "hf: cannot read "),
        ("text", "is csv; images are read"),
    ):
        with pytest.raises(UserError, match=words) as error:
            load(tmp_path / folder)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="must be OWNER/NAME of a data set of the hub, found 'pandas'"):
        load(path="pandas", data_dir=tmp_path / "pickled")
    assert not (tmp_path / "burst").exists()
    with pytest.raises(UserError, match=r"data\.data_dir: must name a folder of images or of parquet files"):
        load()
    with pytest.raises(UserError, match="hf: cannot read nobody/nothing: "):
        load(path="nobody/nothing")
    with monkeypatch.context() as older:
        older.setattr(library, "__version__", "3.6.0")
        with pytest.raises(UserError, match="needs datasets 4 or later"):
            load(tmp_path)


@pytest.mark.parametrize("inside", [True, False])
def test_images_that_stand_twice_are_found(tmp_path, inside):
    """In the file, or beside it in a folder of images."""
    root = tmp_path / "photos"
    pictures = {"train": {"a": [1, 2], "b": [3, 1]}, "test": {"c": [4, 2], "d": [5, 6]}}
    for part, classes in pictures.items():
        rows = [(c, seed) for c, seeds in classes.items() for seed in seeds]
        if inside:
            held = [{"bytes": image(seed), "path": None} for _, seed in rows]
            parquet(root / f"{part}.parquet", {"image": held, "label": [c for c, _ in rows]})
        for n, (c, seed) in enumerate([] if inside else rows):
            trees.put(root / part / c / f"{n}.png", image(seed))
    found = duplicates.find(load(root))
    assert found.compared
    assert [labels for _, labels in found.two_labels] == [["a", "b"], ["a", "c"]]
    assert [len(paths) for paths in found.shared] == [2]
    assert not duplicates.find(load(root), at_most_bytes=1).compared
