"""Our tower with the weights of others: open_clip's ViT, SigLIP's, DINO's and timm's ViT.

Unknown parts are refused by name, and a copy of a module is compared with it on random input, so
that no copy can give other features than its original.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.clip.models import INSTEAD
from vpltool.core.blocks import Block, BlockShape
from vpltool.core.vit import Head, Resampling, VisionTower
from vpltool.errors import VplError, near_name

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu",
               "SiLU": "silu"}
"""Class name in open_clip, torch or timm to our name."""

BLOCK_PARTS = {
    "ResidualAttentionBlock": {
        "ln_1": "ln_1.", "ln_2": "ln_2.", "qkv": "attn.in_proj_", "out": "attn.out_proj.",
        "fc": "mlp.c_fc.", "proj": "mlp.c_proj.", "gamma_1": "ls_1.gamma", "gamma_2": "ls_2.gamma"},
    "Block": {
        "ln_1": "norm1.", "ln_2": "norm2.", "qkv": "attn.qkv.", "out": "attn.proj.",
        "fc": "mlp.fc1.", "proj": "mlp.fc2.", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"},
}
"""Our names of a block's tensors to those of open_clip, and of timm and DINO."""

TOLERANCE = 1e-3
"""Largest difference of a copy from its original, relative to the largest value."""

HEAD_WIDTH = 64
"""Channels of a head, in every published model of DINO and DINOv2."""

DINO = Resampling("bicubic", offset=0.1)
"""Resampling of positions in DINO's and DINOv2's code."""

SMOOTHED = Resampling("bicubic", antialias=True)
"""Resampling of positions in timm, and in DINOv2's models with registers."""

_ENCODERS = "give a ViT-S, -B or -L of DINO or DINOv2, or a CLIP: `encoder='MODEL:PRETRAINED'`"

_UNUSED = ("mask_token", "head.", "head_dist.", "fc_norm.")
"""Beginnings of names of tensors that only training or classification needs."""


class _Parts:
    """A state dict from which parts are taken, so that unknown parts can be refused."""

    def __init__(self, state: Mapping[str, Tensor], where: str, instead: str) -> None:
        self.left = dict(state)
        self.where = where
        self.instead = instead

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise VplError(f"{self.where} has no `{name}`: its patch tokens cannot be computed",
                           self.instead)
        return self.left.pop(name).float()

    def take_any(self, *names: str) -> Tensor | None:
        return next((self.take(name) for name in names if name in self.left), None)

    def take_pair(self, name: str) -> dict[str, Tensor]:
        return {kind: self.take(name + kind) for kind in ("weight", "bias")}

    def check_empty(self) -> None:
        """Refuse parts that were not taken."""
        for name in sorted(self.left):
            if not name.startswith(_UNUSED):
                raise VplError(f"{self.where} has `{name}`, which vpltool does not know",
                               self.instead)


def tower_from_open_clip(visual: nn.Module) -> VisionTower:
    """Copy the vision tower of an open_clip model in evaluation mode.

    Raises a VplError if its architecture, or a part that the message names, is not supported.
    """
    source: Any = visual
    name = type(visual).__name__
    if name == "TimmModel":
        tower = _copy_siglip(source)
        owner, part, blocks = source.trunk, "blocks", source.trunk.blocks
    elif name == "VisionTransformer":
        tower = _copy_vit(source)
        owner, part, blocks = source, "transformer", source.transformer.resblocks
    else:
        raise VplError(f"a {name} tower has no patch tokens to make CAMs from", INSTEAD)
    embedded, pooled = _compare(tower, owner, part, blocks, visual)
    if getattr(source, "attn_pool", None) is None:
        # Our head has only the value path of open_clip's own pooler: pooled, they differ.
        found = (tower.head.patch_embeddings(embedded[:, 0]) if tower.by_token
                 else tower.head.pooled(embedded))
        _expect_equal("pooling", found, F.normalize(pooled, dim=-1))
    return tower


def _copy_vit(source: Any) -> VisionTower:
    if getattr(source, "attn_pool_contrastive", None) is not None:
        raise VplError("two attention poolers in a row are not supported", INSTEAD)
    if source.attn_pool is None and source.pool_type == "none":
        raise VplError("a tower without pooling has no embedding of a photo", INSTEAD)
    blocks = [_copy_block(block) for block in source.transformer.resblocks]
    return _tower(source.conv1, source.grid_size, blocks, _vit_head(source, blocks[-1].shape),
                  cls=source.class_embedding[None], positions=source.positional_embedding,
                  ln_pre=copy.deepcopy(source.ln_pre).float(),
                  by_token=source.attn_pool is None and source.pool_type == "tok")


