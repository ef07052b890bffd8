import numpy as np
import pytest

from hap2s_jax.data import emoji
from hap2s_jax.data.emoji import baseline
from hap2s_jax.data.source import Subset
from hap2s_jax.distributed.devices import DataParallel
from hap2s_jax.evaluation import evaluate, raw_pixels
from hap2s_jax.evaluation.embed import embed_dataset


def _batches(images, batch_size, skip=()):
    for start in range(0, len(images), batch_size):
        index = np.arange(start, start + batch_size)
        mask = (index < len(images)) & ~np.isin(index, skip)
        index = np.minimum(index, len(images) - 1)
        yield {"image": images[index], "index": index.astype(np.int32), "mask": mask}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [1, 15, 16, 37])
def test_every_image_exactly_once_and_in_order(devices, count):
    parallel = DataParallel.create(devices)
    images = np.random.default_rng(0).integers(0, 255, (count, 2, 2, 3), np.uint8)
    embed = parallel.compile_map(lambda variables, x: variables * x.reshape(x.shape[0], -1).astype("float32"))
    embeddings, present = embed_dataset(embed, np.float32(2), _batches(images, 16), count, parallel)
    np.testing.assert_array_equal(embeddings, 2.0 * images.reshape(count, -1))
    assert present.all()
    assert embeddings.dtype == np.float32


def test_unreadable_images_are_absent():
    parallel = DataParallel.create(1)
    images = np.ones((20, 1, 1, 3), np.uint8)
    embed = parallel.compile_map(lambda variables, x: x.reshape(x.shape[0], -1).astype("float32"))
    embeddings, present = embed_dataset(embed, None, _batches(images, 8, skip=(3, 17)), 20, parallel)
    assert np.flatnonzero(~present).tolist() == [3, 17]
    np.testing.assert_array_equal(embeddings[[3, 17]], 0)


def test_an_image_brought_twice_is_an_error():
    parallel = DataParallel.create(1)
    images = np.ones((4, 1, 1, 3), np.uint8)
    embed = parallel.compile_map(lambda variables, x: x.reshape(x.shape[0], -1).astype("float32"))
    with pytest.raises(RuntimeError, match="twice"):
        embed_dataset(embed, None, [*_batches(images, 4), *_batches(images, 4)], 4, parallel)


def test_raw_pixels_are_the_shipped_baseline_of_the_emoji():
    test = emoji.load().test
    rows = np.arange(0, len(test), 8) // 8 * 8
    some = Subset(test, np.concatenate([rows, rows + 1, rows + 2]))
    images = baseline.decode(some)
    figures = evaluate(
        raw_pixels.embed(None, images),
        some.labels,
        some.cameras,
        protocols=("class", "query_gallery"),
        cluster=False,
    )
    for name, value in baseline.pixel_baseline(images, some.labels, some.cameras).items():
        assert abs(figures[name] - value) < 2e-3, name
    assert raw_pixels.size_of((256, 128)) == (64, 32)
    assert raw_pixels.size_of((32, 48)) == (32, 48)
    assert raw_pixels.is_affordable(2000, (224, 224))
    assert not raw_pixels.is_affordable(3000, (224, 224))
