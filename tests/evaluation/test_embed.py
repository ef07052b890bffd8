import numpy as np
import pytest

from hap2s_jax.distributed.devices import DataParallel
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
