"""Copying open_clip's vision towers: its own ViT, and timm's ViT of SigLIP.

An unknown part is refused by name, and every copy is compared with its original on random input:
no copy can give other features than open_clip's tower.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vpltool.clip.models import INSTEAD
from vpltool.core.blocks import Block, BlockShape
from vpltool.core.vit import Head, VisionTower
from vpltool.errors import VplError, near_name

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu",
               "SiLU": "silu"}
"""Class name in open_clip, torch or timm to our name."""

BLOCK_PARTS = {
    "ResidualAttentionBlock": {
        "ln_1": "ln_1", "ln_2": "ln_2", "out": "attn.out_proj", "fc": "mlp.c_fc",
        "proj": "mlp.c_proj", "activation": "mlp.gelu", "gammas": "ls_1 ls_2"},
    "Block": {
        "ln_1": "norm1", "ln_2": "norm2", "qkv": "attn.qkv", "out": "attn.proj", "fc": "mlp.fc1",
        "proj": "mlp.fc2", "activation": "mlp.act", "gammas": "ls1 ls2"},
}
"""Our names for the parts of a block to those of open_clip and timm."""

TOLERANCE = 1e-3
"""Largest difference of a copy from its original, relative to the largest value."""


def tower_from_open_clip(visual: nn.Module) -> VisionTower:
    """Copy the vision tower of an open_clip model.

    Raises:
        VplError: the tower is another architecture, or has parts that are not supported; the
            message names them.
    """
    name = type(visual).__name__
    if name == "TimmModel":
        tower = _copy_siglip(visual)
    elif name == "VisionTransformer":
        tower = _copy_vit(visual)
    else:
        raise VplError(f"a {name} tower has no patch tokens to make CAMs from", INSTEAD)
    tower.eval().requires_grad_(False)
    _compare(tower, visual)
    return tower


def _copy_vit(source: Any) -> VisionTower:
    if getattr(source, "attn_pool_contrastive", None) is not None:
        raise VplError("two attention poolers in a row are not supported", INSTEAD)
    if source.attn_pool is None and source.pool_type == "none":
        raise VplError("a tower without pooling has no embedding of a photo", INSTEAD)
    resblocks = list(source.transformer.resblocks)
    head = _vit_head(source, _copy_block(resblocks[-1]))
    return _tower(source.conv1, source.grid_size, resblocks, head,
                  ln_pre=copy.deepcopy(source.ln_pre).float(), cls=source.class_embedding[None],
                  positions=source.positional_embedding,
                  by_token=source.attn_pool is None and source.pool_type == "tok")


def _vit_head(source: Any, last: Block) -> Head:
    pooler = source.attn_pool
    pool_width, dim = source.proj.shape
    head = Head(last.shape, pool_width=pool_width, dim=dim, value_path=pooler is not None,
                ln_after_pool=pooler is None and source.final_ln_after_pool,
                post_eps=source.ln_post.eps,
                value_eps=None if pooler is None else pooler.ln_k.eps)
    head.block = last
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
    what = f"timm's {type(trunk).__name__}"
    if type(trunk).__name__ != "VisionTransformer" or type(pooler).__name__ != (
            "AttentionPoolLatent"):
        raise VplError(f"{what} is not supported: of timm's towers, only SigLIP's is", INSTEAD)
    for part in ("cls_token", "reg_token"):
        if getattr(trunk, part, None) is not None:
            raise VplError(f"{what} with {part} is not supported", INSTEAD)
    if pooler.latent_len != 1 or pooler.pool != "token" or pooler.mlp is None or (
            pooler.pos_embed is not None):
        raise VplError(f"{what} with a pooler that is not SigLIP's is not supported", INSTEAD)
    _expect_identities(what, {
        "norm_pre": trunk.norm_pre, "fc_norm": trunk.fc_norm, "head": trunk.head,
        "projection": visual.head, "patch_embed.norm": trunk.patch_embed.norm,
        "q_norm": pooler.q_norm, "k_norm": pooler.k_norm, "mlp.norm": pooler.mlp.norm})
    blocks = list(trunk.blocks)
    conv = trunk.patch_embed.proj
    positions = trunk.pos_embed[0]
    if conv.bias is not None:
        # Interpolating a constant gives the constant, so the bias can be added to the positions.
        positions = positions + conv.bias
    head = _siglip_head(trunk.norm, pooler, _copy_block(blocks[-1]))
    return _tower(conv, trunk.patch_embed.grid_size, blocks, head, ln_pre=nn.Identity(),
                  cls=positions[:0], positions=positions)


def _siglip_head(norm: Any, pooler: Any, last: Block) -> Head:
    width = last.shape.width
    head = Head(last.shape, pool_width=width, dim=width, ln_after_pool=False, value_path=True,
                post_eps=pooler.norm.eps, value_eps=norm.eps, pooler={
                    "heads": pooler.num_heads, "hidden": pooler.mlp.fc1.out_features,
                    "eps": pooler.norm.eps, "activation": activation_of(pooler.mlp.act)})
    head.block = last
    head.query.data.copy_(pooler.q(pooler.latent)[0, 0])
    own_norm, into, out = head.value_path.children()
    _copy(own_norm, norm)
    weights, biases = pooler.kv.weight.chunk(2), pooler.kv.bias.chunk(2)
    _fill(head.key, weights[0], biases[0])
    _fill(into, weights[1], biases[1])
    _copy(out, pooler.proj)
    _copy(head.ln_post, pooler.norm)
    _copy(head.fc, pooler.mlp.fc1)
    _copy(head.fc_out, pooler.mlp.fc2)
    return head


def _tower(conv: Any, grid: Iterable[int], blocks: list[Any], head: Head, *, ln_pre: nn.Module,
           cls: Tensor, positions: Tensor, by_token: bool = False) -> VisionTower:
    height, width = conv.kernel_size
    if height != width or conv.stride != conv.kernel_size:
        raise VplError(f"patches of {conv.kernel_size} are not square, or overlap", INSTEAD)
    rows, columns = grid
    tower = VisionTower(
        patch=int(height), grid=(int(rows), int(columns)), head=head, ln_pre=ln_pre,
        blocks=[_copy_block(block) for block in blocks[:-1]], width=conv.out_channels,
        by_token=by_token)
    tower.conv.weight.data.copy_(conv.weight)
    tower.cls.data.copy_(cls)
    tower.positions.data.copy_(positions)
    return tower


def _copy_block(source: Any) -> Block:
    kind = type(source).__name__
    if kind not in BLOCK_PARTS:
        raise VplError(f"blocks of type {kind} are not supported", INSTEAD)
    names = BLOCK_PARTS[kind]
    part = {ours: source.get_submodule(theirs) for ours, theirs in names.items()
            if ours != "gammas"}
    if kind == "Block":
        _expect_identities("a timm block", {
            name: module for name, module in source.named_modules()
            if name in ("attn.q_norm", "attn.k_norm", "attn.norm", "attn.gate", "mlp.norm")})
    block = Block(BlockShape(
        width=part["ln_1"].normalized_shape[0], hidden=part["fc"].out_features,
        heads=source.attn.num_heads, eps=part["ln_1"].eps,
        activation=activation_of(part["activation"])))
    for name in ("ln_1", "ln_2", "out", "fc", "proj"):
        _copy(getattr(block, name), part[name])
    if "qkv" in part:
        _copy(block.qkv, part["qkv"])
    else:
        _fill(block.qkv, source.attn.in_proj_weight, source.attn.in_proj_bias)
    for gamma, name in zip((block.gamma_1, block.gamma_2), names["gammas"].split(), strict=True):
        scale = source.get_submodule(name)
        if hasattr(scale, "gamma"):
            gamma.data.copy_(scale.gamma)
    return block


def _expect_identities(where: str, parts: dict[str, nn.Module]) -> None:
    for name, module in parts.items():
        empty = isinstance(module, nn.Sequential) and not len(module)
        if not empty and not isinstance(module, nn.Identity):
            raise VplError(f"{where} with {name} ({type(module).__name__}) is not supported",
                           INSTEAD)


def _copy(target: Any, source: Any) -> None:
    _fill(target, source.weight, source.bias)


def _fill(target: Any, weight: Tensor, bias: Tensor) -> None:
    target.load_state_dict({"weight": weight, "bias": bias})


def activation_of(module: nn.Module) -> str:
    """Name an activation as `core.blocks` does.

    Raises:
        VplError: it is not one of these.
    """
    name = type(module).__name__
    if name not in ACTIVATIONS:
        raise VplError(f"the activation {name} is not supported", near_name(name, ACTIVATIONS))
    tanh = getattr(module, "approximate", "none") == "tanh"
    return "gelu_tanh" if tanh else ACTIVATIONS[name]


@torch.no_grad()
def _compare(tower: VisionTower, visual: Any) -> None:
    """Compare a copy with its original: each block on a few tokens, then the rest without blocks.

    This costs little more than reading the weights; a whole forward pass would cost as much as a
    photo.

    Raises:
        VplError: they differ: the original has a part that was not copied.
    """
    timm = hasattr(visual, "trunk")
    stack = visual.trunk.blocks if timm else visual.transformer.resblocks
    chance = torch.Generator().manual_seed(0)
    like = next(visual.parameters())
    tokens = torch.randn(1, 5, tower.width, generator=chance).to(like.device)
    for number, (ours, theirs) in enumerate(
            zip([*tower.blocks, tower.head.block], stack, strict=True)):
        expect_equal(f"block {number}", ours(tokens), theirs(tokens.to(like)))
    seen: list[Tensor] = []
    owner, name = (visual.trunk, "blocks") if timm else (visual, "transformer")
    original = getattr(owner, name)
    passage = nn.Identity()
    passage.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    training = visual.training
    setattr(owner, name, passage)
    try:
        size = [tower.patch * side for side in tower.grid]
        pixels = torch.randn(1, 3, *size, generator=chance).to(like.device)
        pooled = visual.eval()(pixels.to(like))
    finally:
        setattr(owner, name, original)
        visual.train(training)
    embedded = tower.embed(pixels)
    expect_equal("the patch embedding", embedded, seen[0])
    if getattr(visual, "attn_pool", None) is not None:
        # Our head copies only the value path of this pooler: the pooled embeddings differ.
        return
    pooled = pooled[0] if isinstance(pooled, tuple) else pooled
    found = (tower.head.patch_embeddings(embedded[:, 0]) if tower.by_token
             else tower.head.pooled(embedded))
    expect_equal("pooling", found, nn.functional.normalize(pooled, dim=-1))


def expect_equal(part: str, found: Tensor, wanted: Tensor) -> None:
    """Check that a part of a copy gives what its original gives.

    Raises:
        VplError: it does not; the part is named.
    """
    wanted = wanted.to(found)
    if (found.shape != wanted.shape
            or not float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())):
        raise VplError(f"vpltool does not support how this tower computes {part}", INSTEAD)
