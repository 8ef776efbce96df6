"""GroupViT's weights in the names of the package transformers, under the names of `core/groups`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = (
    (r"layer_norm1", "ln_1"), (r"layer_norm2", "ln_2"), (r"mlp\.fc1", "fc"), (r"mlp\.fc2", "proj"),
    (r"self_attn\.out_proj", "out"), (r"self_attn\.([qkv])_proj", r"qkv.\1"))

_STAGES = {"0": "first.", "1": "second.", "2": ""}

_STAGE = (
    (r"group_token", "tokens"), (r"group_projector\.0", "carry.norm"),
    (r"group_projector\.1\.fc1", "carry.fc"), (r"group_projector\.1\.fc2", "carry.proj"))

_DOWN = (
    (r"norm_tokens", "mixer.norm"), (r"mlp_inter\.fc1", "mixer.fc"),
    (r"mlp_inter\.fc2", "mixer.proj"), (r"norm_post_tokens", "norm_groups"),
    (r"norm_x", "norm_patches"), (r"pre_assign_attn\.attn\.q_proj", "look.query"),
    (r"pre_assign_attn\.attn\.k_proj", "look.key"),
    (r"pre_assign_attn\.attn\.v_proj", "look.value"),
    (r"pre_assign_attn\.attn\.out_proj", "look.out"), (r"pre_assign_attn\.norm2", "look.mlp.0"),
    (r"pre_assign_attn\.mlp\.fc1", "look.mlp.1"), (r"pre_assign_attn\.mlp\.fc2", "look.mlp.3"),
    (r"pre_assign_attn\.norm_post", "look.norm"), (r"assign\.q_proj", "query"),
    (r"assign\.k_proj", "key"), (r"assign\.v_proj", "value"), (r"assign\.proj", "out"),
    (r"norm_new_x", "mlp.0"), (r"mlp_channels\.fc1", "mlp.1"), (r"mlp_channels\.fc2", "mlp.3"))

_WHOLE = (
    (r"logit_scale", "log_scale"), (r"visual_projection\.", "project_vision."),
    (r"text_projection\.", "project_text."), (r"vision_model\.layernorm", "vision.norm"),
    (r"vision_model\.embeddings\.patch_embeddings\.projection", "vision.conv"),
    (r"vision_model\.embeddings\.layernorm", "vision.norm_patches"),
    (r"vision_model\.embeddings\.position_embeddings", "vision.positions"),
    (r"text_model\.embeddings\.token_embedding", "text.words"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positions"),
    (r"text_model\.final_layer_norm", "text.norm"))
"""Beginnings of names and ours. The order of a table does not matter: a name is either whole or
ends in a dot, before `weight`, `bias` or a statistic."""

_LAYER = re.compile(r"(?:vision_model\.encoder\.stages\.(\d)|text_model\.encoder)"
                    r"\.layers\.(\d+)\.(.+)")
_OF_STAGE = re.compile(r"vision_model\.encoder\.stages\.(\d)\.(downsample\.)?(.+)")


def is_groupvit(names: Mapping[str, Tensor]) -> bool:
    """Tell by its names whether a file holds GroupViT as transformers writes it."""
    return any(name.startswith("vision_model.encoder.stages.") for name in names)


def from_groupvit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name GroupViT's weights as a `GroupNetwork` does; queries, keys and values become one.

    Names that it does not know are left out, such as indices of positions.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = _our_name(name)
        if ours:
            named[ours] = tensor
    if "vision.positions" in named:
        named["vision.positions"] = named["vision.positions"].squeeze(0)
    joined = sorted({re.sub(r"\.qkv\.[qkv]\.", ".qkv.", name) for name in named
                     if ".qkv." in name})
    for name in joined:
        start, _, kind = name.rpartition(".")
        named[name] = torch.cat([named.pop(f"{start}.{part}.{kind}") for part in "qkv"])
    return named


def _our_name(name: str) -> str:
    """Our name of one of transformers'; empty if we have none."""
    if layer := _LAYER.fullmatch(name):
        stage, number, rest = layer.groups()
        prefix = "text." if stage is None else f"vision.{_STAGES[stage]}"
        return _translated(rest, _BLOCK, f"{prefix}blocks.{number}.")
    if part := _OF_STAGE.fullmatch(name):
        stage, down, rest = part.groups()
        prefix = f"vision.{_STAGES[stage]}"
        return _translated(rest, _DOWN, f"{prefix}grouping.") if down else _translated(
            rest, _STAGE, prefix)
    return _translated(name, _WHOLE, "")


def _translated(name: str, table: tuple[tuple[str, str], ...], prefix: str) -> str:
    for pattern, ours in table:
        if found := re.match(pattern + r"(?=\.|$|(?<=\.))", name):
            return prefix + found.expand(ours) + name[found.end() :]
    return ""
