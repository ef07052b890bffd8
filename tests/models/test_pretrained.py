"""Import of published weights: parity with Hugging Face's torch ResNets, and every way a file can be wrong."""

import copy
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import traverse_util
from torch_states import small_state

from hap2s_jax import convert, models
from hap2s_jax.errors import UserError
from hap2s_jax.models import pretrained, torch_names

# name -> depths, kind of block, of transformers' ResNetConfig; its widths are the published ones.
DEPTHS = {
    "resnet18": ([2, 2, 2, 2], "basic"),
    "resnet34": ([3, 4, 6, 3], "basic"),
    "resnet50": ([3, 4, 6, 3], "bottleneck"),
    "resnet101": ([3, 4, 23, 3], "bottleneck"),
}


def torch_resnet(name, seed=0):
    """transformers' ResNet with random weights and random, not fresh, statistics."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    depths, kind = DEPTHS[name]
    widths = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    torch.manual_seed(seed)
    config = transformers.ResNetConfig(depths=depths, layer_type=kind, hidden_sizes=widths)
    model = transformers.ResNetModel(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
    return model


def torchvision_names(state):
    """The same tensors under torchvision's names, written by hand from its module tree."""
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "embedder":
            new = ["conv1" if parts[2] == "convolution" else "bn1"]
        else:
            stage, block = int(parts[2]) + 1, parts[4]
            new = [f"layer{stage}", block]
            convolution = "convolution" in parts
            if parts[5] == "shortcut":
                new += ["downsample", "0" if convolution else "1"]
            else:
                new += [f"{'conv' if convolution else 'bn'}{int(parts[6]) + 1}"]
        renamed[".".join([*new, parts[-1]])] = tensor
    return renamed


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def shapes_of(encoder):
    """Variables that cost nothing: zeros of the right shapes."""
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def relative_error(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", DEPTHS)
def test_every_stage_agrees_with_torch(name, train):
    model = torch_resnet(name)
    torch = pytest.importorskip("torch")
    encoder = models.create(name, embedding_dim=0)
    naming = torchvision_names if train else dict
    variables, report = pretrained.from_tensors(naming(arrays(model)), encoder, shapes_of(encoder))
    assert report.naming == ("torchvision" if train else "transformers")
    assert report.remarks == ()

    images = np.random.default_rng(0).integers(0, 256, (4, 96, 64, 3)).astype(np.uint8)
    normalised = torch.from_numpy(np.array(models.normalize_images(images)).transpose(0, 3, 1, 2))
    exact_model = copy.deepcopy(model).double()
    with torch.no_grad():
        theirs = model.train(train)(normalised, output_hidden_states=True)
        exact = exact_model.train(train)(normalised.double(), output_hidden_states=True)

    def ours(variables, images):
        return encoder.apply(
            variables,
            images,
            train=train,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name == "trunk",
        )

    compiled = jax.jit(ours).lower(variables, images)
    output, state = compiled.compile(compiler_options={"xla_backend_optimization_level": "1"})(
        variables, images
    )
    maps = state["intermediates"]["trunk"]["__call__"][0]

    def agrees(ours, theirs, exact):
        # Batch normalisation over few samples amplifies rounding: in training torch's own float32 strays up to
        # 1e-4 from its float64 in the last stage, so the bound grows with that.
        return relative_error(ours, exact) < max(1e-5, 2 * relative_error(theirs, exact))

    for our_map, their_map, exact_map in zip(maps, theirs.hidden_states, exact.hidden_states, strict=True):
        assert agrees(our_map.transpose(0, 3, 1, 2), their_map.numpy(), exact_map.numpy())
    pooled = output.features[:, :, None, None]
    assert agrees(pooled, theirs.pooler_output.numpy(), exact.pooler_output.numpy())
    if not train:
        assert relative_error(pooled, theirs.pooler_output.numpy()) < 1e-5
    after, _ = pretrained.from_tensors(arrays(exact_model), encoder, shapes_of(encoder))
    found = traverse_util.flatten_dict(state["batch_stats"])
    for path, leaf in traverse_util.flatten_dict(after["batch_stats"]).items():
        assert relative_error(found[path], leaf) < 1e-4, path


@pytest.mark.slow
def test_in_float64_training_agrees_with_torch_to_ten_digits():
    """What float32 cannot show: the formulas are the same, only the rounding differs."""
    model = torch_resnet("resnet50").double()
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 32, 3)).astype(np.uint8)
    with jax.enable_x64(True):
        encoder = models.create("resnet50", embedding_dim=0, dtype="float64")
        doubles = jax.tree.map(lambda leaf: leaf.astype(np.float64), shapes_of(encoder))
        variables, _ = pretrained.from_tensors(arrays(model), encoder, doubles)
        normalised = np.array(models.normalize_images(images, np.float64)).transpose(0, 3, 1, 2)
        compiled = jax.jit(lambda v: encoder.apply(v, images, train=True, mutable=["batch_stats"])).lower(
            variables
        )
        output, state = compiled.compile(compiler_options={"xla_backend_optimization_level": "1"})(variables)
        found = traverse_util.flatten_dict(jax.device_get(state["batch_stats"]))
    with torch.no_grad():
        theirs = model.train()(torch.from_numpy(normalised)).pooler_output.numpy()[:, :, 0, 0]
    assert output.features.dtype == np.float64
    assert relative_error(output.features, theirs) < 1e-10
    after, _ = pretrained.from_tensors(arrays(model), encoder, doubles)
    for path, leaf in traverse_util.flatten_dict(after["batch_stats"]).items():
        assert relative_error(found[path], leaf) < 1e-10, path


