"""Towers from state dicts with the names of DINO's code: DINO, DINOv2, iBOT, and timm's ViT.

Sizes are told from shapes. A tensor that is not known is refused by name: without it, features
would be others, in silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vpltool.clip.towers import BLOCK_PARTS, activation_of, expect_equal
from vpltool.core.blocks import Block, BlockShape
from vpltool.core.vit import Head, Resampling, VisionTower
from vpltool.errors import VplError

HEAD_WIDTH = 64
"""Channels of a head, in every published model of these families."""

DINO = Resampling("bicubic", offset=0.1)
"""As DINO's and DINOv2's code resamples positions."""

SMOOTHED = Resampling("bicubic", antialias=True)
"""As timm does, and DINOv2's models with registers."""

INSTEAD = "give a ViT-S, -B or -L of DINO or DINOv2, or a CLIP: `encoder='MODEL:PRETRAINED'`"

_UNUSED = ("mask_token", "head.", "head_dist.", "fc_norm.")
"""Beginnings of names of what training or classifying needs, and patch tokens do not."""


class _Parts:
    """A state dict from which parts are taken, so that what is left over can be told."""

    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        self.left = dict(state)
        self.where = where

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise VplError(f"{self.where} has no `{name}`: its patch tokens cannot be computed",
                           INSTEAD)
        return self.left.pop(name).float()

    def take_any(self, *names: str) -> Tensor | None:
        return next((self.take(name) for name in names if name in self.left), None)

    def take_module(self, name: str) -> dict[str, Tensor]:
        return {kind: self.take(f"{name}.{kind}") for kind in ("weight", "bias")}

    def check_empty(self) -> None:
        """Refuse what nobody has taken."""
        for name in sorted(self.left):
            if not name.startswith(_UNUSED):
                raise VplError(f"{self.where} has `{name}`, which vpltool does not know", INSTEAD)


