"""`hap2s_jax.load`: the same embeddings as training's own evaluation, from a copied folder alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import hap2s_jax
from hap2s_jax.data import pixels
from hap2s_jax.errors import UserError
from hap2s_jax.serving.trained import fingerprint
from hap2s_jax.training import digests


@pytest.fixture(scope="module")
def encoder(run):
    return hap2s_jax.load(run.workdir)


def _files(run):
    return [run.source.read(n) for n in range(len(run.source))]


def test_agrees_with_the_runs_own_evaluation(run, encoder, reference, folder):
    assert (encoder.step, encoder.average, encoder.dim) == (3, True, reference.shape[1])
    from_bytes = encoder(_files(run))
    assert from_bytes.dtype == np.float32
    np.testing.assert_allclose(from_bytes, reference, atol=1e-5)
    np.testing.assert_array_equal(encoder(folder[1]), from_bytes)
    np.testing.assert_allclose(encoder([str(p) for p in folder[1]], batch_size=10), reference, atol=1e-5)


def test_a_batch_of_nothing_is_refused(encoder, folder):
    for size in (0, -3):
        with pytest.raises(UserError, match=f"batch_size is {size}; it should be at least 1"):
            encoder(folder[1], batch_size=size)


def test_arrays_of_any_size_and_single_images(run, encoder, reference):
    arrays = [pixels.decode_whole(data) for data in _files(run)[:5]]
    np.testing.assert_allclose(encoder(arrays), reference[:5], atol=1e-5)
    np.testing.assert_allclose(encoder(np.stack(arrays)), reference[:5], atol=1e-5)
    np.testing.assert_allclose(encoder(arrays[0]), reference[:1], atol=1e-5)
    assert encoder([]).shape == (0, encoder.dim)


def test_pillows_images_are_what_their_files_are(encoder, reference, folder):
    opened = [Image.open(path) for path in folder[1][:3]]
    np.testing.assert_allclose(encoder(opened), reference[:3], atol=1e-5)
    np.testing.assert_allclose(encoder(opened[0]), reference[:1], atol=1e-5)
    mixed = [opened[1], folder[1][0], np.asarray(opened[2].convert("RGB"))]
    np.testing.assert_allclose(encoder(mixed), reference[[1, 0, 2]], atol=1e-5)
    printed = opened[0].convert("RGB").convert("CMYK")
    sideways = printed.transpose(Image.Transpose.ROTATE_90)
    sideways.getexif()[274] = 6
    np.testing.assert_array_equal(encoder.preprocess(sideways), encoder.preprocess(printed))
    cut_out = Image.fromarray(np.zeros((64, 64, 4), np.uint8))
    assert (encoder.preprocess(cut_out) == encoder.config.data.background[0]).all()


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("average", [True, False])
def test_any_checkpoint_and_either_weights(run, step, average):
    found = hap2s_jax.load(run.workdir, checkpoint=step, average=average)
    state = run.states[step]
    expected = (state.ema_params if average else state.params)["encoder"]["trunk"]["stem_conv1"]["kernel"]
    np.testing.assert_array_equal(found.variables["params"]["trunk"]["stem_conv1"]["kernel"], expected)
    mean = found.variables["batch_stats"]["trunk"]["stem_bn1"]["mean"]
    statistics = state.ema_params["batch_stats"] if average else state.batch_stats
    np.testing.assert_array_equal(mean, statistics["trunk"]["stem_bn1"]["mean"])
    named = hap2s_jax.load(run.workdir, checkpoint={3: "best", 6: "latest"}[step], average=average)
    assert named.fingerprint == found.fingerprint
    assert hap2s_jax.load(run.workdir, checkpoint=step, average=not average).fingerprint != found.fingerprint


def test_means_over_views_that_once_were_shorter_are_other_embeddings(encoder):
    config = encoder.config.copy_and_resolve_references()

    def digest(**changes):
        config.update_from_flattened_dict(changes)
        return fingerprint({}, config)

    with config.unlocked():
        assert digest(**{"evaluate.distance": "euclidean", "encoder.normalize": True}) != digest(
            **{"encoder.normalize": False, "encoder.bnneck": False}
        )
        assert digest(**{"evaluate.distance": "cosine"}) == digest(**{"encoder.normalize": True})
        plain = digest(**{"evaluate.distance": "euclidean", "evaluate.flip": False})
        assert plain == digest(**{"encoder.normalize": False})


def test_one_unreadable_image_of_a_stream_is_reported_in_its_place(encoder, reference, folder, tmp_path):
    (tmp_path / "no.png").write_text("<html>")
    paths = [*folder[1][:20], tmp_path / "no.png", tmp_path / "missing.png", *folder[1][20:40]]
    batches = list(encoder.stream(iter(paths), batch_size=8, workers=2))
    assert len({len(batch.failures) for batch in batches[:-1]}) == 1
    failures = [failure for batch in batches for failure in batch.failures]
    rows = np.concatenate([batch.embeddings for batch in batches])
    assert [n for n, failure in enumerate(failures) if failure is not None] == [20, 21]
    np.testing.assert_allclose(rows[[*range(20), *range(22, 42)]], reference[:40], atol=1e-5)
    assert not rows[20:22].any()
    with pytest.raises(UserError, match=r"no\.png cannot be read: this is not an image"):
        encoder(paths)


def test_what_is_no_image(encoder):
    for wrong, says in (
        (np.zeros((4, 8, 8, 3), np.float32), "float32"),
        ([np.zeros((8, 8), np.uint8)], r"\[8, 8\]"),
        ([None], "NoneType"),
    ):
        with pytest.raises(TypeError, match=says):
            encoder(wrong)


_ELSEWHERE = """
import pickle, sys

