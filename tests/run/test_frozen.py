"""A frozen trunk with kept features: the same training as with the trunk in the graph, made once, and gone on with."""

import functools
import importlib
import json
import sys

import cv2
import jax
import numpy as np
import peers
import pytest

import hap2s_jax
from hap2s_jax import embed, main, search
from hap2s_jax.data.batches import Reading, train_batches
from hap2s_jax.data.datasets import load
from hap2s_jax.distributed.devices import AXIS
from hap2s_jax.errors import Preempted, UserError
from hap2s_jax.evaluation import evaluate
from hap2s_jax.models import pretrained, registry
from hap2s_jax.models.vit_families import DINOV2, SIGLIP, ViTArchitecture
from hap2s_jax.recipes import common
from hap2s_jax.run import initial_weights
from hap2s_jax.run.learner import Learner
from hap2s_jax.run.trainer import Trainer
from hap2s_jax.training import optimizer, step
from hap2s_jax.training.checkpoint import Checkpointer
from hap2s_jax.training.state import assemble_state

VIEWS = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten classes of five images of a colour and noise of their own, in folders."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label in range(10):
        (root / f"c{label}").mkdir()
        for number in range(5):
            colour = np.array([25 * label, 200 - 20 * label, 20 * number])
            pixels = np.clip(rng.normal(colour, 30, (40, 44, 3)), 0, 255)
            cv2.imwrite(str(root / f"c{label}" / f"{number}.png"), pixels.astype(np.uint8))
    return root


@pytest.fixture
def config(images, monkeypatch):
    """Makes configs of a frozen transformer that compiles in a moment, and whose pooling has parameters too."""
    monkeypatch.setitem(registry.VITS, "tiny", ViTArchitecture(SIGLIP, 16, 1, 2, 16, 2))

    def make(**changes):
        config = common.get_config()
        config.update_from_flattened_dict(
            {
                "data.name": "folder",
                "data.data_dir": str(images),
                "data.image_size": (32, 32),
                "data.validation_fraction": 0.4,
                "batch.classes": 2,
                "batch.images_per_class": 4,
                "encoder.name": "tiny",
                "encoder.pooling": "attention",
                "encoder.hidden_dim": 8,
                "encoder.embedding_dim": 16,
                "encoder.frozen": True,
                "optimizer.name": "sgd",
                "optimizer.learning_rate": 0.01,
                "num_devices": 1,
                "compilation_cache": "",
                "log.tensorboard": False,
                "checkpoint.best_metric": "recall@1",
            }
            | changes
        )
        config.data.options = {"test_fraction": 0.5, "columns": ""}
        return config.lock()

    return make


RANDOM_VIEWS = {"data.cached_views": VIEWS, "augment.flip": True, "augment.crop": "resized"}


def _featured(config, folder, stop=lambda: False, kept=None):
    trainer = Trainer.create(config)
    state, first, _ = trainer.with_initial_weights(trainer.initial_state())
    kept = first if kept is None else kept
    trainer = trainer.on_features(kept, folder, stop)
    assert trainer.features is not None
    return trainer, trainer.features.train, state, kept


class _Everything:
    def __init__(self, count):
        self.count = count

    def batch(self, step):
        return (64 * step + np.arange(64)) % self.count


def test_twenty_updates_are_those_with_the_trunk_in_the_graph(config, tmp_path):
    settings = config(**RANDOM_VIEWS)
    trainer, rows, state, kept = _featured(settings, tmp_path)
    train = trainer.dataset.train
    walk = train_batches(
        train, _Everything(len(train)), Reading((32, 32)), augmentation=trainer.augmentation, seed=0
    )
    count = VIEWS * len(train)
    views = np.concatenate([next(walk)["image"] for _ in range(-(-count // 64))])[:count]
    assert len(np.unique(views.reshape(count, -1), axis=0)) == count
    encoder = trainer.learner.encoder
    features = encoder.apply(kept, views, method="pooled")
    np.testing.assert_allclose(rows[:, :-1], features, atol=1e-5)

    head = jax.tree.map(np.array, trainer.variables(state))  # copies, since the state is donated
    whole = {name: {**kept.get(name, {}), "head": head[name]["head"]} for name in head}
    transform = optimizer.create_optimizer(
        "sgd", trainer.learner.schedule, frozen=tuple(f"encoder/{p}" for p in encoder.frozen_parameters)
    )
    in_graph = assemble_state(whole, transform)
    bound = functools.partial(
        step.train_step,
        encoder=encoder,
        objective=trainer.learner.objective,
        optimizer=transform,
        axis_name=AXIS,
    )
    update = jax.jit(jax.vmap(bound, in_axes=(None, 0), out_axes=None, axis_name=AXIS))
    batches, again = trainer.train_batches(0), trainer.train_batches(7)
    state, used = trainer.parallel.replicate(state), set()
    for number in range(20):
        batch = next(batches)
        if number >= 7:
            jax.tree.map(np.testing.assert_array_equal, batch, next(again))
        chosen = [int(np.flatnonzero((rows[:, :-1] == row).all(1))[0]) for row in batch["image"][0]]
        np.testing.assert_array_equal(train.labels[np.array(chosen) % len(train)], batch["label"][0])
        used |= set(chosen)
        state, metrics = trainer.update(state, batch)
        in_graph, expected = update(in_graph, {"image": views[chosen][None], "label": batch["label"]})
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5, atol=1e-5)
    assert len(used) > len(train)  # of more than one view
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, state.batch_stats, in_graph.batch_stats)
    found, expected = state.params["encoder"]["head"], in_graph.params["encoder"]
    jax.tree.map(close, found, expected["head"])
    for room in ("trunk", "pooling"):
        jax.tree.map(np.testing.assert_array_equal, kept["params"][room], expected[room])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), head["params"]["head"], found)
    assert min(jax.tree.leaves(moved)) > 1e-6


