"""Names of a vision transformer's tensors in transformers and timm, and their places here.

Files of transformers come with the names of its classes of today (`q_proj`) and of before (`attention.query`), which
those on the hub still have; DINOv2's own files have timm's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from hap2s_jax.errors import UserError

Path = tuple[str, ...]

_PREFIXES = ("dinov2.", "vit.", "vision_model.", "dinov2_with_registers.", "visual.trunk.")
# Of a file with more than the trunk: text towers, projections, poolers and heads that no encoder here has.
_ELSEWHERE = re.compile(
    r"text_model\.|(text|visual)_projection\.|logit_(scale|bias)|pooler\.|classifier\.|head\.(weight|bias)"
    r"|(.*\.)?(mask_token|position_ids)$|fc_norm\."
)

_LAYER = r"(?:.*\.)?layers?\.(\d{1,4})\."

# (pattern of a name, where it stands below the trunk). `{}` takes what the pattern's groups found.
_SINGLE = {
    r"embeddings\.cls_token|cls_token|embeddings\.class_embedding": "class_token",
    r"embeddings\.register_tokens|reg_token|register_tokens": "register_tokens",
    r"embeddings\.position_embeddings|pos_embed|embeddings\.position_embedding\.weight": "position_embedding",
    _LAYER + r"layer_scale([12])\.lambda1": "block{}/scale{}",
    r"blocks\.(\d{1,4})\.ls([12])\.gamma": "block{}/scale{}",
}
_MODULES = {
    r"embeddings\.patch_embeddings(?:\.projection)?|patch_embed\.proj|embeddings\.patch_embedding": "patch_embedding",
    r"pre_layrnorm|norm_pre": "norm_pre",
    r"layernorm|post_layernorm|norm": "norm",
    r"blocks\.(\d{1,4})\.(norm[12])": "block{}/{}",
    r"blocks\.(\d{1,4})\.attn\.(query|key|value)": "block{}/attention/{}",
    r"blocks\.(\d{1,4})\.attn\.proj": "block{}/attention/output",
    r"blocks\.(\d{1,4})\.mlp\.(fc[12])": "block{}/mlp/{}",
    _LAYER + r"(?:layer_?)?norm([12])": "block{}/norm{}",
    _LAYER + r"layernorm_before": "block{}/norm1",
    _LAYER + r"layernorm_after": "block{}/norm2",
    _LAYER
    + r"(?:attention|self_attn)(?:\.attention)?\.(q|k|v)(?:_proj|uery|ey|alue)": "block{}/attention/{}",
    _LAYER
    + r"(?:attention\.output\.dense|(?:attention|self_attn)\.(?:o|out)_proj)": "block{}/attention/output",
    _LAYER + r"(?:mlp\.fc1|mlp\.up_proj|intermediate\.dense)": "block{}/mlp/fc1",
    _LAYER + r"(?:mlp\.fc2|mlp\.down_proj|output\.dense)": "block{}/mlp/fc2",
}
_POOLING = {
    r"(?:head|attn_pool)\.attention\.(query|key|value)": "attention/{}",
    r"head\.attention\.out_proj|attn_pool\.proj": "attention/output",
    r"head\.layernorm|attn_pool\.norm": "norm",
    r"(?:head|attn_pool)\.mlp\.(fc[12])": "mlp/{}",
}
_LONG = {"q": "query", "k": "key", "v": "value"}
_LEAVES = {"weight": "kernel", "bias": "bias"}


def recognise(names: Iterable[str]) -> bool:
    """Whether these are a vision transformer's names."""
    bare = {_bare(name) for name in names}
    return any(
        re.fullmatch(
            r"patch_embed\.proj\.weight|embeddings\.patch_embedding(s(\.projection)?)?\.weight", name
        )
        for name in bare
    )


def prepare(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with query, key and value apart, without leading axes of length 1, and without other towers."""
    found: dict[str, np.ndarray] = {}
    for full, tensor in tensors.items():
        name = _bare(full)
        if _ELSEWHERE.match(name) or _ELSEWHERE.match(full):
            continue
        try:
            found |= _apart(name, tensor)
        except (ValueError, IndexError):
            raise UserError(f"{full} has the shape {list(tensor.shape)}, as in no transformer") from None
    table, lead = found.get("pos_embed"), "cls_token" in found
    if table is not None and lead and int(len(table) ** 0.5) ** 2 == len(table):
        # timm adds no position to the class token of some models.
        found["pos_embed"] = np.concatenate([np.zeros_like(table[:1]), table])
    return found


def _apart(name: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """A tensor, or its parts, by their names; a ValueError or IndexError if it cannot be divided."""
    if match := re.fullmatch(r"(blocks\.\d+\.attn)\.qkv\.(weight|bias)", name):
        parts = zip(("query", "key", "value"), np.split(tensor, 3), strict=True)
        return {f"{match[1]}.{part}.{match[2]}": value for part, value in parts}
    if match := re.fullmatch(r"head\.attention\.in_proj_(weight|bias)", name):
        parts = zip(("query", "key", "value"), np.split(tensor, 3), strict=True)
        return {f"head.attention.{part}.{match[1]}": value for part, value in parts}
    if match := re.fullmatch(r"attn_pool\.(q|kv)\.(weight|bias)", name):
        split = [tensor] if match[1] == "q" else np.split(tensor, 2)
        parts = zip(("query",) if match[1] == "q" else ("key", "value"), split, strict=True)
        return {f"attn_pool.attention.{part}.{match[2]}": value for part, value in parts}
    if re.search(r"(tokens?|embed|embedding|embeddings|embedding\.weight|probe|latent)$", name):
        return {name: tensor if tensor.ndim == 4 else tensor.reshape(-1, tensor.shape[-1])}
    return {name: tensor}


def to_path(name: str) -> Path | None:
    """The place in our variables of a tensor of `prepare`; None for a name no transformer has."""
    if name in ("head.probe", "attn_pool.latent"):
        return ("params", "pooling", "query")
    for pattern, target in _SINGLE.items():
        if match := re.fullmatch(pattern, name):
            return ("params", "trunk", *_filled(target, match.groups()))
    module, _, leaf = name.rpartition(".")
    if leaf not in _LEAVES:
        return None
    for room, patterns in (("trunk", _MODULES), ("pooling", _POOLING)):
        for pattern, target in patterns.items():
            if match := re.fullmatch(pattern, module):
                place = _filled(target, match.groups())
                is_norm = place[-1].startswith("norm")
                return ("params", room, *place, "scale" if is_norm and leaf == "weight" else _LEAVES[leaf])
    return None


def _filled(target: str, groups: tuple[str, ...]) -> Path:
    words = list(groups)
    if words and target.startswith("block"):
        words[0] = str(int(words[0]) + 1)
    return tuple(target.format(*(_LONG.get(word, word) for word in words)).split("/"))


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
