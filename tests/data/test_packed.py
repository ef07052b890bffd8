"""Packed data sets: what comes out went in, TFDS reads it, and nothing damaged or hostile is taken for whole."""

from __future__ import annotations

import json
import shutil
import time
import zlib

import buckets
import drawings
import numpy as np
import pytest
import trees
from PIL import Image

from hap2s_jax import cli, pack
from hap2s_jax.data import bucket as bucket_module
from hap2s_jax.data import datasets, duplicates, fetching, inspection, packed, packing_plan, pixels
from hap2s_jax.data.augment import Augmentation
from hap2s_jax.data.batches import Reading, eval_batches, train_batches
from hap2s_jax.data.bucket import BucketPath
from hap2s_jax.data.fetching import Ahead, Cache, Fetched
from hap2s_jax.data.pk import PKPlan
from hap2s_jax.data.places import place
from hap2s_jax.data.tf import shards
from hap2s_jax.errors import Unreachable, UserError

_PARTS = ("train", "validation", "test")


def csv(folder):
    """Images with boxes, cameras and attributes, queries that ask a gallery, one of them damaged."""
    rng = np.random.default_rng(0)
    lines = ["path;label;split;camera;age group;x1;y1;x2;y2"]
    for number in range(48):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        name = f"images/é {number}.{('jpg', 'png')[number % 2]}"
        Image.fromarray(rng.integers(0, 256, (40 + number % 3, 60, 3), np.uint8)).save(folder / name)
        split = ("train", "validation", "query", "gallery")[number // 12]
        box = "5;6;35;38" if number % 4 else "0;0;60;40"
        lines.append(f"{name};{'qg'[number // 24]}{number % 3};{split};cam {number % 2};{number % 5};{box}")
    (folder / "images" / "é 7.png").write_bytes(b"no image")
    (folder / "all.csv").write_text("\n".join(lines))
    return folder / "all.csv"


def closed(folder):
    drawings.noisy(folder)
    for c in folder.iterdir():
        for n, part in enumerate(("train", "train", "train", "train", "test", "test")):
            target = folder.parent / "closed" / part / c.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(c / f"{n}.png", target)
    return folder.parent / "closed"


SETS = {
    "folder": (drawings.noisy, "folder"),
    "csv": (csv, "folder"),
    "closed": (closed, "folder"),
    "market1501": (lambda folder: trees.market(folder) and folder, "market1501"),
}


def same(ours, theirs):
    """Whether two data sets are the same to the last bit."""
    for part in _PARTS:
        a, b = getattr(ours, part), getattr(theirs, part)
        assert (a is None) == (b is None)
        if a is None:
            continue
        assert (a.name, a.class_names) == (b.name, b.class_names)
        for what in ("labels", "cameras", "boxes"):
            np.testing.assert_array_equal(getattr(a, what, None), getattr(b, what, None))
        assert [a.read(i) for i in range(len(a))] == [b.read(i) for i in range(len(b))]
    for row in packed.ROWS:
        np.testing.assert_array_equal(getattr(ours, row), getattr(theirs, row))
    assert (ours.protocols, ours.seen_classes, ours.remarks) == (
        theirs.protocols,
        theirs.seen_classes,
        theirs.remarks,
    )


@pytest.mark.parametrize("kind", SETS)
def test_any_set_comes_out_as_it_went_in_and_tfds_reads_it(kind, tmp_path, capsys):
    make, name = SETS[kind]
    source, output = make(tmp_path / "data"), tmp_path / "packed"
    arguments = [f"--name={name}", f"--data_dir={source}", f"--output={output}"]
    for _ in range(2):
        assert pack.main(arguments) == 0, capsys.readouterr().err
        assert "it is as it was packed" in capsys.readouterr().out
    theirs = datasets.load(name, data_dir=source)
    same(datasets.load(name, data_dir=output), theirs)
    assert not [p.name for p in output.iterdir() if p.suffix == ".rows" or p.name.startswith("packing")]

    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(output))
    label, found = builder.info.features["label"], set()
    for split in builder.info.splits:
        for example in builder.as_dataset(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        ).as_numpy_iterator():
            number = int(example["label"])
            found.add((zlib.crc32(example["image"]), label.int2str(number) if number >= 0 else ""))
            if kind == "csv":
                assert example["camera_name"].decode().startswith("cam ")
                assert example["age group"].decode() == str(int(example["path"].decode().split()[1][:-4]) % 5)
                assert example["box"].tolist() in ([5, 6, 35, 38], [0, 0, 60, 40])
    wanted = set()
    for part in filter(None, (getattr(theirs, p) for p in _PARTS)):
        names = [part.class_names[n] if n >= 0 else "" for n in part.labels]
        wanted |= {(zlib.crc32(part.read(i)), c) for i, c in enumerate(names)}
    if kind == "market1501":  # -1 and 0 are names of classes there as well
        found, wanted = ({crc for crc, _ in pairs} for pairs in (found, wanted))
    assert found == wanted


