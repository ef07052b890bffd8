"""Vision transformers against transformers' own, block by block, with random weights; and against published counts."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from hap2s_jax import models
from hap2s_jax.errors import UserError
from hap2s_jax.models import pretrained, vit, vit_families, vit_names
from hap2s_jax.models.bicubic import resize_matrix

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "patch_size": 7,
    "image_size": 28,
}
# Parameters of the trunk as published: transformers' models without mask token and pooler.
COUNTS = {
    "dinov2_vits14": 22_056_192,
    "dinov2_vitb14": 86_579_712,
    "dinov2_vitl14": 304_367_616,
    "dinov2_vits14_reg": 22_057_728,
    "dinov2_vitb14_reg": 86_582_784,
    "dinov2_vitl14_reg": 304_371_712,
    "dinov3_vits16": 21_596_160,
    "dinov3_vitb16": 85_659_648,
    "dinov3_vitl16": 303_128_576,
    "vit_s16": 21_665_664,
    "vit_b16": 85_798_656,
    "vit_l16": 303_301_632,
    "clip_vitb32": 87_456_000,
    "clip_vitb16": 85_799_424,
    "clip_vitl14": 303_179_776,
    "siglip_vitb16": 85_797_120,
    "siglip_vitl16": 303_361_024,
}


def _theirs(name):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    family = {
        "dinov2": "Dinov2",
        "registers": "Dinov2WithRegisters",
        "imagenet": "ViT",
        "clip": "CLIPVision",
        "siglip": "SiglipVision",
        "dinov3": "DINOv3ViT",
    }[name]
    changes = {"num_register_tokens": OURS[name][1]} if OURS[name][1] else {}
    config = getattr(transformers, f"{family}Config")(**SIZES, **changes)
    torch.manual_seed(0)
    module = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # away from zeros and ones, which would hide a mistake
            parameter.add_(0.05 * torch.randn_like(parameter))
    return torch, module


OURS = {
    "dinov2": (vit_families.DINOV2, 0),
    "registers": (vit_families.DINOV2_REGISTERS, 4),
    "imagenet": (vit_families.IMAGENET_VIT, 0),
    "clip": (vit_families.CLIP, 0),
    "siglip": (vit_families.SIGLIP, 0),
    "dinov3": (vit_families.DINOV3, 4),
}


def _architecture(name):
    family, registers = OURS[name]
    return vit_families.ViTArchitecture(family, 48, 2, 3, 7, 4, registers)


def _variables(tensors):
    """Our parameters out of a state dict, by the names in it."""
    flat = {}
    for name, tensor in vit_names.prepare(tensors).items():
        path = vit_names.to_path(name)
        assert path is not None, name
        value = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
        is_dense = path[-1] == "kernel" and tensor.ndim == 2
        flat[path[1:]] = jnp.asarray(value.T if is_dense else value)
    return {
        room: traverse_util.unflatten_dict({p[1:]: v for p, v in flat.items() if p[0] == room})
        for room in {path[0] for path in flat}
    }


@pytest.mark.parametrize("size", [(28, 28), (21, 42), (14, 14)], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_every_block_and_the_pooled_output_are_those_of_transformers(name, size):
    torch, module = _theirs(name)
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    extra = {"interpolate_pos_encoding": True} if name in ("imagenet", "clip", "siglip") else {}
    with torch.no_grad():
        expected = module(
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), output_hidden_states=True, **extra
        )
    architecture = _architecture(name)
    params = _variables({key: value.numpy() for key, value in module.state_dict().items()})
    tokens = vit.ViT(architecture).apply({"params": params["trunk"]}, images, train=False)
    for ours, theirs in zip(tokens, expected.hidden_states, strict=False):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=2e-5)
    last = expected.last_hidden_state.numpy()
    if name != "clip":  # whose class token alone is normalised there
        np.testing.assert_allclose(tokens[-1], last, rtol=1e-5, atol=2e-5)
    if name != "imagenet":  # whose pooler is a layer that no encoder takes
        kind = "attention" if name == "siglip" else "cls"
        pooled = vit.TokenPooling(architecture, kind).apply({"params": params.get("pooling", {})}, tokens[-1])
        np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), rtol=1e-5, atol=2e-5)


def test_positions_are_resized_as_torch_does():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).normal(size=(1, 1, 1, 16)).astype(np.float32)
    for after in (5, 9, 16, 23, 37):
        for antialias in (False, True):
            theirs = torch.nn.functional.interpolate(
                torch.from_numpy(values), size=(1, after), mode="bicubic", antialias=antialias
            )
            ours = resize_matrix(16, after, antialias) @ values[0, 0, 0]
            np.testing.assert_allclose(ours, theirs.numpy()[0, 0, 0], rtol=1e-5, atol=1e-6)


def test_every_name_has_its_published_number_of_parameters():
    assert set(COUNTS) == set(vit_families.VITS)
    for name, count in COUNTS.items():
        encoder = models.create(name, embedding_dim=0)
        images = jnp.zeros(
            (1, 2 * vit_families.VITS[name].patch, 2 * vit_families.VITS[name].patch, 3), jnp.uint8
        )
        shapes = jax.eval_shape(lambda key, e=encoder, x=images: e.init(key, x), jax.random.key(0))
        found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
        assert found == count, name


def _old_names(name):
    """A tensor's name in the files that were published before transformers renamed its modules."""
    for new, old in (
        (".q_proj.", ".attention.query."),
        (".k_proj.", ".attention.key."),
        (".v_proj.", ".attention.value."),
        (".o_proj.", ".output.dense."),
    ):
        name = name.replace(f".attention{new}", f".attention{old}")
    return name


