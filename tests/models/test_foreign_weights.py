"""Files of weights that somebody else made: read without running anything, and no number is taken unlooked at."""

from __future__ import annotations

import json
import os
import struct
import zipfile

import jax
import numpy as np
import pytest

from hap2s_jax import convert, models
from hap2s_jax.errors import UserError
from hap2s_jax.models import pretrained, weight_files

torch = pytest.importorskip("torch")
numpy_format = pytest.importorskip("safetensors.numpy")


class Runs:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def _names(value):
    return {"conv1.weight": value, "layer1.0.conv1.weight": torch.ones(2)}


# What torch writes, and what is said of it.
STRANGE = {
    "sparse": (lambda: torch.eye(4).to_sparse(), "conv1.weight is sparse; save it as a plain tensor"),
    "sparse rows": (lambda: torch.eye(4).to_sparse_csr(), "conv1.weight is sparse"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        "conv1.weight is quantised",
    ),
    "meta": (lambda: torch.ones(2**34, device="meta"), "conv1.weight is a meta tensor, without numbers"),
    "expanded": (lambda: torch.ones(1).expand(2**34), "conv1.weight is expanded"),
    "overlapping": (lambda: torch.ones(9).as_strided((2**30, 9), (0, 1)), "conv1.weight is expanded"),
    "complex": (lambda: torch.ones(4, dtype=torch.complex64), "conv1.weight is complex"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "conv1.weight is nested",
    ),
    "code": (Runs, "anything else might be code, which is not run"),
    "a long bytearray": (lambda: Long(), "anything else might be code"),
    "text": (lambda: "x", "is not a state dict"),
    "integers": (
        lambda: torch.ones(4, dtype=torch.int32),
        "conv1.weight holds int32; weights are floating-point",
    ),
    "truths": (lambda: torch.ones(4, dtype=torch.bool), "conv1.weight holds bool"),
    "not a number": (lambda: torch.tensor([1, float("nan")]), "conv1.weight holds NaN or infinity"),
    "infinity": (lambda: torch.tensor([1, -float("inf")]), "conv1.weight holds NaN or infinity"),
    "halves that are infinite": (lambda: torch.tensor([1e9]).half(), "conv1.weight holds NaN or infinity"),
}


class Long:
    def __reduce__(self):
        return (bytearray, (2**36,))


@pytest.mark.filterwarnings("ignore")  # torch's own, about sparse and quantised tensors
@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("old", [False, True])
def test_a_torch_file_that_is_not_plain_weights_is_one_line(tmp_path, monkeypatch, capfd, kind, old):
    monkeypatch.chdir(tmp_path)
    make, says = STRANGE[kind]
    if kind == "nested" and old:  # torch cannot read what it writes
        says = "is damaged or not a file of plain weights"
    try:
        torch.save(_names(make()), "a.pth", _use_new_zipfile_serialization=not old)
    except Exception as error:
        pytest.skip(f"torch itself does not write it: {error}")
    assert convert.main(["a.pth", "a.safetensors"]) == 1
    said = capfd.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert "weights_only" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]


def test_parameters_views_and_tied_tensors_are_plain_weights(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    state = {
        "conv1.weight": torch.nn.Parameter(whole),
        "layer1.0.a": whole.T,
        "layer1.0.b": whole[:, ::2],
        "layer1.0.half": whole.half(),
        "layer1.0.negative": torch._neg_view(whole),
        "bn1.num_batches_tracked": torch.tensor(7),
        "empty": torch.zeros(0),
    }
    for old in (False, True):
        torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
        assert convert.main([str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 0
        found = pretrained.read_tensors(tmp_path / "a.safetensors")
        assert all(
            np.array_equal(found[name].ravel(), value.detach().resolve_neg().numpy().ravel())
            for name, value in state.items()
        )


def test_a_transformer_of_impossible_shapes_is_one_line(tmp_path, capsys):
    for name, value in {"blocks.0.attn.qkv.weight": torch.ones(7, 3), "pos_embed": torch.tensor(1.0)}.items():
        torch.save({"patch_embed.proj.weight": torch.ones(2, 3, 1, 1), name: value}, tmp_path / "a.pth")
        assert convert.main([str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 1
        assert f"{name} has the shape {list(value.shape)}" in capsys.readouterr().err


def test_a_packed_torch_file_that_becomes_too_large(tmp_path):
    torch.save(_names(torch.zeros(2**26)), tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert (tmp_path / "b.pth").stat().st_size < 2**20
    with pytest.raises(UserError, match=r"claims .* bytes, more than"):
        pretrained.read_tensors(tmp_path / "b.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_one_line(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    torch.save(_names(torch.ones(64)), path) if suffix == ".pth" else numpy_format.save_file(
        {"a": np.ones(64)}, path
    )
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    changes = [whole[:n] for n in (0, 1, 8, 30, len(whole) // 2, len(whole) - 1)]
    for _ in range(40):
        spoilt = np.frombuffer(whole, np.uint8).copy()
        spoilt[rng.integers(0, len(spoilt), 5)] = rng.integers(0, 256, 5)
        changes.append(spoilt.tobytes())
    for changed in changes:
        path.write_bytes(changed)
        line = ""
        try:
            weight_files.read_tensors(path)
        except UserError as error:
            line = str(error)
        assert "\n" not in line
        assert len(line) < 500


def test_a_safetensors_header_that_lies(tmp_path):
    path = tmp_path / "a.safetensors"

    def write(header, body=b"\0" * 16):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)

    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    write({"a": one})
    assert weight_files.read_tensors(path)["a"].tolist() == [0, 0, 0, 0]
    for lie in (
        {"a": one | {"shape": [2**40]}},
        {"a": one | {"data_offsets": [0, 2**40]}},
        {"a": one | {"shape": [-4]}},
        {"a": one | {"dtype": "F8_E4M3", "shape": [16]}},
        {"a": one | {"dtype": "object"}},
        {"a": one, "b": one},
        {"a": 7},
        [],
        b"[" * 100_000,
        b"{",
    ):
        write(lie)
        with pytest.raises(UserError) as caught:
            weight_files.read_tensors(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(UserError):
        weight_files.read_tensors(path)


def test_a_variance_below_zero_and_a_run_that_diverged():
    with pytest.raises(
        UserError, match=r"theirs: bn1.running_var holds the variance -1, but none is below 0"
    ):
        weight_files.check(
            {"bn1.running_mean": -np.ones(2), "bn1.running_var": np.array([1.0, -1])}, "theirs"
        )
    encoder = models.create("resnet10", width=8, stem="small32", embedding_dim=4)
    variables = models.initialize(encoder, jax.random.key(0), np.zeros((1, 16, 16, 3), np.uint8))
    saved = jax.tree.map(np.asarray, variables)
    _, report = pretrained.from_variables(saved, variables)
    assert report.taken
    saved["batch_stats"]["trunk"]["stem_bn1"]["var"] = -saved["batch_stats"]["trunk"]["stem_bn1"]["var"]
    with pytest.raises(UserError, match=r"workdir: batch_stats/trunk/stem_bn1/var holds the variance -1"):
        pretrained.from_variables(saved, variables)
