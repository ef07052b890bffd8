"""Several data sets to train on, and others to test on."""

from __future__ import annotations

import cv2
import ml_collections
import numpy as np
import pytest

from hap2s_jax.data import datasets, several
from hap2s_jax.errors import UserError
from hap2s_jax.run import sets
from tests.data import trees


@pytest.fixture
def folders(tmp_path):
    """Two sets with the same labels, the second of fewer classes; one image is in both."""
    for place, classes in (("here", 12), ("there", 10)):
        for c in range(classes):
            for n in range(3):
                path = tmp_path / place / f"{c:02d}" / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = np.full((4, 4, 3), 10 * c + n + 100 * (place == "there"), np.uint8)
                cv2.imwrite(str(path), image)
    return tmp_path


def _config(folders, on=(), parts=("train",), name="", **options):
    named = {p: {"name": "folder", "data_dir": str(folders / p)} for p in ("here", "there")}
    data = {"name": name, "data_dir": str(folders), "options": {}, "validation_fraction": 0.3, "parts": parts}
    data["sources"] = {} if name else {p: {**named[p], "options": options} for p in ("here", "there")}
    config = {"data": data, "evaluate": {"on": {p: named.get(p, {}) for p in on}}, "seed": 0}
    return ml_collections.ConfigDict(config)


def test_classes_and_cameras_are_kept_apart(folders):
    data = sets.load_dataset(_config(folders))
    alone = {
        p: datasets.load("folder", data_dir=folders / p, validation_fraction=0.3) for p in ("here", "there")
    }
    assert data.name == "here+there"
    assert len(data.train) == sum(len(one.train) for one in alone.values())
    names = [f"{p}/{c}" for p, one in alone.items() for c in one.train.class_names]
    assert list(data.train.class_names) == names
    of = data.class_sets[data.train.labels]
    for number, one in enumerate(alone.values()):
        rows = np.flatnonzero(of == number)
        assert [data.train.describe(r) for r in rows] == [one.train.describe(n) for n in range(len(rows))]
        assert data.train.read(rows[-1]) == one.train.read(len(rows) - 1)
    assert [target.name for target in data.targets] == ["here", "there"]
    assert len(data.test) == len(alone["here"].test)
    assert data.validation_protocols == ("class",)
    assert not {*data.validation.class_names} & {*data.train.class_names}


def test_cameras_and_boxes_of_some_sets():
    class Some:
        name, class_names = "some", ("a", "b")

        def __init__(self, cameras, boxes=None):
            self.labels, self.cameras, self.boxes = np.array([0, 1, -1]), cameras, boxes

        def __len__(self):
            return 3

    one, two, none = Some(np.array([0, 4, -1])), Some(np.array([0, 1, 1]), np.ones((3, 4), int)), Some(None)
    joined = several.Joined({"one": one, "none": none, "two": two})
    assert joined.labels.tolist() == [0, 1, -1, 2, 3, -1, 4, 5, -1]
    known = joined.cameras[[0, 1, 6, 7, 8]].tolist()
    assert known == [0, 4, 5, 6, 6]
    unknown = joined.cameras[[2, 3, 4, 5]]
    assert (unknown < 0).all()
    assert len({*unknown.tolist()}) == 4
    assert joined.boxes[:6].sum() == 0
    assert joined.boxes[6:].all()
    assert several.Joined({"none": none, "again": Some(None)}).cameras is None


def test_targets_are_others_and_all_parts_may_be_trained_on(folders):
    trees.market(folders / "market1501", people=6)
    data = sets.load_dataset(_config(folders, on=("market1501",)))
    assert data.protocols == ("query_gallery",)
    assert data.validation_protocols == ("class",)  # of the sources
    assert [target.name for target in data.targets] == ["market1501"]
    whole = sets.load_dataset(
        _config(folders, name="market1501", on=("here",), parts=("train", "query", "gallery"))
    )
    plain = datasets.load("market1501", data_dir=folders, validation_fraction=0.3)
    asked = np.isin(plain.test.labels, plain.test.labels[plain.query])
    assert len(whole.train) == len(plain.train) + asked.sum()
    assert len(whole.test) == 36  # of a folder without a split all are for testing
    assert whole.seen_classes == ()


