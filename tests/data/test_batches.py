"""The pipeline: bit-identical batches, every image once in evaluation, unreadable images named."""

from __future__ import annotations

import gc
import itertools
import logging
import subprocess
import sys
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from trees import encoded, picture

from hap2s_jax.data import batches
from hap2s_jax.data.augment import Augmentation
from hap2s_jax.data.batches import Reading, eval_batches, train_batches
from hap2s_jax.data.images import DecodedImages
from hap2s_jax.data.pk import PKPlan
from hap2s_jax.data.source import Subset
from hap2s_jax.errors import UserError

ALL = Augmentation(
    crop="resized",
    flip=True,
    scale=(0.8, 1.2),
    shift=0.1,
    rotate=5.0,
    color_mix=0.1,
    contrast=0.1,
    erase_probability=0.5,
)


class Memory:
    """A source in memory whose image `i` is `picture(i)`, and which counts its reads."""

    cameras = None

    def __init__(self, count=24, classes=6, kind="JPEG", size=(40, 30)):
        self.name = "memory"
        self.labels = (np.arange(count) % classes).astype(np.int32)
        self.class_names = tuple(map(str, range(classes)))
        self.files = [encoded(picture(i, size[0] + i % 3, size[1]), kind) for i in range(count)]
        self.reads = 0

    def __len__(self):
        return len(self.files)

    def read(self, index):
        self.reads += 1
        return self.files[index]

    def describe(self, index):
        return f"memory/{index}"


def plan_of(source, p=4, k=2):
    return PKPlan(source.labels, classes_per_batch=p, images_per_class=k, seed=5)


def take(source, count, *, augmentation=ALL, start_step=0, **kwargs):
    reading = Reading((32, 24), **kwargs)
    batches = train_batches(
        source, plan_of(source), reading, augmentation=augmentation, seed=7, start_step=start_step
    )
    return list(itertools.islice(batches, count))


def same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


@pytest.fixture(scope="module")
def source():
    return Memory()


@pytest.fixture(scope="module")
def first_twelve(source):
    return take(source, 12)


def test_batches_follow_the_plan(source, first_twelve):
    plan = plan_of(source)
    for step, batch in enumerate(first_twelve):
        assert batch["image"].shape == (8, 32, 24, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["label"], source.labels[plan.batch(step)])
    images = np.concatenate([b["image"] for b in first_twelve]).reshape(96, -1)
    assert len(np.unique(images, axis=0)) == 96  # every draw is a new one


def test_without_augmentation_the_images_are_the_files(source):
    plan = plan_of(source)
    for step, batch in enumerate(take(source, 3, augmentation=Augmentation())):
        for index, image in zip(plan.batch(step), batch["image"], strict=True):
            assert np.abs(image.astype(int) - picture(index, 32, 24)).max() < 40
            assert np.abs(image.astype(int) - picture(index, 32, 24)).mean() < 6


@pytest.fixture(params=["tf.data", "threads"])
def made_by(request, monkeypatch):
    """`first_twelve` come through tf.data: what a test compares with them is the same bit for bit without it."""
    if request.param == "threads":
        monkeypatch.setattr(batches, "has_tensorflow", lambda: False)
        monkeypatch.setitem(sys.modules, "hap2s_jax.data.tf.pipeline", None)


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.usefixtures("made_by")
def test_the_number_of_workers_changes_nothing(source, first_twelve, workers):
    same(take(source, 12, num_workers=workers), first_twelve)


@pytest.mark.usefixtures("made_by")
def test_few_large_batches_lie_in_memory_and_threads_share_them(source, first_twelve, monkeypatch):
    monkeypatch.setattr(batches, "_AHEAD_BYTES", 1)
    same(take(source, 12, num_workers=4), first_twelve)
    few = list(eval_batches(source, Reading((32, 24), num_workers=4), batch_size=5))
    monkeypatch.setattr(batches, "_AHEAD_BYTES", 2**30)
    alone = eval_batches(source, Reading((32, 24), num_workers=1), batch_size=5)
    for batch, expected in zip(few, alone, strict=True):
        for name in ("image", "index", "mask"):
            np.testing.assert_array_equal(batch[name], expected[name])

    monkeypatch.setattr(batches, "_AHEAD_BYTES", 1)
    begun, plan = [], plan_of(source)
    watched = SimpleNamespace(batch=lambda step: begun.append(step) or plan.batch(step))
    made = train_batches(source, watched, Reading((32, 24), num_workers=8), augmentation=ALL, seed=7)
    next(made)
    time.sleep(1.0)
    assert max(begun) <= 4  # eight threads with a batch each would be at the tenth