def test_each_tensor_lands_where_it_belongs():
    encoder = models.create("resnet18", embedding_dim=0, num_classes=1000)
    state = small_state()
    variables, report = pretrained.from_tensors(state, encoder, shapes_of(encoder))
    trunk, stats = variables["params"]["trunk"], variables["batch_stats"]["trunk"]
    np.testing.assert_array_equal(
        trunk["stage3_block2"]["conv1"]["kernel"][0, 2, 5, 6], state["layer3.1.conv1.weight"][6, 5, 0, 2]
    )
    np.testing.assert_array_equal(
        trunk["stage2_block1"]["shortcut_bn"]["scale"], state["layer2.0.downsample.1.weight"]
    )
    np.testing.assert_array_equal(stats["stem_bn1"]["var"], state["bn1.running_var"])
    classifier = variables["params"]["head"]["classifier"]
    np.testing.assert_array_equal(classifier["kernel"], state["fc.weight"].T)
    # The file's tensors less the counters, every one used once.
    assert report.taken == len([name for name in state if "num_batches" not in name])


def test_writing_torchvisions_names_undoes_reading_them():
    state = {k: v for k, v in small_state().items() if not k.startswith("fc.") and "num_batches" not in k}
    encoder = models.create("resnet18", embedding_dim=0)
    variables, _ = pretrained.from_tensors(state, encoder, shapes_of(encoder))
    written = {
        torch_names.to_torchvision(path): torch_names.to_torch_layout(leaf)
        for path, leaf in traverse_util.flatten_dict(variables).items()
    }
    assert set(written) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(written[name], value)
    with pytest.raises(ValueError, match="torchvision's ResNets do not have"):
        torch_names.to_torchvision(("params", "trunk", "stem_conv2", "kernel"))


def test_a_classifier_of_another_size_is_dropped_with_a_remark():
    for options in ({"embedding_dim": 0, "num_classes": 10}, {"embedding_dim": 512, "num_classes": 1000}, {}):
        encoder = models.create("resnet18", **options)
        _, report = pretrained.from_tensors(small_state(), encoder, shapes_of(encoder))
        assert report.remarks == ("classifier fc.weight [1000, 512] dropped: the encoder's differs",)
        assert {name.split("/")[0] for name in report.initial} == {"head"}


def test_what_does_not_fit_is_listed_in_one_line():
    state = small_state()
    del state["layer4.1.bn2.running_var"]
    state["layer1.0.se.weight"] = np.zeros(3, np.float32)
    state["bn1.weight"] = np.zeros(32, np.float32)
    encoder = models.create("resnet18")
    with pytest.raises(UserError) as error:
        pretrained.from_tensors(state, encoder, shapes_of(encoder), source="file.safetensors")
    message = str(error.value)
    assert "\n" not in message
    assert "1 missing (batch_stats/trunk/stage4_block2/bn2/var)" in message
    assert "1 left over (layer1.0.se.weight)" in message
    assert "1 of another shape (bn1.weight [32] where the encoder has [64])" in message


@pytest.mark.parametrize("options", [{"stem": "small64"}, {"width": 32}])
def test_a_variant_for_small_images_takes_no_published_weights(options):
    encoder = models.create("resnet18", **options)
    with pytest.raises(UserError, match="does not fit this encoder"):
        pretrained.from_tensors(small_state(), encoder, shapes_of(encoder))