def _vit_head(source: Any, shape: BlockShape) -> Head:
    pooler = source.attn_pool
    pool_width, dim = source.proj.shape
    head = Head(shape, pool_width=pool_width, dim=dim, value_path=pooler is not None,
                ln_after_pool=pooler is None and source.final_ln_after_pool,
                post_eps=source.ln_post.eps,
                value_eps=None if pooler is None else pooler.ln_k.eps)
    _copy(head.ln_post, source.ln_post)
    head.proj.data.copy_(source.proj)
    if pooler is not None:
        attention = pooler.attn
        value = (attention.in_proj_weight[2 * pool_width :]
                 if attention.in_proj_weight is not None else attention.v_proj_weight)
        norm, into, out = head.value_path.children()
        _copy(norm, pooler.ln_k)
        _fill(into, value, attention.in_proj_bias[2 * pool_width :])
        _copy(out, attention.out_proj)
    return head


def _copy_siglip(visual: Any) -> VisionTower:
    """Copy timm's ViT with no class token and a pooler of one query (SigLIP, ICCV 2023)."""
    trunk = visual.trunk
    pooler: Any = getattr(trunk, "attn_pool", None)
    if (type(trunk).__name__ != "VisionTransformer" or trunk.cls_token is not None
            or type(pooler).__name__ != "AttentionPoolLatent" or pooler.mlp is None):
        raise VplError(f"timm's {type(trunk).__name__} is not supported: of timm's towers, only "
                       "SigLIP's is", INSTEAD)
    blocks = [_copy_block(block) for block in trunk.blocks]
    conv = trunk.patch_embed.proj
    positions = trunk.pos_embed[0]
    if conv.bias is not None:
        # Interpolating a constant gives the constant, so the bias can be added to the positions.
        positions = positions + conv.bias
    head = _siglip_head(trunk.norm, pooler, blocks[-1].shape)
    return _tower(conv, trunk.patch_embed.grid_size, blocks, head, cls=positions[:0],
                  positions=positions)


def _siglip_head(norm: Any, pooler: Any, shape: BlockShape) -> Head:
    head = Head(shape, pool_width=shape.width, dim=shape.width, ln_after_pool=False,
                value_path=True, post_eps=pooler.norm.eps, value_eps=norm.eps, pooler={
                    "heads": pooler.num_heads, "hidden": pooler.mlp.fc1.out_features,
                    "eps": pooler.norm.eps, "activation": _activation_of(pooler.mlp.act)})
    head.query.data.copy_(pooler.q(pooler.latent)[0, 0])
    own_norm, into, out = head.value_path.children()
    weights, biases = pooler.kv.weight.chunk(2), pooler.kv.bias.chunk(2)
    _fill(head.key, weights[0], biases[0])
    _fill(into, weights[1], biases[1])
    for ours, theirs in ((own_norm, norm), (out, pooler.proj), (head.ln_post, pooler.norm),
                         (head.fc, pooler.mlp.fc1), (head.fc_out, pooler.mlp.fc2)):
        _copy(ours, theirs)
    return head


def tower_from_timm(model: nn.Module, name: str) -> VisionTower:
    """Copy a ViT of timm in evaluation mode, without its pooler, and compare the copy with it.

    Raises a VplError if its architecture or a part is not supported.
    """
    source: Any = model
    if type(model).__name__ != "VisionTransformer":
        raise VplError(f"{name}: timm's {type(model).__name__} is not a plain ViT", _ENCODERS)
    first = source.blocks[0]
    tower = tower_from_state(
        {key: tensor for key, tensor in model.state_dict().items()
         if not key.startswith("attn_pool.")}, name, heads=first.attn.num_heads,
        eps=first.norm1.eps, activation=_activation_of(first.mlp.act),
        grid=tuple(source.patch_embed.grid_size), resampling=SMOOTHED)
    tower.head.ln_post.eps = source.norm.eps
    embedded, normed = _compare(tower, source, "blocks", source.blocks, source.forward_features)
    _expect_equal("the last norm", tower.head.ln_post(embedded), normed)
    return tower