def test_a_resumed_run_gets_the_same_batches(source, first_twelve):
    same(take(source, 5, start_step=7), first_twelve[7:])
    assert take(source, 1, start_step=1_000_000)[0]["image"].shape == (8, 32, 24, 3)


@pytest.mark.parametrize("hosts", [2, 8])
def test_hosts_read_disjoint_parts_whose_union_is_the_batch(source, first_twelve, hosts):
    shares = [take(source, 4, host_index=h, host_count=hosts) for h in range(hosts)]
    joined = [
        {k: np.concatenate([share[t][k] for share in shares]) for k in ("image", "label")} for t in range(4)
    ]
    same(joined, first_twelve[:4])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_is_in_memory_already_changes_nothing(kind):
    fresh, used = Memory(kind=kind), Memory(kind=kind)
    list(eval_batches(used, Reading((32, 24)), batch_size=8))
    same(take(used, 3), take(fresh, 3))
    # Nor does having to decode anew.
    same(take(fresh, 3, cache_bytes=0), take(fresh, 3))


def test_decoded_images_are_kept_between_passes_and_freed_with_the_source():
    source = Memory()
    for _ in range(3):
        assert sum(b["mask"].sum() for b in eval_batches(source, Reading((32, 24)), batch_size=7)) == 24
    assert source.reads < 2 * 24 + 32  # one pass, and the sample of headers; two workers may meet
    assert DecodedImages(source).cached
    assert not DecodedImages(source, cache_bytes=1000).cached
    gone = weakref.ref(source)
    del source
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("batch_size", [1, 5, 24, 100])
def test_evaluation_sees_every_image_once_in_order(source, batch_size):
    batches = list(eval_batches(source, Reading((32, 24)), batch_size=batch_size))
    assert all(b["image"].shape == (batch_size, 32, 24, 3) for b in batches)
    assert np.concatenate([b["index"][b["mask"]] for b in batches]).tolist() == list(range(24))
    whole = {
        int(i): image
        for b in batches
        for i, image, m in zip(b["index"], b["image"], b["mask"], strict=True)
        if m
    }
    again = next(eval_batches(source, Reading((32, 24)), batch_size=24))["image"]
    np.testing.assert_array_equal(np.stack([whole[i] for i in range(24)]), again)


def test_hosts_share_evaluation_with_equally_many_batches(source):
    shares = [list(eval_batches(source, Reading((32, 24), h, 7), batch_size=5)) for h in range(7)]
    assert len({len(share) for share in shares}) == 1
    seen = [i for share in shares for b in share for i in b["index"][b["mask"]]]
    assert sorted(seen) == list(range(24))


def test_boxes_limit_the_images_also_through_a_subset():
    source = Memory(size=(60, 60))
    source.boxes = np.tile(np.array([[10, 20, 40, 50]]), (24, 1))
    source.boxes[3] = 0  # none
    for inner in (source, Subset(source, np.arange(24))):
        for cache in (0, 10**9):
            images = next(eval_batches(inner, Reading((30, 30), cache_bytes=cache), batch_size=24))["image"]
            assert np.abs(images[0].astype(int) - picture(0, 60, 60)[20:50, 10:40]).max() < 8
            assert np.abs(images[3].astype(int) - picture(3, 30, 30)).mean() < 8
    source.boxes[4] = (200, 200, 300, 300)
    with pytest.raises(
        UserError, match=r"memory/4: its box 200, 200, 300, 300 .* outside the image of 60 x 61"
    ):
        list(eval_batches(source, Reading((30, 30)), batch_size=24))


@pytest.fixture
def broken():
    source = Memory()
    source.files[4] = source.files[4][:300]
    return source