def test_names_of_the_hub_and_of_timm_lead_to_the_same_places():
    _, module = _theirs("registers")
    tensors = {key: value.numpy() for key, value in module.state_dict().items()}
    expected = _variables(tensors)
    published = _variables({f"dinov2_with_registers.{_old_names(k)}": v for k, v in tensors.items()})
    jax.tree.map(np.testing.assert_array_equal, published, expected)
    timm = {
        "cls_token": tensors["embeddings.cls_token"],
        "reg_token": tensors["embeddings.register_tokens"],
        "pos_embed": tensors["embeddings.position_embeddings"],
        "patch_embed.proj.weight": tensors["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": tensors["layernorm.weight"],
        "norm.bias": tensors["layernorm.bias"],
    }
    for n in range(2):
        layer = f"encoder.layer.{n}."
        for leaf in ("weight", "bias"):
            qkv = [tensors[f"{layer}attention.{p}_proj.{leaf}"] for p in "qkv"]
            timm[f"blocks.{n}.attn.qkv.{leaf}"] = np.concatenate(qkv)
            timm[f"blocks.{n}.attn.proj.{leaf}"] = tensors[f"{layer}attention.o_proj.{leaf}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                timm[f"blocks.{n}.{part}.{leaf}"] = tensors[f"{layer}{part}.{leaf}"]
        for k in "12":
            timm[f"blocks.{n}.ls{k}.gamma"] = tensors[f"{layer}layer_scale{k}.lambda1"]
    jax.tree.map(np.testing.assert_array_equal, _variables(timm), expected)
    without = timm | {"pos_embed": timm["pos_embed"][:, 1:]}
    table = _variables(without)["trunk"]["position_embedding"]
    assert not table[0].any()
    np.testing.assert_array_equal(table[1:], expected["trunk"]["position_embedding"][1:])


@pytest.fixture
def tiny(monkeypatch):
    """An encoder small enough to be initialised in a test, under a name of its own."""
    monkeypatch.setitem(vit_families.VITS, "tiny", dataclasses.replace(_architecture("dinov2"), dim=12))
    return "tiny"


def test_an_encoder_embeds_images_of_any_size_that_patches_divide(tiny):
    encoder = models.create(tiny, pooling="cls+gap", embedding_dim=8, normalize=True, remat=True)
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 14, 3), np.uint8)
    variables = encoder.init(jax.random.key(0), images)
    output = encoder.apply(variables, images)
    assert output.features.shape == (2, 24)
    np.testing.assert_allclose(np.linalg.norm(output.embedding, axis=1), 1, rtol=1e-5)
    gradient = jax.grad(lambda p: encoder.apply({"params": p}, images, True).embedding[0, 0])(
        variables["params"]
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    with pytest.raises(ValueError, match="multiples of 7, such as 28x14"):
        encoder.apply(variables, images[:, :, :13])


def test_a_left_out_branch_is_one_of_scale_0_and_a_kept_one_is_raised(tiny):
    encoder = models.create(tiny, drop_path=0.5, embedding_dim=0)
    images = np.random.default_rng(0).integers(0, 256, (40, 14, 14, 3), np.uint8)
    variables = encoder.init(jax.random.key(0), images)
    trunk = traverse_util.flatten_dict(variables["params"]["trunk"])
    trunk = {p: 0.5 * jnp.ones_like(v) if "scale" in p[-1] and len(p) == 2 else v for p, v in trunk.items()}

    def features(factors, **given):
        scaled = {
            p: v * factors[p[1] == "scale2"] if p[0] == "block2" and len(p) == 2 else v
            for p, v in trunk.items()
        }
        params = {"trunk": traverse_util.unflatten_dict(scaled)}
        return encoder.apply({"params": params}, images, **given).features

    keys = jax.random.split(jax.random.key(1), len(images))
    found = features((1, 1), train=True, keys=keys)
    # Of two blocks the first is never left out; of the second, each branch is there twice or not at all.
    choices = jnp.stack([features((a, b)) for a in (0, 2) for b in (0, 2)])
    errors = np.abs(found - choices).max(-1)
    assert (np.sort(errors, axis=0)[0] < 1e-5).all()
    assert (np.sort(errors, axis=0)[1] > 1e-4).all()
    counts = np.bincount(errors.argmin(0), minlength=4)
    assert (counts >= 3).all()
    with pytest.raises(ValueError, match="give the encoder keys"):
        features((1, 1), train=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"drop_path": 1}, "drop_path is 1; it must be at least 0"),
        ({"stem": "small64"}, "stem does not apply to tiny; those that do: frozen_blocks"),
        ({"last_stride": 1}, "last_stride does not apply"),
        ({"pooling": "gem"}, "pooling is 'gem'"),
        ({"frozen_blocks": 3}, "tiny has 2 blocks"),
        ({"frozen_blcks": 1}, "did you mean 'frozen_blocks'"),
    ],
)
def test_options_of_other_encoders_are_refused(tiny, options, told):
    with pytest.raises(UserError, match=told):
        models.create(tiny, **options)
    with pytest.raises(UserError, match="frozen_blocks does not apply to resnet10"):
        models.create("resnet10", frozen_blocks=1)
    with pytest.raises(UserError, match="drop_path does not apply to resnet10"):
        models.create("resnet10", drop_path=0.1)