def is_state_of_vit(names: Iterable[str]) -> bool:
    """Return whether the tensors of a state dict have the names of DINO's code."""
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(names)


def tower_from_state(
    state: Mapping[str, Tensor], where: str, *, heads: int = 0, eps: float = 1e-6,
    activation: str = "gelu", grid: tuple[int, int] | None = None,
    resampling: Resampling | None = None,
) -> VisionTower:
    """Make a tower from a state dict with the names of DINO's code: DINO, DINOv2, iBOT, timm's ViT.

    Sizes follow from shapes.

    Args:
        state: name to tensor.
        where: its origin, for messages.
        heads: of each block; 0: as many as are 64 channels wide.
        eps: of every LN.
        activation: of every MLP, one of `core.blocks.ACTIVATIONS`.
        grid: of the positions; default: the square that fits.
        resampling: of the positions; default: as in DINO's code, or DINOv2's with registers.

    Raises:
        VplError: a part is missing, unknown, or of a shape that does not fit.
    """
    parts = _Parts(state, where, _ENCODERS)
    weight, bias = parts.take("patch_embed.proj.weight"), parts.take_any("patch_embed.proj.bias")
    width, _, patch, across = weight.shape
    if patch != across:
        raise VplError(f"{where}: patches of {patch}×{across} are not square", _ENCODERS)
    if not heads and width % HEAD_WIDTH:
        raise VplError(f"{where}: {width} channels are not a multiple of {HEAD_WIDTH} per head",
                       "name the model, which says how many there are: `encoder='timm:MODEL,FILE'`")
    before = [part[0] for part in (parts.take_any("cls_token"),
                                   parts.take_any("register_tokens", "reg_token"))
              if part is not None]
    cls = torch.cat(before) if before else weight.new_zeros(0, width)
    positions, grid = _positions(parts.take("pos_embed")[0], len(cls), grid, where)
    if bias is not None:
        # Resampling a constant gives the constant, so the bias can be added to the positions.
        positions[len(cls):] += bias
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    try:
        blocks = [_block(parts, f"blocks.{number}.", "Block", width, heads or width // HEAD_WIDTH,
                         eps, activation) for number in range(depth)]
        head = Head(blocks[-1].shape, pool_width=width, dim=0, ln_after_pool=False,
                    value_path=False, post_eps=eps, prefix=len(cls))
        head.ln_post.load_state_dict(parts.take_pair("norm."))
    except RuntimeError as error:
        raise VplError(f"{where}: its shapes do not fit together ({str(error).splitlines()[-1]})",
                       _ENCODERS) from error
    parts.check_empty()
    conv = nn.Conv2d(3, width, patch, patch, bias=False)
    conv.load_state_dict({"weight": weight})
    return _tower(conv, grid, blocks, head, cls=cls, positions=positions,
                  resampling=resampling or (SMOOTHED if len(cls) > 1 else DINO))


def _positions(table: Tensor, prefix: int, grid: tuple[int, int] | None, where: str
               ) -> tuple[Tensor, tuple[int, int]]:
    """Return the positions of all tokens (prefix+h·w, width), 0 where there are none; the grid."""
    for own in (prefix, 1, 0):
        patches = len(table) - own
        side = math.isqrt(max(patches, 0))
        found = grid or (side, side)
        if own <= prefix and patches > 0 and found[0] * found[1] == patches:
            zeros = table.new_zeros(prefix - own, table.shape[1])
            return torch.cat([table[:own], zeros, table[own:]]), found
    raise VplError(f"{where}: {len(table)} positions do not form a square grid", _ENCODERS)


def _tower(conv: Any, grid: tuple[int, int], blocks: list[Block], head: Head, *, cls: Tensor,
           positions: Tensor, ln_pre: nn.Module | None = None, by_token: bool = False,
           resampling: Resampling | None = None) -> VisionTower:
    """Assemble a tower, frozen and in evaluation mode; the head takes the last block."""
    height, width = conv.kernel_size
    if height != width or conv.stride != conv.kernel_size:
        raise VplError(f"patches of {conv.kernel_size} are not square, or overlap", INSTEAD)
    head.block = blocks[-1]
    tower = VisionTower(
        patch=int(height), grid=(int(grid[0]), int(grid[1])), head=head, blocks=blocks[:-1],
        width=conv.out_channels, ln_pre=nn.Identity() if ln_pre is None else ln_pre,
        by_token=by_token, resampling=resampling or Resampling())
    tower.conv.weight.data.copy_(conv.weight)
    tower.cls.data.copy_(cls)
    tower.positions.data.copy_(positions)
    return tower.eval().requires_grad_(False)