def test_an_unreadable_image_is_named(broken):
    match = r"cannot read the image memory/4: .*config\.data\.on_unreadable=skip"
    with pytest.raises(UserError, match=match):
        take(broken, 12)
    with pytest.raises(UserError, match=match):
        list(eval_batches(broken, Reading((32, 24)), batch_size=8))


def test_a_missing_file_is_named(broken):
    def read(index):
        raise FileNotFoundError(2, "No such file or directory", "elsewhere/4.jpg")

    broken.read = read
    with pytest.raises(UserError, match=r"memory/.*No such file"):
        take(broken, 1)


def test_an_unreadable_image_can_be_skipped(broken, caplog):
    with caplog.at_level(logging.WARNING):
        batches = take(broken, 12, on_unreadable="skip")
    assert sum("skipping the image memory/4" in r.message for r in caplog.records) == 1
    # In its place stands the next image of its class, with its own draws; all else is as it was.
    whole, other = Memory(), Memory()
    other.files[4] = other.files[10]
    same(batches, take(other, 12))
    plan = plan_of(whole)
    assert any(4 in plan.batch(t) for t in range(12))
    masks = next(eval_batches(broken, Reading((32, 24), on_unreadable="skip"), batch_size=24))["mask"]
    assert np.flatnonzero(~masks).tolist() == [4]


def test_for_a_class_without_any_readable_image_others_stand_in_under_their_own_labels(broken, caplog):
    for index in np.flatnonzero(broken.labels == 4):
        broken.files[index] = b"nothing"
    plan, whole = plan_of(broken), take(Memory(), 12)
    with caplog.at_level(logging.WARNING):
        batches = take(broken, 12, on_unreadable="skip")
    assert sum("no image of class 4 of memory can be read" in r.message for r in caplog.records) == 1
    met = 0
    for step, (batch, expected) in enumerate(zip(batches, whole, strict=True)):
        gone = broken.labels[plan.batch(step)] == 4
        met += gone.sum()
        assert (batch["label"][~gone] == expected["label"][~gone]).all()
        assert (batch["image"][~gone] == expected["image"][~gone]).all()
        # The next images that can be read are those of class 5, another for each of the four.
        assert (batch["label"][gone] == 5).all()
        if gone.any():
            assert len({image.tobytes() for image in batch["image"][gone]}) == gone.sum()
    assert met
    same(batches, take(broken, 12, on_unreadable="skip", num_workers=3))


def test_nothing_readable_at_all_is_an_error(broken):
    broken.files = [b"nothing"] * len(broken.files)
    with pytest.raises(UserError, match=r"none of the images of memory can be read, such as memory/\d+"):
        take(broken, 1, on_unreadable="skip")


@pytest.mark.usefixtures("made_by")
def test_an_error_comes_in_its_turn(broken):
    plan = plan_of(broken)
    turn = next(t for t in itertools.count() if 4 in plan.batch(t))
    batches = train_batches(broken, plan, Reading((32, 24), num_workers=4), augmentation=ALL, seed=7)
    for _ in range(turn):
        next(batches)
    with pytest.raises(UserError, match="memory/4"):
        next(batches)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"on_unreadable": "ignore"}, "data.on_unreadable: must be one of error, skip"),
        ({"image_size": (0, 4)}, "data.image_size: must be"),
        ({"num_workers": 0}, "data.num_workers: must be"),
        ({"host_count": 3}, "batch: 8 images cannot be divided evenly among 3 hosts"),
    ],
)
def test_arguments_out_of_range_are_refused_before_the_first_batch(source, kwargs, message):
    with pytest.raises(UserError, match=message):
        train_batches(
            source, plan_of(source), Reading(**{"image_size": (32, 24)} | kwargs), augmentation=ALL, seed=0
        )


@pytest.mark.slow
@pytest.mark.parametrize("start", ["", "sys.modules['tensorflow'] = None"])
def test_leaving_in_the_middle_ends_the_process(start):
    code = """
import sys; sys.path.insert(0, {here!r}); {start}
import test_batches as t
# Large, so that several batches are in the making when the process ends.
batches = t.train_batches(t.Memory(), t.plan_of(t.Memory()), t.Reading((320, 240)), augmentation=t.ALL, seed=0)
next(batches); print("fine")
"""
    here = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", code.format(here=here, start=start)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