def test_features_are_made_once_and_gone_on_with(config, tmp_path, monkeypatch):
    from hap2s_jax.run import frozen

    monkeypatch.setattr(frozen, "_BATCHES_PER_WRITE", 1)
    monkeypatch.setattr(frozen, "_ON_A_CPU", 8)
    monkeypatch.setattr(frozen, "_DRAWN_TOGETHER", 8)
    settings = config(**RANDOM_VIEWS, **{"evaluate.batch_size": 8})
    whole, rows, _, kept = _featured(settings, tmp_path / "whole")
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 4

    with pytest.raises(Preempted):
        _featured(settings, tmp_path / "cut", stop)
    file = tmp_path / "cut" / "features" / "train.f32"
    row = 4 * rows.shape[1]
    assert file.stat().st_size == 3 * 8 * row
    with file.open("ab") as half:
        half.write(b"half a row")
    asked = [0] * 10
    _featured(settings, tmp_path / "cut", stop)
    made = len(asked) - 10
    other_head = config(**RANDOM_VIEWS, **{"evaluate.batch_size": 8, "encoder.embedding_dim": 4})
    _featured(other_head, tmp_path / "whole", lambda: pytest.fail("an image went through the trunk again"))
    for name in ("train", "validation", "test"):
        files = [tmp_path / run / "features" / f"{name}.f32" for run in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()
    sizes = [len(rows), *(len(part) for part in (whole.dataset.validation, whole.dataset.test) if part)]
    assert made == sum(-(-size // 8) for size in sizes) - 3
    # Another trunk has other features.
    other = jax.tree.map(lambda x: x + 1, kept)
    _, changed, _, _ = _featured(settings, tmp_path / "whole", kept=other)
    assert not np.isclose(changed[:, 0], np.fromfile(file, np.float32)[:: row // 4]).any()


def test_images_that_cannot_be_read_are_named_or_left_out(config, images, tmp_path):
    dataset = load("folder", data_dir=str(images), validation_fraction=0.4, seed=0, test_fraction=0.5)
    for part in (dataset.train, dataset.test):
        path = images / part.describe(0).split(str(images) + "/")[-1]
        before = path.read_bytes()
        path.write_bytes(b"no image")
        try:
            with pytest.raises(UserError, match=path.name):
                _featured(config(), tmp_path / "error")
            trainer, rows, state, _ = _featured(config(**{"data.on_unreadable": "skip"}), tmp_path / "skip")
            _, present = trainer.embeddings(state, trainer.dataset.test)
            assert present.sum() == len(present) - (part is dataset.test)
            # Another image of the class stands in for one to train on.
            np.testing.assert_array_equal(rows[:, -1], trainer.dataset.train.labels)
            assert len(np.unique(rows, axis=0)) == len(rows) - (part is dataset.train)
        finally:
            path.write_bytes(before)


def _fake_hub(folder, repository):
    """A cache as huggingface_hub lays it out, of random weights by transformers' names; and the model itself."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("huggingface_hub")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, patch_size=14)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the small values that hide what attention does
            parameter.add_(0.1 * torch.randn_like(parameter))
    cached = folder / f"models--{repository.replace('/', '--')}"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    pretrained.write_safetensors(tensors, snapshot / "model.safetensors")
    return model


@pytest.mark.slow
def test_own_photos_then_frozen_dinov2_then_search(images, tmp_path, monkeypatch, request, capsys):
    monkeypatch.syspath_prepend(str(request.config.rootpath))
    monkeypatch.setitem(registry.VITS, "dinov2_vits14", ViTArchitecture(DINOV2, 16, 2, 2, 14, 4))
    theirs = _fake_hub(tmp_path / "hub", "facebook/dinov2-small")
    run = tmp_path / "run"

    def train(steps):
        config = importlib.import_module("configs.folder").get_config("dinov2")
        config.data.data_dir, config.data.image_size = str(images), (42, 42)
        config.pretrained.cache_dir, config.pretrained.offline = str(tmp_path / "hub"), True
        config.steps, config.evaluate.every_steps, config.checkpoint.every_steps = steps, 2, 2
        config.compilation_cache, config.log.tensorboard, config.num_devices = "", False, 2
        config.ema_decay, config.data.validation_fraction = 0.5, 0.4
        return main.run(config, run)

    train(4)
    said = capsys.readouterr().out
    assert "weights from hf://facebook/dinov2-small" in said
    assert "at random stay head/embedding/bias, head/embedding/kernel" in said
    results = train(6)
    assert "pretrained backbone" in capsys.readouterr().out
    checkpointer = Checkpointer(run / "checkpoints", read_only=True)
    weights = checkpointer.restore_weights(6)
    checkpointer.close()
    assert weights["params"]["encoder"].keys() == {"head"}

    # The trunk's own figures are those of transformers' model, the run's those of the loaded encoder.
    encoder = hap2s_jax.load(run)
    test = load("folder", data_dir=str(images), validation_fraction=0.4, seed=0, test_fraction=0.5).test
    photos = [test.read(n) for n in range(len(test))]
    shown = np.stack([encoder.preprocess(photo) for photo in photos]) / 255.0
    standard = (shown - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    torch = importlib.import_module("torch")
    with torch.no_grad():
        tokens = theirs(torch.from_numpy(standard.transpose(0, 3, 1, 2)).float()).last_hidden_state
    for name, features, distance in (
        ("as_it_comes", tokens[:, 0].numpy(), "cosine"),
        ("test", encoder(photos), "euclidean"),
    ):
        figures = evaluate(features, test.labels, distance=distance, cluster=False)
        assert {k: results[name][k] for k in figures} == pytest.approx(figures, abs=1e-6)
    assert json.loads((run / "thresholds.json").read_text())["weights"] == encoder.fingerprint

    gallery, query = tmp_path / "gallery.npz", str(images / "c3" / "2.png")
    assert embed.main([f"--workdir={run}", f"--images={images}", f"--output={gallery}"]) == 0
    assert search.main([f"--gallery={gallery}", "--threshold=none", "--k=1", "--query", query]) == 0
    assert "c3/2.png" in capsys.readouterr().out.splitlines()[-2]
    # Another run takes trunk and head of this one.
    variables, report = initial_weights.from_run(run, encoder.variables)
    assert not report.initial
    jax.tree.map(np.testing.assert_array_equal, variables["params"], encoder.variables["params"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"augment.flip": True, "augment.crop": "pad"}, "augment.crop, augment.flip: .* data.cached_views=4"),
        ({"encoder.frozen": False, "data.cached_views": 2}, "data.cached_views is 2; .* encoder.frozen"),
        (
            {"optimizer.trunk_factor": 0.1, "evaluate.flip": True},
            "evaluate.flip, optimizer.trunk_factor: no effect",
        ),
        (
            {"encoder.frozen": False, "encoder.name": "resnet10", "encoder.pooling": "gap"}
            | {"optimizer.layer_decay": 0.5},
            "layer_decay applies to transformers, and not to resnet10",
        ),
        ({"encoder.embedding_dim": 0, "encoder.hidden_dim": 0}, "embedding_dim is 0, .* nothing to train"),
        ({"encoder.frozen_blocks": 1}, "frozen_blocks: no effect with a frozen"),
        ({"encoder.name": "small_encoder:SmallEncoder"}, "takes no option"),
    ],
)
def test_keys_that_do_not_apply_are_named(config, changes, words):
    with pytest.raises(UserError, match=words):
        Learner.create(config(**changes))


@pytest.mark.slow
def test_two_processes_make_the_features_once_and_have_the_results_of_one(images, tmp_path):
    changes = {
        "data.data_dir": images,
        "data.image_size": "32,32",
        "data.options.test_fraction": 0.5,
        "data.validation_fraction": 0.4,
        "data.cached_views": VIEWS,
        "augment.flip": True,
        "batch.classes": 2,
        "encoder.name": "resnet10",
        "encoder.width": 4,
        "encoder.frozen": True,
        "encoder.embedding_dim": 8,
        "steps": 6,
        "evaluate.every_steps": 3,
        "checkpoint.every_steps": 3,
        "log.tensorboard": False,
    }
    command = [sys.executable, "-m", "hap2s_jax.main", "--config=configs/folder.py:tiny,scratch"]
    command += [f"--config.{key}={value}" for key, value in changes.items()]
    with peers.free_address() as address:
        joint = [f"--workdir={tmp_path / 'two'}", f"--coordinator={address}", "--num_processes=2"]
        runs = [[*command, *joint, f"--process_id={number}"] for number in range(2)]
        workers = peers.start(runs, tmp_path, devices=2)
        peers.wait(workers, 600)
    workers += peers.start([[*command, f"--workdir={tmp_path / 'one'}"]], tmp_path, devices=4)
    peers.wait(workers, 600)
    for worker in workers:
        assert worker.code == 0, worker.err[-3000:]
    for name in ("train", "validation", "test"):
        rows = [
            np.fromfile(tmp_path / run / "features" / f"{name}.f32", np.float32) for run in ("one", "two")
        ]
        assert len(rows[0])
        np.testing.assert_allclose(rows[1], rows[0], rtol=1e-5, atol=1e-5)
    one, two = (json.loads((tmp_path / run / "results.json").read_text())["test"] for run in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-4)