def _copy_block(source: Any) -> Block:
    """Copy a block of open_clip or timm; refuse unknown parts."""
    kind = type(source).__name__
    if kind not in BLOCK_PARTS:
        raise VplError(f"blocks of type {kind} are not supported", INSTEAD)
    norm, activation = ((source.norm1, source.mlp.act) if kind == "Block"
                        else (source.ln_1, source.mlp.gelu))
    parts = _Parts(source.state_dict(), f"a block of type {kind}", INSTEAD)
    block = _block(parts, "", kind, norm.normalized_shape[0], source.attn.num_heads, norm.eps,
                   _activation_of(activation))
    parts.check_empty()
    return block


def _block(parts: _Parts, at: str, kind: str, width: int, heads: int, eps: float,
           activation: str) -> Block:
    """Make a block of the tensors whose names begin with `at`."""
    names = BLOCK_PARTS[kind]
    state = {f"{ours}.{part}": tensor for ours in ("ln_1", "qkv", "out", "ln_2", "fc", "proj")
             for part, tensor in parts.take_pair(at + names[ours]).items()}
    for ours in ("gamma_1", "gamma_2"):
        gamma = parts.take_any(at + names[ours])
        state[ours] = torch.ones(width) if gamma is None else gamma
    block = Block(BlockShape(width=width, hidden=len(state["fc.weight"]), heads=heads, eps=eps,
                             activation=activation))
    block.load_state_dict(state)
    return block


def _copy(target: Any, source: Any) -> None:
    _fill(target, source.weight, source.bias)


def _fill(target: Any, weight: Tensor, bias: Tensor) -> None:
    target.load_state_dict({"weight": weight, "bias": bias})


def _activation_of(module: nn.Module) -> str:
    """Return the name of an activation in `core.blocks`."""
    name = type(module).__name__
    if name not in ACTIVATIONS:
        raise VplError(f"the activation {name} is not supported", near_name(name, ACTIVATIONS))
    tanh = getattr(module, "approximate", "none") == "tanh"
    return "gelu_tanh" if tanh else ACTIVATIONS[name]


@torch.no_grad()
def _compare(tower: VisionTower, owner: Any, part: str, blocks: Any,
             run: Callable[[Tensor], Any]) -> tuple[Tensor, Tensor]:
    """Compare each block on a few tokens, then the patch embedding on random pixels.

    That is much cheaper than a whole forward pass. `owner.part` runs the original's `blocks`, and
    `run` all of it. Returns the tokens (1, N, width) and the original's output without the blocks.
    """
    chance = torch.Generator().manual_seed(0)
    like = next(owner.parameters())
    tokens = torch.randn(1, 5 + tower.head.prefix, tower.width, generator=chance).to(like.device)
    for number, (ours, theirs) in enumerate(
            zip([*tower.blocks, tower.head.block], blocks, strict=True)):
        _expect_equal(f"block {number}", ours(tokens), theirs(tokens.to(like)))
    inputs: list[Tensor] = []
    passage = nn.Identity()
    passage.register_forward_hook(lambda _module, given, _output: inputs.append(given[0]))
    original = getattr(owner, part)
    setattr(owner, part, passage)
    try:
        size = [tower.patch * side for side in tower.grid]
        pixels = torch.randn(1, 3, *size, generator=chance).to(like.device)
        result = run(pixels.to(like))
    finally:
        setattr(owner, part, original)
    embedded = tower.embed(pixels)
    _expect_equal("the patch embedding", embedded, inputs[0])
    return embedded, result[0] if isinstance(result, tuple) else result


def _expect_equal(part: str, found: Tensor, wanted: Tensor) -> None:
    """Refuse a copy whose output differs from its original's; the message names the part."""
    wanted = wanted.to(found)
    if (found.shape != wanted.shape
            or not float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())):
        raise VplError(f"vpltool does not support how this tower computes {part}", INSTEAD)