def refuse(*arguments, **options):
    raise AssertionError("something was unpickled")

import hap2s_jax
hap2s_jax.load  # imports it
pickle.load = pickle.loads = pickle.Unpickler = refuse
encoder = hap2s_jax.load("copy")
import numpy as np
np.save("there.npy", encoder(sys.argv[1:]))
loaded = {m.split(".")[0] for m in sys.modules}
assert not loaded & {"tensorflow", "tensorflow_datasets", "matplotlib", "configs"}, loaded
"""


def test_a_copied_folder_is_enough_and_tensorflow_is_not_needed(run, folder, reference, tmp_path):
    shutil.copytree(run.workdir, tmp_path / "copy")
    for path in [tmp_path / "copy", *(tmp_path / "copy").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    # No import path to the configs, one device instead of eight.
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(run.workdir.parent)}
    arguments = [sys.executable, "-c", _ELSEWHERE, *map(str, folder[1][:6])]
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    np.testing.assert_allclose(np.load(tmp_path / "there.npy"), reference[:6], atol=1e-5)
    (tmp_path / "there.npy").unlink()
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


def _copy(run, tmp_path):
    return shutil.copytree(run.workdir, tmp_path / "broken")


def _refused(workdir, **options):
    with pytest.raises(UserError) as caught:
        hap2s_jax.load(workdir, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_run_and_no_finished_checkpoint(run, tmp_path):
    assert "holds no run" in _refused(tmp_path)
    workdir = _copy(run, tmp_path)
    for step in (3, 6):
        (workdir / "checkpoints" / str(step)).rename(
            workdir / "checkpoints" / f"{step}.orbax-checkpoint-tmp-7"
        )
    assert "no finished checkpoint" in _refused(workdir)
    shutil.rmtree(workdir / "checkpoints")
    assert "no finished checkpoint" in _refused(workdir)


def test_a_damaged_checkpoint(run, tmp_path):
    workdir = _copy(run, tmp_path)
    for file in (workdir / "checkpoints" / "3" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"garbage")
    assert "3" in _refused(workdir, strict=True)
    assert hap2s_jax.load(workdir).step == 6
    shutil.rmtree(workdir / "checkpoints" / "6" / "state")
    assert "6 is damaged" in _refused(workdir, checkpoint=6)


def test_newer_versions(run, tmp_path):
    workdir = _copy(run, tmp_path)
    record = workdir / "checkpoints" / "3" / "record" / "metadata"
    record.write_text(record.read_text().replace('"format": 1', '"format": 99'))
    digests.write(record.parents[1])
    assert "format 99" in _refused(workdir, checkpoint=3)
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "encoder": {**config["encoder"], "attention": 7}}))
    assert "attention" in _refused(workdir, checkpoint=6)
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "evaluate"}))
    assert "another version" in _refused(workdir, checkpoint=6)
    path.write_text(json.dumps({**config, "encoder": {**config["encoder"], "width": 16}}))
    assert "does not fit the config" in _refused(workdir, checkpoint=6)
    path.write_text("{")
    assert "cannot be read" in _refused(workdir, checkpoint=6)


def test_checkpoints_that_are_not_there(run):
    assert "[3, 6]" in _refused(run.workdir, checkpoint=5)
    assert "'newest'" in _refused(run.workdir, checkpoint="newest")


def test_an_average_that_was_not_kept(run, tmp_path):
    workdir = _copy(run, tmp_path)
    checkpointer = run.job.checkpointer(workdir)
    checkpointer.save(run.states[6].replace(step=jnp.int32(9), ema_params=None))
    checkpointer.close()
    assert "no moving average" in _refused(workdir, checkpoint="latest", average=True)
    assert not hap2s_jax.load(workdir, checkpoint="latest").average
