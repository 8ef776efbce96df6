"""Towers without their model: what a file must say of a vision tower, to run it on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from vpltool.clip.timm_towers import TimmTower, timm_from_config
from vpltool.clip.transformers_towers import TransformersTower, transformers_from_config
from vpltool.clip.weights import without_random_init
from vpltool.core.blocks import Block, BlockShape, rebuild
from vpltool.core.tower import Tower
from vpltool.core.vit import Head, Resampling, VisionTower
from vpltool.json_text import JsonObject


def tower_config(tower: Tower) -> JsonObject:
    """What `tower_from_config` needs in addition to the state dict, as values for JSON."""
    if isinstance(tower, (TimmTower, TransformersTower)):
        return tower.config
    assert isinstance(tower, VisionTower)
    norm = tower.ln_pre
    return {"patch": tower.patch, "grid": list(tower.grid), "width": tower.width,
            "blocks": [asdict(block.shape) for block in tower.blocks if isinstance(block, Block)],
            "head": tower.head.config, "by_token": tower.by_token,
            "ln_pre": norm.eps if isinstance(norm, nn.LayerNorm) else None,
            "resampling": asdict(tower.resampling)}


def tower_from_config(config: Mapping[str, object], state: Mapping[str, Tensor]) -> Tower:
    """Rebuild a tower, frozen and in evaluation mode; see `tower_config`.

    Raises:
        ValueError: the state dict is of another tower, or these are no values of one.
    """
    if config.get("library") == "timm":
        return timm_from_config(config, state)
    if config.get("library") == "transformers":
        return transformers_from_config(config, state)
    return vit_from_config(config, state)


def vit_from_config(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> VisionTower:
    """Rebuild a tower that runs its blocks itself; see `tower_from_config`.

    Raises:
        ValueError: as there.
    """
    def build() -> VisionTower:
        width, eps = config["width"], config["ln_pre"]
        if len(config["blocks"]) > len(state):
            raise TypeError(f"{len(config['blocks'])} blocks are more than the file holds")
        return VisionTower(
            patch=config["patch"], grid=tuple(config["grid"]), width=width,
            blocks=[Block(BlockShape(**shape)) for shape in config["blocks"]],
            head=Head.from_config(config["head"]), by_token=config["by_token"],
            ln_pre=nn.Identity() if eps is None else nn.LayerNorm(width, eps=eps),
            resampling=Resampling(**config["resampling"]))

    with without_random_init():
        tower = rebuild(build, state)
    return tower.eval().requires_grad_(False)
