import numpy as np
import pytest

from hap2s_jax.data import emoji, pixels
from hap2s_jax.data.source import Subset
from hap2s_jax.data.turns import QuarterTurns
from hap2s_jax.errors import UserError
from hap2s_jax.recipes import common


@pytest.fixture(scope="module")
def upright():
    return Subset(emoji.load().train, np.arange(40))


def test_every_turn_is_a_class_of_its_own(upright):
    turned, n, classes = QuarterTurns(upright), len(upright), len(upright.class_names)
    assert len(turned) == len(turned.labels) == len(turned.cameras) == 4 * n
    assert len(turned.class_names) == len(set(turned.class_names)) == 4 * classes
    assert list(turned.class_names) == sorted(turned.class_names)
    for turn in range(4):
        part = slice(turn * n, (turn + 1) * n)
        np.testing.assert_array_equal(turned.labels[part], upright.labels + turn * classes)
        np.testing.assert_array_equal(turned.cameras[part], upright.cameras)


def test_images_are_turned_and_nothing_else(upright):
    turned, n = QuarterTurns(upright), len(upright)
    image = pixels.decode_whole(upright.read(7))
    assert turned.read(7) == upright.read(7)
    # By hand: after one turn anticlockwise the right edge is the top.
    once = pixels.decode_whole(turned.read(n + 7))
    np.testing.assert_array_equal(once[0], image[:, -1])
    np.testing.assert_array_equal(once[:, 0], image[0, ::-1])
    np.testing.assert_array_equal(pixels.decode_whole(turned.read(2 * n + 7)), image[::-1, ::-1])
    thrice = pixels.decode_whole(turned.read(3 * n + 7))
    np.testing.assert_array_equal(thrice[0], image[::-1, 0])
    assert turned.describe(7) == upright.describe(7)
    assert turned.describe(3 * n + 7) == upright.describe(7) + " turned by 270 degrees"


def test_junk_stays_junk(upright):
    upright = Subset(upright, np.arange(4), relabel=False)
    upright.labels = np.array([0, -1, 1, -1], np.int32)
    np.testing.assert_array_equal(QuarterTurns(upright).labels[[1, 3, 5, 7, 9, 11, 13, 15]], -1)


def test_boxes_are_refused_by_name(upright):
    upright = Subset(upright, np.arange(4))
    upright.boxes = np.zeros((4, 4), int)
    with pytest.raises(UserError, match=r"data.quarter_turns: the images of .* have boxes"):
        QuarterTurns(upright)


def test_a_config_turns_the_training_images_alone():
    from hap2s_jax.run.trainer import Trainer

    config = common.get_config()
    config.data.name = "emoji"
    config.num_devices = 1
    plain = Trainer.create(config).dataset
    config.data.quarter_turns = True
    job = Trainer.create(config)
    assert len(job.dataset.train) == 4 * len(plain.train)
    assert job.plan.num_classes == 4 * len(plain.train.class_names)
    assert (len(job.dataset.validation), len(job.dataset.test)) == (len(plain.validation), len(plain.test))