def test_safetensors_file_and_the_deeper_file_for_the_shallower_encoder(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "weights.safetensors"
    pretrained.write_safetensors(small_state(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
    encoder = models.create("resnet18", last_stride=1)
    variables, report = pretrained.load(path, encoder, shapes_of(encoder))
    assert report.source == str(path)
    np.testing.assert_array_equal(
        variables["batch_stats"]["trunk"]["stem_bn1"]["mean"], small_state()["bn1.running_mean"]
    )
    shallower = models.create("resnet10")
    with pytest.raises(UserError, match="left over"):
        pretrained.load(path, shallower, shapes_of(shallower))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        pretrained.load(path, encoder, shapes_of(encoder))


def test_converter_gives_the_tensors_of_the_pth_file(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    state = small_state()
    source, target = str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{k}": torch.from_numpy(v) for k, v in state.items()}}, source)
    assert convert.main([source, target]) == 0
    converted = pretrained.read_tensors(target)
    assert set(converted) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(converted[name], value)
    assert convert.main([source, str(tmp_path / "a.npz")]) == 1
    assert capsys.readouterr().err == f"error: target is {tmp_path}/a.npz; it should end in .safetensors\n"


class Surprise:
    """What unpickling without care would run."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the file ran its code')",))


def test_torch_files_that_are_damaged_foreign_or_hostile(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    path.write_bytes(b"no torch file")
    with pytest.raises(UserError, match="damaged or not a file of plain weights"):
        pretrained.read_tensors(path)
    torch.save({"conv1.weight": Surprise()}, path)
    with pytest.raises(UserError, match="damaged or not a file of plain weights"):
        pretrained.read_tensors(path)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(UserError, match="not a state dict: it holds list"):
        pretrained.read_tensors(path)


def test_files_of_another_kind(tmp_path):
    with pytest.raises(UserError, match="do not exist"):
        pretrained.read_tensors(tmp_path / "none.pth")
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"end in '\.onnx'"):
        pretrained.read_tensors(tmp_path / "a.onnx")
    encoder = models.create("resnet18")
    with pytest.raises(UserError, match="holds no ResNet"):
        pretrained.from_tensors({"h.0.attn.weight": np.zeros((3, 3))}, encoder, shapes_of(encoder))


def test_hub_names(tmp_path):
    encoder = models.create("resnet18")
    with pytest.raises(UserError, match="should read hf://owner/repository"):
        pretrained.load("hf://resnet18", encoder, {})
    pytest.importorskip("huggingface_hub")
    with pytest.raises(UserError, match="is not in the cache and offline is set"):
        pretrained.load("hf://nobody/nothing", encoder, {}, cache_dir=str(tmp_path), offline=True)


def test_hub_files_come_from_the_cache(tmp_path):
    """A cache laid out as huggingface_hub lays it out; no network is there to help."""
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "models--somebody--resnet18"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    encoder = models.create("resnet18")
    for name, file in (("", "model.safetensors"), ("/other.safetensors", "other.safetensors")):
        pretrained.write_safetensors(small_state(seed=len(file)), snapshot / file)
        variables, report = pretrained.load(
            f"hf://somebody/resnet18{name}",
            encoder,
            shapes_of(encoder),
            cache_dir=str(tmp_path),
            offline=True,
        )
        assert report.source == f"hf://somebody/resnet18{name}"
        np.testing.assert_array_equal(
            variables["params"]["trunk"]["stem_bn1"]["bias"], small_state(seed=len(file))["bn1.bias"]
        )


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def fail(*arguments, **settings):
        assert arguments == ("timm/resnet18.tv_in1k", "model.safetensors")
        assert settings == {"cache_dir": None, "local_files_only": False}
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    encoder = models.create("resnet18")
    with pytest.raises(UserError, match="cannot be had from the hub: no route to host"):
        pretrained.load("hf://timm/resnet18.tv_in1k", encoder, {})


def test_own_variables_with_another_head():
    source = models.create("resnet10", width=8, num_classes=5)
    target = models.create("resnet10", width=8, num_classes=7)
    saved = jax.tree.map(lambda leaf: leaf + 1, shapes_of(source))
    variables, report = pretrained.from_variables(saved, shapes_of(target))
    assert report.remarks == (
        "params/head/classifier/bias [5] dropped: the encoder's is [7]",
        "params/head/classifier/kernel [128, 5] dropped: the encoder's is [128, 7]",
    )
    assert report.initial == ("head/classifier/bias", "head/classifier/kernel")
    np.testing.assert_array_equal(variables["params"]["trunk"]["stem_bn1"]["scale"], 1.0)
    np.testing.assert_array_equal(variables["params"]["head"]["embedding"]["kernel"], 1.0)
    np.testing.assert_array_equal(variables["params"]["head"]["classifier"]["bias"], 0.0)
    wider = models.create("resnet10", width=16)
    with pytest.raises(UserError, match="of another shape"):
        pretrained.from_variables(saved, shapes_of(wider))


def test_importing_needs_no_torch():
    code = (
        "import sys; from hap2s_jax.models import pretrained; from hap2s_jax import convert;"
        "assert not {'torch', 'safetensors', 'huggingface_hub', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