def test_packed_images_that_stand_twice_are_found(tmp_path, capsys):
    drawings.noisy(tmp_path / "data")
    first, second = sorted((tmp_path / "data").iterdir())[:2]
    shutil.copy(sorted(first.iterdir())[0], second / "again.png")
    arguments = ["--name=folder", f"--data_dir={tmp_path / 'data'}", f"--output={tmp_path / 'packed'}"]
    assert pack.main(arguments) == 0, capsys.readouterr().err
    counts = []
    for place_of in (tmp_path / "data", tmp_path / "packed"):
        found = duplicates.find(datasets.load("folder", data_dir=place_of))
        counts.append((len(found.repeated), len(found.two_labels), len(found.shared), found.compared))
    assert counts[0] == counts[1]
    assert counts[0][1] == 1


def test_batches_are_those_of_the_loose_files_bit_for_bit(tmp_path, capsys):
    source, output = csv(tmp_path / "data"), tmp_path / "packed"
    assert pack.main([f"--data_dir={source}", f"--output={output}"]) == 0, capsys.readouterr().err
    settings = {"augmentation": Augmentation(crop="resized", flip=True), "seed": 3}

    def batches(place):
        train = datasets.load("folder", data_dir=place).train
        plan = PKPlan(train.labels, classes_per_batch=2, images_per_class=2, seed=1)
        made = train_batches(train, plan, Reading((24, 24), on_unreadable="skip"), **settings)
        return [next(made) for _ in range(6)]

    for ours, theirs in zip(batches(output), batches(source), strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_packing_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    source = drawings.noisy(tmp_path / "data")
    monkeypatch.setattr(shards, "SHARD_BYTES", 60_000)
    once, again = tmp_path / "once", tmp_path / "again"
    assert pack.main([f"--data_dir={source}", f"--output={once}"]) == 0
    whole, written = shards.Writer._shard, []

    def breaks(self, name, *rest):
        if len(written) == 5:
            raise UserError("the power failed")
        written.append(name)
        return whole(self, name, *rest)

    monkeypatch.setattr(shards.Writer, "_shard", breaks)
    assert pack.main([f"--data_dir={source}", f"--output={again}"]) == 1
    with pytest.raises(UserError, match=r"found no image in a folder"):
        datasets.load("folder", data_dir=again)  # not for a whole one
    other = drawings.noisy(tmp_path / "other")
    (other / "class00" / "0.png").unlink()
    capsys.readouterr()
    assert pack.main([f"--data_dir={other}", f"--output={again}"]) == 1
    assert "holds another data set" in capsys.readouterr().err
    monkeypatch.setattr(shards.Writer, "_shard", whole)
    before = (again / written[0]).stat().st_mtime_ns
    assert pack.main([f"--data_dir={source}", f"--output={again}"]) == 0
    assert (again / written[0]).stat().st_mtime_ns == before
    assert {p.name: p.read_bytes() for p in once.iterdir()} == {
        p.name: p.read_bytes() for p in again.iterdir()
    }
    assert pack.main([f"--data_dir={source}", f"--output={source}"]) == 1
    assert "holds other files" in capsys.readouterr().err


@pytest.mark.parametrize("boxes", pack.BOXES)
def test_images_are_made_smaller_once_and_for_all(boxes, tmp_path, capsys):
    source, output = csv(tmp_path / "data"), tmp_path / "packed"
    arguments = [f"--data_dir={source}", f"--output={output}", "--longest_side=30", f"--boxes={boxes}"]
    assert pack.main(arguments) == 0, capsys.readouterr().err
    theirs, ours = (datasets.load("folder", data_dir=d).train for d in (source, output))
    assert (ours.boxes is None) == (boxes == "applied")
    for i in range(len(ours)):
        if ours.read(i) == b"no image":
            continue
        height, width = pixels.image_shape(ours.read(i))
        left, top, right, bottom = theirs.boxes[i]
        if boxes == "kept":
            assert width == 30
            np.testing.assert_allclose(ours.boxes[i], theirs.boxes[i] / 2, atol=1)
        else:
            assert max(height, width) == min(30, max(right - left, bottom - top))
        # The same part of the scene: both shrunk to a few pixels.
        a, b = (
            pixels.for_evaluation(s.read(i), (4, 4), box=None if s.boxes is None else s.boxes[i])
            for s in (ours, theirs)
        )
        assert np.abs(a.astype(int) - b.astype(int)).mean() < 12


def _spoil(folder, what):
    record = json.loads((folder / "pack.json").read_text())
    index = np.fromfile(folder / "train.index", packed.ROW)
    change = {
        "offset": lambda: index["offset"].__setitem__(3, 2**62),
        "negative": lambda: index["offset"].__setitem__(3, -5),
        "length": lambda: index["length"].__setitem__(3, 2**30),
        "shard": lambda: index["shard"].__setitem__(3, 77),
        "label": lambda: index["label"].__setitem__(3, 9_999),
        "name": lambda: record["shards"][0].__setitem__(0, "../../etc/passwd"),
        "size": lambda: record["shards"][0].__setitem__(1, 10**15),
        "count": lambda: record["parts"]["train"].__setitem__("index", [10**15, 0]),
        "nothing": lambda: record["parts"].pop("test"),
        "list": lambda: record.__setitem__("shards", 3),
        "pipe": lambda: (
            (folder / "train.classes").unlink() or __import__("os").mkfifo(folder / "train.classes")
        ),
        "cut": lambda: (folder / "train.index").write_bytes(index.tobytes()[:-7]),
        "gone": lambda: (folder / record["shards"][0][0]).unlink(),
        "newer": lambda: record.__setitem__("format", 99),
    }
    change[what]()
    if what in ("offset", "negative", "length", "shard", "label"):
        (folder / "train.index").write_bytes(index.tobytes())
        record["parts"]["train"]["index"] = [index.nbytes, zlib.crc32(index.tobytes())]
    (folder / "pack.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    assert pack.main([f"--data_dir={drawings.noisy(folder / 'data')}", f"--output={folder / 'packed'}"]) == 0
    return folder / "packed"


@pytest.mark.parametrize(
    "what",
    [
        *("offset", "negative", "length", "shard", "label", "name", "size", "count"),
        *("nothing", "list", "pipe", "cut", "gone", "newer"),
    ],
)
def test_what_is_not_whole_or_not_ours_is_one_line(what, whole, tmp_path):
    folder = tmp_path / "packed"
    shutil.copytree(whole, folder)
    _spoil(folder, what)
    with pytest.raises(UserError, match=r"is not a complete packed data set|has format 99") as error:
        datasets.load("folder", data_dir=folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["empty", "gone"])
def test_a_file_without_an_image_is_named_before_anything_is_written(fault, tmp_path, capsys):
    source, output = drawings.noisy(tmp_path / "data"), tmp_path / "packed"
    photo = source / "class00" / "0.png"
    before = photo.read_bytes()
    rows = [f"{p.relative_to(source)},{p.parent.name}" for p in sorted(source.rglob("*.png"))]
    (source / "all.csv").write_text("\n".join(["path,label", *rows]))
    photo.write_bytes(b"") if fault == "empty" else photo.unlink()
    command = [f"--data_dir={source / 'all.csv'}", f"--output={output}"]
    assert pack.main(command) == 1
    said = capsys.readouterr().err
    assert f"1 images cannot be packed, such as {photo} (" in said
    assert not output.exists()
    photo.write_bytes(before)
    assert pack.main(command) == 0


def test_an_empty_image_of_an_older_pack_is_named_like_any_that_cannot_be_read(tmp_path, monkeypatch):
    source, output = drawings.noisy(tmp_path / "data"), tmp_path / "packed"
    (source / "class00" / "0.png").write_bytes(b"")
    monkeypatch.setattr(packing_plan, "check", lambda plan: None)
    assert pack.main([f"--data_dir={source}", f"--output={output}"]) == 0
    dataset = datasets.load("folder", data_dir=output)
    reports = [inspection.check("", s, inspection.View()) for s in (dataset.train, dataset.test)]
    (told,) = [line for report in reports for line in report.unreadable]
    assert told == f"{output}: class00/0.png (the file is empty)"


def test_an_image_whose_bytes_have_changed_is_named_and_other_options_are_refused(whole, tmp_path):
    folder = tmp_path / "packed"
    shutil.copytree(whole, folder)
    with (folder / "train.tfrecord-00000").open("r+b") as file:
        file.seek(500)
        file.write(b"\xff\x00\xff")
    train = datasets.load("folder", data_dir=folder, validation_fraction=0).train
    damaged = []
    for i in range(len(train)):
        try:
            train.read(i)
        except pixels.UnreadableImageError:
            damaged.append(train.describe(i))
    assert len(damaged) == 1
    assert damaged[0].startswith(f"{folder}: class")
    with pytest.raises(UserError, match=r"test_fraction: is 0.3, and .* was packed with 0.5"):
        datasets.load("folder", data_dir=folder, test_fraction=0.3)
    with pytest.raises(UserError, match=r"holds folder, packed"):
        datasets.load("market1501", data_dir=folder)


@pytest.fixture(scope="module")
def server():
    with buckets.serving() as address:
        yield address


@pytest.fixture(scope="module")
def bucket(server):
    with pytest.MonkeyPatch.context() as patch:
        buckets.use(patch, server)
        yield buckets.new_bucket(server)


def test_out_of_a_bucket_come_the_same_batches_by_few_requests(whole, bucket, tmp_path, monkeypatch, capsys):
    there = f"{bucket}/own"
    assert pack.main([f"--data_dir={whole.parent / 'data'}", f"--output={there}"]) == 0, (
        capsys.readouterr().err
    )
    assert {n: size for n, (size, _) in place(there).checksums().items()} == {
        p.name: p.stat().st_size for p in whole.iterdir()
    }
    asked, plain = [], BucketPath.read_range
    monkeypatch.setattr(
        BucketPath, "read_range", lambda s, a, b: asked.append((s.name, a, b)) or plain(s, a, b)
    )
    ours = datasets.load("folder", data_dir=there, cache=Cache(str(tmp_path / "cache"), 0.5))
    theirs = datasets.load("folder", data_dir=whole)
    same(ours, theirs)
    assert len(asked) == len({*asked}) == 2  # each file is one block, fetched once
    assert not list((tmp_path / "cache").iterdir())  # a file without a name, which nobody has to take away


@pytest.fixture
def failing(server, whole, monkeypatch, tmp_path):
    """A packed data set in a bucket, opened through a proxy, in blocks that hold an image or two."""
    monkeypatch.setattr("hap2s_jax.data.fetching._LARGE", 4_000)
    with buckets.Proxy(server) as proxy:
        buckets.use(monkeypatch, proxy.address)
        there = buckets.new_bucket(server)
        for path in whole.iterdir():
            place(f"{there}/photos/{path.name}").upload(path)
        yield proxy, f"{there}/photos", Cache(str(tmp_path / "cache"), 0.5)
        buckets.use(monkeypatch, server)


def test_reading_survives_what_passes_and_counts_it(failing, whole, monkeypatch, capsys):
    proxy, there, cache = failing
    monkeypatch.setattr(bucket_module, "SILENCE", 1.5)
    faults, asked = [503, 429, "cut", "half", "stalled", 3.0], []

    def every_third(method, path):
        asked.append(path)
        return faults.pop() if faults and len(asked) % 3 == 0 else None

    proxy.fault = every_third
    same(datasets.load("folder", data_dir=there, cache=cache), datasets.load("folder", data_dir=whole))
    assert faults == []
    assert cli.ended(lambda: None) == 0
    assert capsys.readouterr().err == "note: 6 requests to a bucket failed, and were sent again\n"


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (503, 75, "the bucket does not answer (503 Service Unavailable)"),
        (60.0, 75, "the bucket does not answer (ReadTimeout)"),
        ("stalled", 75, "the bucket does not answer ("),
        (403, 1, "this account may not (403 Forbidden)"),
        (404, 1, "it is not there, or there is no bucket"),
    ],
)
def test_reading_what_stays_away_ends_with_one_line(failing, fault, code, says, opened, monkeypatch, capsys):
    proxy, there, cache = failing
    monkeypatch.setattr(bucket_module, "SILENCE", 1.5)
    monkeypatch.setattr(bucket_module, "PATIENCE", 2.5)

    def fail():
        proxy.fault = lambda method, path: fault

    def work():
        if not opened:
            fail()
        images = datasets.load("folder", data_dir=there, cache=cache).train
        fail()
        Ahead(images, lambda _: np.arange(len(images)), 0, 1).reach(0)  # far more than are fetched at a time
        list(eval_batches(images, Reading((40, 40), on_unreadable="skip"), batch_size=8))

    assert cli.ended(work) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line or (fault == 404 and not opened and "holds no packed data set" in line)
    bucket_module.failed()


