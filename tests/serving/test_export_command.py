"""Exports give the original embeddings without this project."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

import hap2s_jax
from hap2s_jax import export, models
from hap2s_jax.data import pixels
from hap2s_jax.errors import UserError
from hap2s_jax.serving import exports
from hap2s_jax.serving.trained import TrainedEncoder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    assert export.main([f"--workdir={run.workdir}", f"--output={folder}"]) == 0
    encoder = hap2s_jax.load(run.workdir)
    images = np.stack([encoder.preprocess(run.source.read(n)) for n in range(7)])
    np.save(folder / "images.npy", images)
    return folder


# An import of the project fails, as where it is not installed.
_ALONE = """
import sys
sys.modules["hap2s_jax"] = None
import numpy as np
images = np.load("images.npy")
"""
_STABLEHLO = """
import jax, jax.export
encoder = jax.export.deserialize(bytearray(open("encoder.stablehlo", "rb").read()))
assert encoder.platforms == ("cpu", "cuda", "tpu"), encoder.platforms
embed = lambda images: encoder.call(images)
assert "tensorflow" not in sys.modules
"""
_SAVED_MODEL = """
import tensorflow as tf
encoder = tf.saved_model.load("saved_model")
embed = lambda images: encoder(images).numpy()
named = encoder.signatures["serving_default"](images=tf.constant(images))["embeddings"].numpy()
np.testing.assert_allclose(named, embed(images), atol=1e-6)
"""
_ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession("encoder.onnx", providers=["CPUExecutionProvider"])
embed = lambda images: session.run(None, {"images": images})[0]
"""
_SAVE = """
np.save(sys.argv[1], np.concatenate([embed(images[:1]), embed(images[1:3]), embed(images[3:])]))
"""


@pytest.mark.parametrize("code", [_STABLEHLO, _SAVED_MODEL, _ONNX], ids=["stablehlo", "saved_model", "onnx"])
def test_runs_without_this_project(exported, reference, tmp_path, code):
    if code is _SAVED_MODEL and not (exported / "saved_model").is_dir():
        pytest.skip("TensorFlow cannot run what this JAX makes, and export said so in one line")
    if code is _ONNX:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("jax2onnx")
        if not (exported / "encoder.onnx").is_file():
            pytest.skip("jax2onnx cannot convert what this JAX makes, and export said so in one line")
    command = [sys.executable, "-c", _ALONE + code + _SAVE, str(tmp_path / "out.npy")]
    done = subprocess.run(command, cwd=exported, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), reference[:7], atol=1e-4 if code is _ONNX else 1e-5
    )


def test_the_preprocessing_is_written_down(exported, run):
    record = json.loads((exported / "preprocessing.json").read_text())
    assert record["image_size"] == [64, 64]
    ours = {"preprocessing.json", "images.npy"}  # the second is of these tests
    files = [path for path in exported.rglob("*") if path.is_file() and path.name not in ours]
    digests = {str(p.relative_to(exported)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    assert digests
    assert record["sha256"] == digests
    assert record["enlarge"] == 1.1
    assert record["views"] == ["flip", "zooms"]
    assert record["fingerprint"] == hap2s_jax.load(run.workdir).fingerprint
    # By its words alone: the largest centred square, over 1.1.
    image = pixels.decode_whole(run.source.read(0))
    side = round(min(image.shape[:2]) / record["enlarge"])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    import cv2

    expected = cv2.resize(image[top : top + side, left : left + side], (64, 64))
    np.testing.assert_array_equal(expected, np.load(exported / "images.npy")[0])


def _with_stem(run, stem, **head):
    """An encoder whose trunk is torchvision's, or nearly, with weights and statistics drawn at random."""
    config = run.job.config.copy_and_resolve_references()
    config.unlock()
    config.evaluate.update(flip=False, zooms=False)
    config.encoder.update(name="resnet18", width=8, stem=stem, pooling="gap", embedding_dim=16)
    config.encoder.update(**head)
    module = models.create(**config.encoder)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.uint8))
    rng = np.random.default_rng(0)

    def draw(x):  # kernels that keep the activations' size; scales and variances that are positive
        kernel = rng.normal(size=x.shape) * np.sqrt(2 / np.prod(x.shape[:-1]))
        return (kernel if x.ndim > 1 else 0.5 + 0.5 * rng.random(x.shape)).astype(np.float32)

    variables = jax.tree.map(draw, shapes)
    return TrainedEncoder(config, 1, False, module, variables, pathlib.Path("nowhere"))


HEADS = [
    {},
    {"embedding_bn": False},
    {"hidden_dim": 24, "embedding_bn": False, "normalize": False},
    {"embedding_dim": 0, "embedding_bn": False, "normalize": False, "bnneck": True},
]


