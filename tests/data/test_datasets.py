"""Data sets by name: from folders, from TFDS data in either format, and what is said where there is nothing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
import trees
from etils import epath

from hap2s_jax.data import datasets, packed
from hap2s_jax.data.pixels import decode_whole
from hap2s_jax.data.tf import tfds_source
from hap2s_jax.data.tf.quiet import tf
from hap2s_jax.errors import UserError


def test_a_folder_is_found_split_and_counted(tmp_path):
    trees.cub(tmp_path / "CUB_200_2011", classes=12)
    data = datasets.load("cub", data_dir=tmp_path, validation_fraction=0.34, seed=1)
    assert "train has 18 entries, the published number is 5,864" in "\n".join(data.remarks)
    assert data.name == "cub200_2011"
    assert (len(data.train.class_names), len(data.validation.class_names), len(data.test.class_names)) == (
        4,
        2,
        6,
    )
    assert not set(data.train.class_names) & set(data.validation.class_names)
    assert data.protocols == ("class",)
    assert (
        datasets.load("cub", data_dir=tmp_path / "CUB_200_2011", validation_fraction=0.0).validation is None
    )


def test_market_has_queries_and_cameras(tmp_path):
    trees.market(tmp_path / "market1501", people=8)
    data = datasets.load("market1501", data_dir=tmp_path, validation_fraction=0.25)
    assert data.protocols == ("query_gallery",)
    assert data.validation.cameras is not None
    assert len(data.query) == 8


def test_the_options_reach_the_reader(tmp_path):
    trees.cub(tmp_path)
    assert datasets.load("cub", data_dir=tmp_path, validation_fraction=0, boxes=True).train.boxes is not None
    with pytest.raises(UserError, match="option of the data set cub200_2011 'box'; did you mean 'boxes'"):
        datasets.load("cub", data_dir=tmp_path, box=True)


def test_own_images_by_folder_and_by_csv(tmp_path):
    root = trees.class_folders(tmp_path / "mine", classes=9)
    data = datasets.load("folder", data_dir=root, validation_fraction=0.4)
    assert len(data.train.class_names) + len(data.validation.class_names) + len(data.test.class_names) == 10
    for seed in (1, 2):
        other = datasets.load("folder", data_dir=root, validation_fraction=0.4, seed=seed)
        assert (
            other.test.class_names == data.test.class_names
        )  # or runs of several seeds could not be compared
    (tmp_path / "mine.csv").write_text(
        "path,label,split\n"
        + "".join(f"a{i}.jpg,{i // 2},{'train' if i < 8 else 'test'}\n" for i in range(12))
    )
    data = datasets.load("csv", data_dir=tmp_path / "mine.csv", validation_fraction=0)
    assert (len(data.train), len(data.test)) == (8, 4)
    assert data.protocols == ("class",)
    rows = "".join(
        f"b{i}.jpg,{i % 2},{part}\n" for i, part in enumerate(("query", "query", "gallery", "gallery"))
    )
    (tmp_path / "asked.csv").write_text("path,label,split\na0.jpg,8,train\na1.jpg,9,train\n" + rows)
    asked = datasets.load("folder", data_dir=tmp_path / "asked.csv", validation_fraction=0)
    assert asked.protocols == ("class", "query_gallery")
    assert asked.query.tolist() == [0, 1]
    for cameras, protocols in ((2, ("class", "query_gallery")), (1, ("class",))):
        rows = "".join(f"c{i}.jpg,{i // 4},{i % cameras}\n" for i in range(16))
        (tmp_path / "seen.csv").write_text("path,label,camera\n" + rows)
        seen = datasets.load("folder", data_dir=tmp_path / "seen.csv", validation_fraction=0)
        assert (seen.query, seen.protocols) == (None, protocols)
    with pytest.raises(UserError, match=r"data\.data_dir: must name a folder"):
        datasets.load("folder", data_dir=tmp_path / "nowhere")


def test_test_classes_that_training_sees_are_told(tmp_path):
    rows = "".join(f"{c}{i}.jpg,{c},{'train' if i < 2 else 'test'}\n" for c in "abc" for i in range(4))
    (tmp_path / "mine.csv").write_text("path,label,split\n" + rows + "d.jpg,d,test\n")
    data = datasets.load("folder", data_dir=tmp_path / "mine.csv", validation_fraction=0)
    assert data.seen_classes == ("a", "b", "c")
    assert data.remarks[-1].startswith("3 of the 4 test classes have training or validation images too")
    held_out = rows.replace("train", "val") + "".join(
        f"e{i}.jpg,e,train\nf{i}.jpg,f,train\n" for i in range(2)
    )
    (tmp_path / "mine.csv").write_text("path,label,split\n" + held_out)
    assert datasets.load("folder", data_dir=tmp_path / "mine.csv").seen_classes == ("a", "b", "c")
    root = trees.class_folders(tmp_path / "unseen", classes=9)
    assert datasets.load("folder", data_dir=root, validation_fraction=0).seen_classes == ()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("market1501", ["zheng-lab", "Market-1501-v15.09.15", "bounding_box_train", "data.data_dir"]),
        ("cub", ["vision.caltech.edu", "CUB_200_2011", "images.txt", "tfds build caltech_birds2011"]),
        ("cuhk03", ["CUHK_identification", "cuhk-03.mat"]),
    ],
)
def test_missing_data_says_what_to_get_and_where_to_put_it(tmp_path, name, parts):
    with pytest.raises(UserError) as raised:
        datasets.load(name, data_dir=tmp_path)
    for part in [*parts, str(tmp_path)]:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["cub", "cars196", "sop"])
def test_mocked_tfds_data(tmp_path, name, monkeypatch):
    # The mock draws boxes whose corners may be swapped, and then refuses them.
    monkeypatch.setattr(
        tfds.features.BBoxFeature, "encode_example", lambda self, box: np.asarray(box, np.float32)
    )
    with tfds.testing.mock_data(num_examples=40):
        data = datasets.load(name, data_dir=tmp_path, validation_fraction=0.2)
    sources = (data.train, data.validation, data.test)
    if name == "sop":  # both splits are the same forty
        assert [len(s) for s in sources] == [32, 8, 40]
    else:  # joined, and split again by class
        assert sum(len(s) for s in sources) == 80
        classes = [{int(c) for c in s.class_names} for s in sources]
        assert max(classes[0] | classes[1]) < {"cub": 100, "cars196": 98}[name] <= min(classes[2])
    for source in sources:
        assert source.read(0)[:8] in (b"\x89PNG\r\n\x1a\n",) or source.read(0)[:3] == b"\xff\xd8\xff"


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Stands for a set that the user prepared: train and test by class_id, several shards."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(__file__).parent  # TFDS expects builders in packages
    COUNT = 23

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=4),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "test": self._generate_examples(100)}

    def _generate_examples(self, start):
        for i in range(start, start + self.COUNT):
            yield i, {"image": trees.picture(i) if i % 3 else lying(i), "label": i % 4}


def lying(i):
    """Picture `i` stored on its side, with the orientation that turns it upright."""
    exif = trees.Image.Exif()
    exif[274] = 6
    stream = trees.io.BytesIO()
    trees.Image.fromarray(np.rot90(trees.picture(i))).save(stream, "PNG", exif=exif)
    stream.seek(0)
    return stream


@pytest.fixture(params=["tfrecord", "array_record"])
def prepared(request, tmp_path, monkeypatch):
    monkeypatch.setitem(tfds_source.LAYOUTS, "tiny", tfds_source.Layout(by_class=True))
    builder = Tiny(data_dir=str(tmp_path), file_format=request.param)
    builder.download_and_prepare()
    return tmp_path


def images(source):
    return {decode_whole(source.read(i)).tobytes() for i in range(len(source))}


def test_prepared_data_of_either_format_has_random_access(prepared):
    parts = tfds_source.read_tfds("tiny", prepared)
    numbers = [*range(23), *range(100, 123)]
    assert (len(parts.train), len(parts.test)) == (24, 22)
    assert images(parts.train) == {trees.picture(i).tobytes() for i in numbers if i % 4 < 2}
    assert images(parts.test) == {trees.picture(i).tobytes() for i in numbers if i % 4 >= 2}
    assert "tiny" in parts.train.describe(3)
    for source in (parts.train, parts.test):
        for i in (0, 7):
            label = int(source.class_names[source.labels[i]])
            image = decode_whole(source.read(i)).tobytes()
            assert image in {trees.picture(n).tobytes() for n in numbers if n % 4 == label}


@pytest.mark.parametrize("prepared", ["tfrecord"], indirect=True)
def test_the_places_of_records_are_noted_once(prepared, monkeypatch):
    first = tfds_source.read_tfds("tiny", prepared)
    notes = list(prepared.rglob("hap2s_index_*.npz"))
    assert len(notes) == 2
    with monkeypatch.context() as patch:
        patch.setattr(tfds_source._TfRecords, "_scan", None)  # would fail if it were called
        again = tfds_source.read_tfds("tiny", prepared)
    assert again.train.read(5) == first.train.read(5)
    # A note that is damaged, or of other files, is made anew.
    notes[0].write_bytes(b"half")
    np.savez(notes[1], stamp=np.array([1]))
    assert tfds_source.read_tfds("tiny", prepared).train.read(5) == first.train.read(5)
    assert not list(prepared.rglob("tmp*"))


@pytest.mark.parametrize("prepared", ["tfrecord"], indirect=True)
def test_a_truncated_record_file_is_named(prepared):
    path = next(prepared.rglob("*train.tfrecord*"))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"train.tfrecord.*ends in the middle of a record; prepare"):
        tfds_source.read_tfds("tiny", prepared)


def test_nothing_prepared_is_none(tmp_path):
    assert tfds_source.read_tfds("caltech_birds2011", tmp_path) is None


@pytest.mark.parametrize("prepared", ["tfrecord"], indirect=True)
def test_records_are_read_from_a_file_system_that_is_no_disk(prepared, monkeypatch):
    # TensorFlow keeps what is under ram:// in memory; Python's own open knows nothing of it.
    local = tfds_source.read_tfds("tiny", prepared)
    files = sorted(prepared.rglob("*train.tfrecord*"))
    folder = f"ram://{prepared.name}/tiny"
    tf.io.gfile.makedirs(folder)
    paths = [f"{folder}/{path.name}" for path in files]
    for path, remote in zip(files, paths, strict=True):
        tf.io.gfile.copy(str(path), remote)
    builder = tfds.builder("tiny", data_dir=prepared)

    def source():
        records = tfds_source._TfRecords(builder, "train", paths)
        return tfds_source.TfdsSource("tiny train", [records], tfds_source.LAYOUTS["tiny"])

    first = source()
    expected = local.train.source  # train and test joined; train comes first
    assert [first.read(i) for i in range(len(first))] == [expected.read(i) for i in range(len(first))]
    assert first.describe(0).startswith("ram://")
    assert tf.io.gfile.listdir(folder).count("hap2s_index_train.npz") == 1
    assert len(tf.io.gfile.listdir(folder)) == len(paths) + 1  # and nothing half written
    monkeypatch.setattr(tfds_source._TfRecords, "_scan", None)  # would fail if it were called
    assert source().read(5) == expected.read(5)


def test_a_bucket_is_asked_for_prepared_data_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(tfds_source, "read_tfds", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(packed, "find", lambda *_: None)
    with pytest.raises(UserError, match=r"gs://bucket/data holds no CUHK03 prepared with TFDS; prepare it"):
        datasets.load("cuhk03", data_dir="gs://bucket/data", detection="labeled")
    assert asked == [("cuhk03/labeled", "gs://bucket/data")]
    with pytest.raises(
        UserError, match="is not on a disk, and holds no packed data set folder; pack it first"
    ):
        datasets.load("folder", data_dir="gs://bucket/mine")
    monkeypatch.undo()
    with pytest.raises(UserError, match="xy://bucket cannot be read"):
        datasets.load("sop", data_dir="xy://bucket")


def test_without_tensorflow_folders_are_read_and_what_needs_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr(packed, "find", lambda *_: None)
    trees.cub(tmp_path / "CUB_200_2011", classes=4)
    assert len(datasets.load("cub", data_dir=tmp_path, validation_fraction=0).train)
    for where in (tmp_path / "elsewhere", "gs://bucket/data"):
        with pytest.raises(
            UserError, match=r"TensorFlow, which is not installed: pip install 'hap2s_jax\[train\]'"
        ):
            datasets.load("cub", data_dir=where)


def test_one_test_class_is_too_few_and_the_line_names_the_data_and_the_remedy(tmp_path):
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("path,label,split\na.png,a,train\nb.png,b,train\nc.png,c,test\nd.png,c,test\n")
    with pytest.raises(UserError, match=r"^folder in .*sheet.csv: has 1 test classes.*put images of another"):
        datasets.load("folder", data_dir=sheet, validation_fraction=0.0)