def test_frozen_blocks_name_parameters_that_exist(tiny):
    from hap2s_jax.training.optimizer import matches

    encoder = models.create(tiny, frozen_blocks=1, embedding_dim=8)
    params = encoder.init(jax.random.key(0), np.zeros((1, 14, 14, 3), np.uint8))["params"]
    layers = [matches(params, [layer]) for layer in encoder.layers]
    found = jax.tree.map(lambda *marks: sum(marks), *layers)
    assert set(jax.tree.leaves(found["trunk"].pop("norm"))) == set(jax.tree.leaves(found.pop("head"))) == {0}
    assert set(jax.tree.leaves(found)) == {1}  # everything else is of one layer
    frozen = matches(params, encoder.frozen_parameters)
    assert all(jax.tree.leaves(frozen["trunk"]["block1"]))
    assert not any(jax.tree.leaves([frozen["trunk"]["block2"], frozen["head"], frozen["trunk"]["norm"]]))


def test_a_file_of_transformers_fills_the_trunk_and_text_towers_are_passed_over(monkeypatch):
    _, module = _theirs("siglip")
    monkeypatch.setitem(vit_families.VITS, "tiny", _architecture("siglip"))
    tensors = {f"vision_model.{key}": value.numpy() for key, value in module.state_dict().items()}
    tensors |= {
        "text_model.embeddings.position_ids": np.arange(8)[None],
        "logit_scale": np.ones(1, np.float32),
    }
    images = np.zeros((1, 28, 28, 3), np.uint8)
    for pooling in ("attention", "gap"):
        encoder = models.create("tiny", pooling=pooling, embedding_dim=8)
        variables = encoder.init(jax.random.key(0), images)
        filled, report = pretrained.from_tensors(tensors, encoder, variables)
        assert report.initial == ("head/embedding/kernel",)
        assert ("pools in another way" in str(report.remarks)) == (pooling == "gap")
        np.testing.assert_array_equal(
            filled["params"]["trunk"]["block2"]["mlp"]["fc1"]["kernel"].T,
            tensors["vision_model.encoder.layers.1.mlp.fc1.weight"],
        )
    broken = {k: v for k, v in tensors.items() if "layers.1.mlp.fc1.bias" not in k}
    with pytest.raises(UserError, match="1 missing"):
        pretrained.from_tensors(broken, encoder, variables)
