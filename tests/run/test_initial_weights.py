"""A run that starts from a file, from the hub's cache and from another run; once started it looks at none of them."""

import importlib
import shutil

import cv2
import jax
import numpy as np
import pytest
from torch_states import small_state

from hap2s_jax import main
from hap2s_jax.errors import UserError
from hap2s_jax.models import pretrained
from hap2s_jax.run.trainer import Trainer
from hap2s_jax.training.checkpoint import Checkpointer


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eight classes of four images of one colour each, in folders."""
    root = tmp_path_factory.mktemp("images")
    for label in range(8):
        for number in range(4):
            path = root / f"class{label}" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), np.full((40, 40, 3), (30 * label, 200 - 20 * label, 9 * number), np.uint8))
    return root


def config(images, **changes):
    """One update that moves nothing but the head, so that the trunk's weights can be recognised afterwards."""
    config = importlib.import_module("configs.folder").get_config("tiny")
    config.update_from_flattened_dict(
        {
            "data.data_dir": str(images),
            "data.image_size": (32, 32),
            "steps": 1,
            "num_devices": 1,
            "compilation_cache": "",
            "log.tensorboard": False,
            "evaluate.untrained": False,
            "evaluate.weights": "last",
            "encoder.freeze_bn_stats": True,
            "optimizer.trunk_factor": 0.0,
            "optimizer.weight_decay": 0.5,
            **changes,
        }
    )
    return config


RESNET18 = {"encoder.name": "resnet18", "encoder.width": None}


def last(workdir):
    checkpointer = Checkpointer(workdir / "checkpoints", read_only=True)
    step = checkpointer.latest_step
    weights = checkpointer.restore_weights(step)
    checkpointer.close()
    return step, weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    pretrained.write_safetensors(small_state(), path)
    return path


@pytest.mark.slow
def test_from_a_file_then_on_without_it_then_into_another_run(weights, images, tmp_path, capsys):
    copy, run = tmp_path / "weights.safetensors", tmp_path / "run"
    shutil.copy(weights, copy)
    settings = {**RESNET18, "pretrained.source": str(copy), "ema_decay": 0.5}
    main.run(config(images, **settings), run)
    said = capsys.readouterr().out
    assert f"weights from {copy} (torchvision's names): 100 arrays taken" in said
    assert "classifier fc.weight [1000, 512] dropped" in said
    assert "at random stay head/embedding/bias, head/embedding/kernel" in said
    (_, state), expected = last(run), small_state()
    for params in (state["params"], state["ema_params"]):
        trunk = params["encoder"]["trunk"]
        kernel = trunk["stage4_block2"]["conv2"]["kernel"]
        np.testing.assert_allclose(kernel, expected["layer4.1.conv2.weight"].transpose(2, 3, 1, 0), rtol=1e-6)
        np.testing.assert_allclose(trunk["stem_bn1"]["scale"], expected["bn1.weight"], rtol=1e-6)
    for statistics in (state["batch_stats"], state["ema_params"]["batch_stats"]):
        np.testing.assert_array_equal(statistics["trunk"]["stem_bn1"]["var"], expected["bn1.running_var"])

    copy.unlink()
    main.run(config(images, **settings, steps=2), run)
    assert last(run)[0] == 2
    assert "weights from" not in capsys.readouterr().out

    # Another head, and no moving average: the first run's is what it is judged by, hence what is taken.
    changes = {**RESNET18, "pretrained.source": str(run), "encoder.embedding_dim": 64}
    job = Trainer.create(config(images, **changes).lock())
    started, _, line = job.with_initial_weights(job.initial_state())
    assert line.startswith(f"weights from {run}, step {last(run)[0]} (our own names)")
    assert "head/embedding/kernel [512, 128] dropped: the encoder's is [512, 64]" in line
    average = last(run)[1]["ema_params"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, started.params["encoder"]["trunk"], average["trunk"])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{tmp}/none.safetensors", "do not exist"),
        ("{tmp}", "holds no run"),
        ("{tmp}/damaged.safetensors", "damaged or not a safetensors file"),
        ("{weights}", "does not fit this encoder"),
        ("hf://nobody/nothing", r"not in the cache and offline is set.*FILE takes a file"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_trained(weights, images, tmp_path, source, says):
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    if source.startswith("hf://"):
        pytest.importorskip("huggingface_hub")
    changes = {
        "pretrained.source": source.format(tmp=tmp_path, weights=weights),
        "pretrained.offline": True,
        "pretrained.cache_dir": str(tmp_path),
    }
    with pytest.raises(UserError, match=says) as error:
        main.run(config(images, **changes), tmp_path / "run")
    assert "\n" not in str(error.value)