def is_state_of_vit(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict has the names of DINO's code."""
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(state)


def tower_from_state(
    state: Mapping[str, Tensor], where: str, *, heads: int = 0, eps: float = 1e-6,
    activation: str = "gelu", grid: tuple[int, int] | None = None,
    resampling: Resampling | None = None,
) -> VisionTower:
    """Make a tower from a state dict with the names of DINO's code.

    Args:
        state: name to tensor.
        where: what it is of, for messages.
        heads: of each block; 0: as many as are 64 channels wide.
        eps: of every LN.
        activation: of every MLP, one of `core.blocks.ACTIVATIONS`.
        grid: that the positions are for; default: the square that fits.
        resampling: of the positions; default: as in DINO's code, or DINOv2's with registers.

    Raises:
        VplError: a part is missing, not known, or of a shape that does not fit.
    """
    parts = _Parts(state, where)
    conv, bias = parts.take("patch_embed.proj.weight"), parts.take_any("patch_embed.proj.bias")
    width, _, patch, across = conv.shape
    if patch != across:
        raise VplError(f"{where}: patches of {patch}×{across} are not square", INSTEAD)
    if not heads and width % HEAD_WIDTH:
        raise VplError(f"{where}: {width} channels are not a multiple of {HEAD_WIDTH} per head",
                       "name the model, which says how many there are: `encoder='timm:MODEL,FILE'`")
    before = [part[0] for part in (parts.take_any("cls_token"),
                                   parts.take_any("register_tokens", "reg_token"))
              if part is not None]
    cls = torch.cat(before) if before else conv.new_zeros(0, width)
    positions, grid = _positions(parts.take("pos_embed")[0], len(cls), grid, where)
    if bias is not None:
        # Resampling a constant gives the constant, so the bias can be added to the positions.
        positions[len(cls):] += bias
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    try:
        blocks = [_block(parts, number, width, heads or width // HEAD_WIDTH, eps, activation)
                  for number in range(depth)]
        head = Head(blocks[-1].shape, pool_width=width, dim=0, ln_after_pool=False,
                    value_path=False, post_eps=eps, prefix=len(cls))
        head.block = blocks.pop()
        head.ln_post.load_state_dict(parts.take_module("norm"))
    except RuntimeError as error:
        raise VplError(f"{where}: its shapes do not fit together ({str(error).splitlines()[-1]})",
                       INSTEAD) from error
    parts.check_empty()
    tower = VisionTower(
        patch=int(patch), grid=grid, blocks=blocks, head=head, width=int(width),
        ln_pre=nn.Identity(), resampling=resampling or (SMOOTHED if len(cls) > 1 else DINO))
    tower.conv.weight.data.copy_(conv)
    tower.cls.data.copy_(cls)
    tower.positions.data.copy_(positions)
    return tower.eval().requires_grad_(False)


def _positions(table: Tensor, prefix: int, grid: tuple[int, int] | None, where: str
               ) -> tuple[Tensor, tuple[int, int]]:
    """Give every token its position (prefix+h·w, width): registers may have none, or no token."""
    for own in (prefix, 1, 0):
        patches = len(table) - own
        side = math.isqrt(max(patches, 0))
        found = grid or (side, side)
        if own <= prefix and patches > 0 and found[0] * found[1] == patches:
            none = table.new_zeros(prefix - own, table.shape[1])
            return torch.cat([table[:own], none, table[own:]]), found
    raise VplError(f"{where}: {len(table)} positions do not form a square grid", INSTEAD)


def _block(parts: _Parts, number: int, width: int, heads: int, eps: float, activation: str
           ) -> Block:
    at, names = f"blocks.{number}", BLOCK_PARTS["Block"]
    state = {f"{ours}.{kind}": tensor for ours in ("ln_1", "qkv", "out", "ln_2", "fc", "proj")
             for kind, tensor in parts.take_module(f"{at}.{names[ours]}").items()}
    for ours, theirs in zip(("gamma_1", "gamma_2"), names["gammas"].split(), strict=True):
        gamma = parts.take_any(f"{at}.{theirs}.gamma")
        state[ours] = torch.ones(width) if gamma is None else gamma
    block = Block(BlockShape(width=width, hidden=len(state["fc.weight"]), heads=heads, eps=eps,
                             activation=activation))
    block.load_state_dict(state)
    return block


def tower_from_timm(model: nn.Module, name: str) -> VisionTower:
    """Copy a ViT of timm, and compare the copy with it.

    Raises:
        VplError: it is another architecture, or has parts that are not supported.
    """
    source: Any = model
    if type(model).__name__ != "VisionTransformer":
        raise VplError(f"{name}: timm's {type(model).__name__} is not a plain ViT", INSTEAD)
    first = source.blocks[0]
    tower = tower_from_state(
        {key: tensor for key, tensor in model.state_dict().items()
         if not key.startswith("attn_pool.")}, name, heads=first.attn.num_heads,
        eps=first.norm1.eps, activation=activation_of(first.mlp.act),
        grid=tuple(source.patch_embed.grid_size), resampling=SMOOTHED)
    tower.head.ln_post.eps = source.norm.eps
    _compare(tower, source)
    return tower


@torch.no_grad()
def _compare(tower: VisionTower, model: Any) -> None:
    """Compare each block on a few tokens, and embedding and final norm without the blocks.

    Raises:
        VplError: they differ: the model has a part that was not copied.
    """
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 5 + tower.head.prefix, tower.width, generator=chance)
    for number, (ours, theirs) in enumerate(
            zip([*tower.blocks, tower.head.block], model.blocks, strict=True)):
        expect_equal(f"block {number}", ours(tokens), theirs(tokens))
    pixels = torch.randn(1, 3, *(tower.patch * side for side in tower.grid), generator=chance)
    blocks, model.blocks = model.blocks, nn.Identity()
    try:
        wanted = model.forward_features(pixels)
    finally:
        model.blocks = blocks
    expect_equal("embedding or norm", tower.head.ln_post(tower.embed(pixels)), wanted)