@pytest.mark.parametrize("head", HEADS, ids=["emoji", "folder", "paper", "bot"])
def test_torch_users_load_the_backbone_by_torchvisions_names(run, tmp_path, head):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    encoder = _with_stem(run, "imagenet", **head)
    room = {"torch": torch}
    text = (pathlib.Path(__file__).parents[2] / "docs" / "use.md").read_text()
    exec(re.search(r"import torch.nn.functional as F\n.*?(?=```)", text, re.DOTALL)[0], room)
    tensors = load_file(exports.write_safetensors(encoder, tmp_path))
    model = _torchvision_resnet18(torch, width=8)
    missing, left = model.load_state_dict(tensors, strict=False)
    assert not [name for name in missing if not name.endswith("num_batches_tracked")]
    assert all(name.startswith("head.") for name in left)
    images = np.stack([encoder.preprocess(run.source.read(n)) for n in range(5)])
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        inputs = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
        x = room["head"](model.eval()(inputs), tensors, encoder.config.encoder.normalize)
        if head.get("bnneck"):
            x = torch.nn.functional.normalize(x)  # compared by cosine
    np.testing.assert_allclose(x.numpy(), encoder.embed_pixels(images), atol=1e-5)


def _torchvision_resnet18(torch, width):
    """As torchvision's module tree has it, up to the pooled features."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inside, outside, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outside)
            self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outside)
            self.downsample = None
            if stride > 1 or inside != outside:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
                )

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            inside = width
            for stage in range(4):
                outside = width * 2**stage
                blocks = [Block(inside, outside, 2 if stage else 1), Block(outside, outside, 1)]
                setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
                inside = outside

        def forward(self, x):
            x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
            for stage in range(4):
                x = getattr(self, f"layer{stage + 1}")(x)
            return x.mean(dim=(2, 3))

    return ResNet()


def test_another_stem_does_not_go_by_torchvisions_name(run, exported):
    from safetensors.numpy import load_file

    tensors = load_file(exported / "encoder.safetensors")
    assert {"stem.conv1.weight", "stem.bn2.running_var", "layer1.0.conv1.weight"} <= set(tensors)
    assert not [name for name in tensors if name.startswith(("conv1", "bn1"))]
    assert tensors["stem.conv1.weight"].shape[1:] == (3, 3, 3)
    count = sum(x.size for x in jax.tree.leaves(hap2s_jax.load(run.workdir).variables))
    assert sum(x.size for x in tensors.values()) == count


def test_mistakes_are_one_line(run, tmp_path, capsys, monkeypatch):
    arguments = [f"--workdir={run.workdir}", f"--output={tmp_path}"]
    assert export.main([*arguments, "--formats=stablhlo"]) == 1
    assert "did you mean 'stablehlo'?" in capsys.readouterr().err

    def refuse(encoder, folder):
        raise UserError("needs TensorFlow")

    monkeypatch.setattr(exports, "FORMATS", {"saved_model": refuse})
    assert export.main(arguments) == 0
    assert "not written: needs TensorFlow" in capsys.readouterr().out
    assert export.main([*arguments, "--formats=saved_model"]) == 1


def test_a_fixed_number_of_images(run, tmp_path, capsys):
    arguments = [f"--workdir={run.workdir}", f"--output={tmp_path}", "--formats=stablehlo"]
    assert export.main([*arguments, "--batch_size=2"]) == 0
    assert "which jax promises to read until 20" in capsys.readouterr().out
    exported = jax.export.deserialize(bytearray((tmp_path / "encoder.stablehlo").read_bytes()))
    assert exported.in_avals[0].shape == (2, 64, 64, 3)
    assert "[2, 64, 64, 3]" in json.loads((tmp_path / "preprocessing.json").read_text())["input"]
    assert export.main([*arguments, "--batch_size=0"]) == 1
    assert "--batch_size must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["raises", "gives other embeddings"])
def test_what_does_not_run_is_not_written(run, tmp_path, monkeypatch, fault):
    encoder = hap2s_jax.load(run.workdir)

    class Read:
        def call(self, images):
            if fault == "raises":
                raise RuntimeError("vhlo.custom_call_v2\nand a page of it")
            return encoder.embed_pixels(images) + 0.01

    monkeypatch.setattr(exports.jax.export, "deserialize", lambda data: Read())
    with pytest.raises(UserError, match="cannot run what they wrote") as error:
        exports.write_stablehlo(encoder, tmp_path, batch_size=1)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_tensorflow_cannot_run_is_one_line_with_the_reason(run, tmp_path, monkeypatch, capfd):
    saved_model = pytest.importorskip("hap2s_jax.data.tf.saved_model")

    def load(path):
        os.write(2, b"E0000 XLA's own log\n")
        raise RuntimeError(
            "Graph execution error:\n\nDetected at node X (most recent call last):\n<stack traces unavailable>\n"
            "Cannot deserialize it\nand a page more"
        )

    monkeypatch.setattr(saved_model, "load", load)
    says = r"cannot run what JAX .* any number of images \(Cannot deserialize it\); give --batch_size=N"
    with pytest.raises(UserError, match=says):
        exports.write_saved_model(hap2s_jax.load(run.workdir), tmp_path)
    assert "XLA's own log" not in capfd.readouterr().err
    os.write(2, b"heard again")
    assert "heard again" in capfd.readouterr().err


def test_what_onnx_cannot_hold_is_one_line(run, tmp_path, monkeypatch):
    class Converter:
        def to_onnx(self, *arguments, **options):
            raise NotImplementedError(
                "No plugins registered for primitive 'rng_bit_generator'\nand a page of it"
            )

    monkeypatch.setattr(exports.extras, "load", lambda user, module, extra: Converter())
    with pytest.raises(UserError, match=r"jax2onnx cannot convert this encoder .*rng_bit") as error:
        exports.write_onnx(hap2s_jax.load(run.workdir), tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