def test_images_in_two_sets_are_counted(folders):
    here = sorted((folders / "here").rglob("*.png"))
    for path in (folders / "there").rglob("0.png"):
        path.write_bytes(here[0].read_bytes())
    data = sets.load_dataset(_config(folders, test_fraction=0.4))
    trained = {data.train.describe(n) for n in range(len(data.train))}
    line = [line for line in data.remarks if "more than one set" in line]
    assert bool(line) == (str(here[0]) in trained)
    # So are those to train on with those of another set to test on.
    del data
    config = _config(folders, on=("there",), test_fraction=0.4)
    del config.data.sources["there"]
    data = sets.load_dataset(config)
    both = {data.train.read(n) for n in range(len(data.train))} & {data.test.read(n) for n in range(30)}
    (line,) = [line for line in data.remarks if "also in another set, to test on" in line]
    assert line.startswith(f"{len(both)} images to train on")
    # A set's own test is none of another set.
    config.evaluate.on = {"here": config.data.sources.here}
    assert not [line for line in sets.load_dataset(config).remarks if "another set" in line]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.name": "emoji,emoji", "data.sources": {}}, "given twice"),
        ({"data.sources.there.data_dir": "HERE/."}, "given twice"),
        ({"data.parts": ("train", "gallery")}, "test on other sets: name them in evaluate.on"),
        ({"data.parts": ("test",)}, "must be train and, as wished"),
        ({"data.sources.here": {"dir": "x"}}, "key of data.sources.here"),
        ({"data.sources.here": "x"}, "should be a section"),
        (
            {"data.sources.here.data_dir": 3},
            r"data.sources.here.data_dir: should be a folder or file, found 3",
        ),
        ({"data.sources.here.name": 3}, r"data.sources.here.name: should be a name, found 3"),
        ({"data.sources.here.options": "x"}, r"data.sources.here.options: should be a section, found 'x'"),
        ({"data.sources.there.data_dir": "nowhere"}, r"there: data.data_dir: must name .*; found nowhere"),
        ({"data.sources": {"markt1501": {}}}, "market1501"),
        ({"data.sources.here.options": {"test_fraction": 1}}, "leaves no class to train on"),
    ],
)
def test_mistakes_are_one_line(folders, change, words):
    config = _config(folders)
    for key, value in change.items():
        *sections, leaf = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        with config.ignore_type():
            value = str(folders / "here" / ".") if value == "HERE/." else value
            section[leaf] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=words) as error:
        sets.load_dataset(config)
    assert "\n" not in str(error.value)


def test_a_target_with_a_test_alone_and_one_that_nothing_answers(folders):
    """Remarks on every target say what is wrong with it; a CSV whose rows are all for testing is whole."""
    rows = [f"here/{c:02d}/{n}.png,c{c},test" for c in range(3) for n in range(c == 0, 2)]
    (folders / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    alone = [f"there/{c:02d}/0.png,c{c},test" for c in range(3)]
    (folders / "alone.csv").write_text("\n".join(["path,label,split", *alone]))
    config = _config(folders)
    places = {name: {"name": "folder", "data_dir": str(folders / name)} for name in ("t.csv", "alone.csv")}
    config.evaluate.on = {name.partition(".")[0]: place for name, place in places.items()}
    data = sets.load_dataset(config)
    sizes = {target.name: len(target.test) for target in data.targets}
    assert sizes == {"t": 5, "alone": 3}
    lines = [line for line in data.remarks if "have no valid match" in line]
    assert [line.partition(": class: ")[0] for line in lines] == list(sizes)
    assert any(
        "alone: class: 3 of 3 queries have no valid match, so nothing can be measured" in x for x in lines
    )
    (folders / "t.csv").write_text("path,label,split\nhere/00/0.png,unknown,test\n")
    with pytest.raises(UserError, match=r"found images in none; 1 images are of an unknown individual"):
        sets.load_dataset(config)


def test_targets_of_a_command(folders):
    name, data = sets.target(str(folders / "there"), 0)
    assert (name, len(data.test), data.protocols) == (str(folders / "there"), 30, ("class",))
    assert sets.target("emoji", 0)[0] == "emoji"
    with pytest.raises(UserError, match="is neither a folder or CSV here nor NAME:DIR"):
        sets.target("emojis:/nowhere", 0)
