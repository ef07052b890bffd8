"""A whole run, and every command, with its working directory in a bucket of a real server."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys

import buckets
import drawings
import numpy as np
import peers
import pytest

import hap2s_jax
from hap2s_jax import check_data, embed, evaluate, export, extras, main, pack, search
from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.event_files import EVENT_FILES, read_events
from hap2s_jax.reporting.metric_log import MetricLog, read_metrics
from hap2s_jax.run import initial_weights

ROOT = pathlib.Path(__file__).parents[2]
OVERRIDES = {
    "steps": 4,
    "num_devices": 1,
    "encoder.name": "small_encoder:make",
    "schedule.name": "constant",
    "batch.classes": 4,
    "evaluate.every_steps": 2,
    "checkpoint.every_steps": 1,
    "log.every_steps": 1,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return drawings.noisy(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def bucket():
    with buckets.serving() as address, pytest.MonkeyPatch.context() as patch:
        buckets.use(patch, address)
        patch.syspath_prepend(str(ROOT))
        yield buckets.new_bucket(address)


def train(images, workdir, **changes):
    config = importlib.import_module("configs.folder").get_config("tiny,scratch")
    config.update_from_flattened_dict({**OVERRIDES, "data.data_dir": str(images), **changes})
    return main.run(config, workdir)


def _break_after(patch, step):
    from hap2s_jax.run.trainer import Trainer

    plain = Trainer.train_batches

    def broken(self, start):
        for number, batch in enumerate(plain(self, start), start):
            if number > step:
                raise InterruptedError
            yield batch

    patch.setattr(Trainer, "train_batches", broken)


@pytest.fixture(scope="module")
def runs(images, bucket, tmp_path_factory):
    """The same run on a disk, at once, and in the bucket, in two goes."""
    local = tmp_path_factory.mktemp("runs") / "run"
    there = f"{bucket}/runs/one"
    on_disk = train(images, local)
    with pytest.MonkeyPatch.context() as patch:
        _break_after(patch, 2)
        with pytest.raises(InterruptedError):
            train(images, there)
    in_bucket = train(images, there)
    return local, there, on_disk, in_bucket


def files(path):
    return sorted(file.name for file in path.iterdir() if not file.match(EVENT_FILES))


def test_a_run_leaves_in_a_bucket_what_it_leaves_on_a_disk_bit_for_bit(runs):
    local, there, on_disk, in_bucket = runs
    assert files(place(there)) == files(local)
    assert files(place(there) / "checkpoints") == files(local / "checkpoints")
    assert {k: on_disk[k] for k in ("test", "validation", "untrained", "baselines")} == {
        k: in_bucket[k] for k in ("test", "validation", "untrained", "baselines")
    }
    assert json.loads((place(there) / "results.json").read_text()) == json.loads(json.dumps(in_bucket))

    def numbers(workdir):
        timed = ("images_per_second", "input_wait_fraction", "seconds")
        return [{k: v for k, v in r.items() if not k.endswith(timed)} for r in read_metrics(workdir)]

    assert numbers(there) == numbers(local)
    (events,) = place(there).glob(EVENT_FILES)
    steps = [event.step for event in read_events(events) if event.summary.value]
    assert steps == [record["step"] for record in read_metrics(local)]
    for ours, theirs in zip(
        *(sorted((place(p) / "checkpoints").iterdir()) for p in (there, local)), strict=True
    ):
        assert ours.name == theirs.name


def test_it_is_loaded_embedded_searched_evaluated_and_exported_there(runs, images, bucket, capsys):
    local, there, *_ = runs
    some = sorted(images.glob("class0*/0.png"))
    ours, theirs = (hap2s_jax.load(w, own_code=True) for w in (there, local))
    assert ours.fingerprint == theirs.fingerprint
    np.testing.assert_array_equal(ours(some), theirs(some))

    _, report = initial_weights.load(there, None, theirs.variables)
    assert report.source == f"{there}, step {ours.step}"

    vectors, found = f"{bucket}/out/vectors.npz", f"{bucket}/out/found"
    encoder = [f"--workdir={there}", "--own_code"]
    for command, arguments in (
        (embed, [*encoder, f"--images={images}", f"--output={vectors}"]),
        (embed, [*encoder, f"--images={images}", f"--output={vectors}"]),  # it is there already
        (search, [*encoder, f"--gallery={vectors}", f"--query={some[0]}", f"--json={found}.json"]),
        (evaluate, [f"--embeddings={vectors}", f"--json={found}.figures.json", f"--per_query={found}.csv"]),
        (evaluate, [*encoder, f"--worst={found}.png", "--no_cluster"]),
        (export, [*encoder, f"--output={bucket}/out/exported", "--formats=safetensors"]),
    ):
        code = command.main(arguments)
        assert code == 0, capsys.readouterr().err
    assert "already holds these embeddings" in capsys.readouterr().out
    assert json.loads(place(f"{found}.json").read_text())[0]["hits"][0]["path"] == "class00/0.png"
    assert place(f"{found}.png").read_bytes().startswith(b"\x89PNG")
    assert len(place(f"{found}.csv").read_text().splitlines()) == 121
    assert files(place(f"{bucket}/out/exported")) == ["encoder.safetensors", "preprocessing.json"]
    assert files(place(f"{bucket}/out")) == [
        "exported",
        "found.csv",
        "found.figures.json",
        "found.json",
        "found.png",
        "vectors.npz",
    ]
    # Where a file of somebody else's says that it was made, nobody goes by himself.
    assert search.main([f"--gallery={vectors}", f"--query={some[0]}", "--own_code"]) == 1
    assert "which is on no disk, and opened only where you name it; give --workdir" in capsys.readouterr().err


@pytest.fixture(scope="module")
def packed(images, bucket):
    assert pack.main([f"--data_dir={images}", f"--output={bucket}/packed/photos"]) == 0
    return f"{bucket}/packed/photos"


def test_packed_images_in_the_bucket_train_the_same_run(runs, packed, bucket, tmp_path, capsys):
    local, there, on_disk, _ = runs
    workdir = f"{bucket}/runs/packed"
    found = train(packed, workdir, **{"data.cache_dir": str(tmp_path)})
    assert found["test"] == on_disk["test"]
    assert (
        hap2s_jax.load(workdir, own_code=True).fingerprint == hap2s_jax.load(local, own_code=True).fingerprint
    )
    assert place(f"{workdir}/data.json").read_text() == (local / "data.json").read_text()
    # The same images to resume with, to measure on, and to look through.
    train(packed, local)
    assert "warning" not in capsys.readouterr().err
    assert evaluate.main([f"--workdir={there}", "--own_code", f"--data_dir={packed}", "--no_cluster"]) == 0
    assert check_data.main(["--name=folder", f"--data_dir={packed}"]) == 0
    assert "verdict: ready to train" in capsys.readouterr().out
    assert check_data.main(["--name=folder", f"--data_dir={bucket}/nothing"]) == 1
    assert "holds no packed data set folder; pack it first" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_the_bucket_goes_on_on_other_numbers_of_devices_and_processes(
    runs, packed, bucket, tmp_path
):
    local, workdir = runs[0], f"{bucket}/runs/moved"
    train(packed, workdir, steps=1)
    changes = {**OVERRIDES, "num_devices": 4, "data.data_dir": packed, "steps": 3}
    settings = [f"--config.{key}={value}" for key, value in changes.items()]
    with peers.free_address() as address:
        joint = [f"--workdir={workdir}", f"--coordinator={address}", "--num_processes=2"]
        command = [
            sys.executable,
            "-m",
            "hap2s_jax.main",
            "--config=configs/folder.py:tiny,scratch",
            *joint,
            *settings,
        ]
        workers = peers.start([[*command, f"--process_id={n}"] for n in range(2)], tmp_path, devices=2)
        peers.wait(workers, 600)
    assert [worker.code for worker in workers] == [0, 0], workers[0].err[-3000:]
    assert "resuming at step 1 of 3" in workers[0].err + workers[0].out
    train(packed, workdir, num_devices=2)
    ours, theirs = (
        {r["step"]: r["train/loss"] for r in read_metrics(w) if "train/loss" in r} for w in (workdir, local)
    )
    assert list(ours) == [1, 2, 3, 4]
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours[2] == pytest.approx(theirs[2], rel=1e-5)


def test_tensorflow_reads_the_events_in_the_bucket_while_the_run_goes_on(bucket, tmp_path):
    import tensorflow as tf

    there, seen = place(f"{bucket}/runs/going"), []
    with MetricLog(there, tensorboard=True) as log:
        for step in (1, 2):
            log.write(step, {"train/loss": 0.5 * step})
            log.flush()
            (events,) = there.glob(EVENT_FILES)
            # What `tensorboard --logdir` would fetch now; TensorFlow's own client knows no other server than Google's.
            (tmp_path / events.name).write_bytes(events.read_bytes())
            found = tf.compat.v1.train.summary_iterator(str(tmp_path / events.name))
            seen.append([v.simple_value or v.tensor.float_val[0] for e in found for v in e.summary.value])
    assert seen == [[0.5], [0.5, 1.0]]


@pytest.mark.parametrize(
    ("workdir", "says"),
    [
        ("s3://bucket/run", "orbax, which writes checkpoints, has no s3:// paths; mount it as a folder"),
        ("gs:/bucket/run", "it should read gs://BUCKET/FOLDER"),
        ("gs://", "it should read gs://BUCKET/FOLDER"),
        ("gs://no-such-bucket/run", "there is no bucket no-such-bucket"),
    ],
)
def test_what_is_no_place_is_one_line(workdir, says, bucket, images, capsys):
    config = [f"--config={ROOT}/configs/folder.py:tiny,scratch", f"--config.data.data_dir={images}"]
    for command, arguments in (
        (main, [*config, f"--workdir={workdir}"]),
        (embed, [f"--workdir={workdir}", f"--images={images}", "--output=x.npz"]),
    ):
        assert command.main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line or (command is embed and "holds no run" in line)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(extras.MODULES, "gcs", ("no_such_module",))
    with pytest.raises(UserError, match=r'gs://bucket/run needs no_such_module.*"hap2s_jax\[gcs\]"'):
        place("gs://bucket/run")