def test_who_waits_behind_a_bucket_that_is_given_up_does_not_wait_as_long_again(
    bucket, tmp_path, monkeypatch
):
    asked = []

    def silent(path, start, stop):
        asked.append(start)
        time.sleep(0.2)
        raise Unreachable(str(path), "503")

    monkeypatch.setattr(BucketPath, "read_range", silent)
    side = fetching._LARGE
    fetched = Fetched([place(f"{bucket}/files/x")], np.array([300 * side]), Cache(str(tmp_path), 0.5))
    fetched.prefetch(np.zeros(300, int), side * np.arange(300), np.ones(300, int))
    with pytest.raises(Unreachable):
        fetched.read(0, 299 * side, 1)
    assert len(asked) <= 2 * bucket_module.CONNECTIONS


def test_a_host_fetches_what_its_slice_needs_and_a_small_cache_stays_small(bucket, tmp_path, monkeypatch):
    # Blocks of 2 kB where not all fit, and a cache of 64.
    monkeypatch.setattr("hap2s_jax.data.fetching._SMALL", 2_000)
    monkeypatch.setattr("hap2s_jax.data.fetching._LARGE", 16_000)
    sizes, rng = np.array([150_000, 70_001]), np.random.default_rng(0)
    contents = [rng.bytes(size) for size in sizes]
    paths = [place(f"{bucket}/files/{n}") for n in range(2)]
    for path, data in zip(paths, contents, strict=True):
        path.write_bytes(data)
    fetched = Fetched(paths, sizes, Cache(str(tmp_path), 64_000 / 1e9))
    asked, plain = [], BucketPath.read_range
    monkeypatch.setattr(
        BucketPath, "read_range", lambda s, a, b: asked.append((s.name, a, b)) or plain(s, a, b)
    )
    fetched.prefetch(np.array([0, 0]), np.array([100, 90_000]), np.array([3_000, 10]))
    assert fetched.read(0, 100, 3_000) == contents[0][100:3_100]
    assert fetched.read(0, 90_000, 10) == contents[0][90_000:90_010]
    assert sorted(asked) == [("0", 0, 4_000), ("0", 90_000, 92_000)]
    for _ in range(300):
        file = int(rng.integers(2))
        start, length = int(rng.integers(sizes[file])), int(rng.integers(0, 40_000))
        length = min(length, int(sizes[file]) - start)
        if rng.random() < 0.3:
            fetched.prefetch(np.array([file]), np.array([start]), np.array([length]))
        assert fetched.read(file, start, length) == contents[file][start : start + length]
    assert fetched._ring._file.seek(0, 2) <= 64_000
    paths[1].unlink()
    with pytest.raises(UserError, match=r"files/1 cannot be read: it is not there"):
        fetched.read(1, 0, 60_000)


def test_each_of_two_hosts_fetches_its_share(whole, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("hap2s_jax.data.fetching._LARGE", 10_000)
    for path in whole.iterdir():
        place(f"{bucket}/shares/{path.name}").upload(path)
    asked, plain = [], BucketPath.read_range
    monkeypatch.setattr(BucketPath, "read_range", lambda s, a, b: asked.append(b - a) or plain(s, a, b))
    shares = []
    for host in range(2):
        asked.clear()
        test = datasets.load("folder", data_dir=f"{bucket}/shares", cache=Cache(str(tmp_path), 0.5)).test
        asked.clear()
        list(eval_batches(test, Reading((40, 40), host, 2, cache_bytes=0), batch_size=8))
        shares.append(sum(asked))
    size = (whole / "test.tfrecord-00000").stat().st_size
    assert max(shares) <= size / 2 + 2 * 10_000
