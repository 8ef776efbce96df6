"""Loading a CLIP with open_clip, and taking its parts. The only module that imports open_clip."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.vit import Block, BlockShape, Head, VisionTower
from vpltool.errors import VplError, near_name

NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and deviation of RGB in [0, 1] that stand in for the model's own (WeCLIP: ImageNet's)."""


@dataclass(frozen=True)
class Clip:
    """A frozen dual encoder.

    Args:
        vision: the vision tower, in evaluation mode.
        text: open_clip's whole model, for `encode_text`.
        tokenizer: open_clip's tokenizer of this model.
        mean: mean of RGB in [0, 1], subtracted before encoding.
        std: standard deviation, divided by.
        identity: `name`, `pretrained` and `fingerprint`, and `normalise` where it is not the
            model's own; goes into headers.
    """

    vision: VisionTower
    text: Any
    tokenizer: Any
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    identity: dict[str, str]

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts to L2-normed vectors (len(prompts), dim), float32."""
        device = next(self.text.parameters()).device
        parts = [
            self.text.encode_text(self.tokenizer(list(prompts[start : start + 256])).to(device))
            for start in range(0, len(prompts), 256)
        ]
        return F.normalize(torch.cat(parts).float(), dim=-1)


def load_clip(model: str, pretrained: str, device: torch.device, *, base: Path = Path(),
              normalise: str = "model") -> Clip:
    """Load a CLIP with weights, and never with random ones.

    Args:
        model: open_clip's name, `ViT-B-16-quickgelu`.
        pretrained: a tag (`openai`), a weights file, or a folder with `open_clip_config.json`.
        device: where it goes.
        base: what a relative path in `pretrained` is relative to.
        normalise: how photos are normalised: as the `model` was trained, or one of
            `NORMALISATIONS`.

    Raises:
        VplError: no such model or weights, or a tower without the parts that CAMs need.
    """
    open_clip = import_open_clip()
    path = base / pretrained
    source = model
    weights: str | None = pretrained
    if path.is_dir():
        source, weights = f"local-dir:{path}", None
    elif path.is_file():
        weights = str(path)
    if not source.startswith("local-dir:"):
        _check_names(open_clip, model, pretrained, is_file=path.is_file())
    try:
        whole, _, preprocess = open_clip.create_model_and_transforms(
            source, pretrained=weights, device="cpu", precision="fp32", require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(source)
    except (RuntimeError, ValueError, OSError, FileNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise VplError(f"cannot load {model} with `{pretrained}`: {reason}",
                       "give --pretrained a tag, a weights file, or a folder with "
                       "open_clip_config.json and open_clip_model.safetensors") from error
    whole = whole.float().eval().requires_grad_(False)
    vision = tower_from_open_clip(whole.visual).eval().requires_grad_(False).to(device)
    own = preprocess.transforms[-1]
    mean, std = NORMALISATIONS.get(normalise, (tuple(own.mean), tuple(own.std)))
    identity = {
        "name": model if not path.is_dir() else path.name,
        "pretrained": path.name if path.exists() else pretrained,
        "fingerprint": fingerprint(whole)}
    if normalise in NORMALISATIONS:
        identity["normalise"] = normalise
    whole.visual = nn.Identity()
    return Clip(vision, whole.to(device), tokenizer, mean, std, identity)


def import_open_clip() -> Any:
    """Import open_clip, also where torchvision's compiled operators do not fit torch.

    open_clip needs nothing of torchvision but its image transforms; yet with a torchvision wheel
    for another build of torch its import fails at registering `nms`. Declaring the operators
    first lets it pass. A torchvision that imports as it should is left alone.
    """
    if "open_clip" in sys.modules:
        return sys.modules["open_clip"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) "
                               "-> Tensor")
            # The declaration lives as long as the object that made it.
            _declared.append(library)
        import open_clip

    return open_clip


_declared: list[Any] = []


def _check_names(open_clip: Any, model: str, pretrained: str, *, is_file: bool) -> None:
    if model not in open_clip.list_models():
        raise VplError(f"open_clip has no model `{model}`",
                       near_name(model, open_clip.list_models()))
    if is_file:
        return
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags:
        raise VplError(f"`{pretrained}` is neither a tag of {model} nor a file or folder",
                       near_name(pretrained, tags))
    if pretrained == "openai" and "quickgelu" not in model:
        config = open_clip.get_model_config(model) or {}
        if not config.get("quick_gelu") and f"{model}-quickgelu" in open_clip.list_models():
            raise VplError(f"OpenAI's weights need QuickGELU; {model} has another activation and "
                           "would quietly give worse features", f"--model {model}-quickgelu")


def fingerprint(model: nn.Module) -> str:
    """Hash a sample of all weights: tells two models apart, whatever their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten()[::101].contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def tower_from_open_clip(visual: nn.Module) -> VisionTower:
    """Copy an open_clip `VisionTransformer` into a `VisionTower`.

    Raises:
        VplError: the tower is another architecture, or has parts that are not supported; the
            reason is named.
    """
    if type(visual).__name__ != "VisionTransformer":
        raise VplError(f"a {type(visual).__name__} tower has no patch tokens to make CAMs of",
                       "choose a ViT, such as ViT-B-16-quickgelu")
    source: Any = visual
    resblocks = list(source.transformer.resblocks)
    if type(resblocks[0]).__name__ != "ResidualAttentionBlock":
        raise VplError(f"blocks of type {type(resblocks[0]).__name__} are not supported",
                       "choose a plain ViT, such as ViT-B-16-quickgelu")
    if source.patch_size[0] != source.patch_size[1]:
        raise VplError(f"patches of {source.patch_size} are not square", "choose another model")
    if getattr(source, "attn_pool_contrastive", None) is not None:
        raise VplError("two attention poolers in a row are not supported", "choose another model")
    tower = VisionTower(
        patch=int(source.patch_size[0]), grid=tuple(source.grid_size),
        blocks=[_copy_block(block) for block in resblocks[:-1]], head=_copy_head(source),
        width=source.class_embedding.shape[0], ln_pre=source.ln_pre)
    with torch.no_grad():
        tower.conv.weight.copy_(source.conv1.weight)
        tower.cls.copy_(source.class_embedding)
        tower.positions.copy_(source.positional_embedding)
    return tower


def _copy_block(source: Any) -> Block:
    block = Block(BlockShape(
        width=source.ln_1.normalized_shape[0], hidden=source.mlp.c_fc.out_features,
        heads=source.attn.num_heads, eps=source.ln_1.eps, activation=_activation(source.mlp.gelu)))
    with torch.no_grad():
        _copy(block.ln_1, source.ln_1)
        _copy(block.ln_2, source.ln_2)
        block.qkv.weight.copy_(source.attn.in_proj_weight)
        block.qkv.bias.copy_(source.attn.in_proj_bias)
        _copy(block.out, source.attn.out_proj)
        _copy(block.fc, source.mlp.c_fc)
        _copy(block.proj, source.mlp.c_proj)
        for gamma, scale in ((block.gamma_1, source.ls_1), (block.gamma_2, source.ls_2)):
            if hasattr(scale, "gamma"):
                gamma.copy_(scale.gamma)
    return block


def _copy_head(source: Any) -> Head:
    last = _copy_block(source.transformer.resblocks[-1])
    pooler = source.attn_pool
    pool_width, dim = source.proj.shape
    head = Head(last.shape, pool_width=pool_width, dim=dim, value_path=pooler is not None,
                ln_after_pool=pooler is None and source.final_ln_after_pool,
                post_eps=source.ln_post.eps)
    head.block = last
    with torch.no_grad():
        _copy(head.ln_post, source.ln_post)
        head.proj.copy_(source.proj)
        if pooler is not None:
            attention = pooler.attn
            value = (attention.in_proj_weight[2 * pool_width :]
                     if attention.in_proj_weight is not None else attention.v_proj_weight)
            norm, into, out = head.value_path.children()
            _copy(norm, pooler.ln_k)
            bias = attention.in_proj_bias[2 * pool_width :]
            into.load_state_dict({"weight": value, "bias": bias})
            _copy(out, attention.out_proj)
    return head


def _copy(target: Any, source: Any) -> None:
    target.weight.copy_(source.weight)
    target.bias.copy_(source.bias)


def _activation(module: nn.Module) -> str:
    name = type(module).__name__
    if name == "GELU":
        return "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else "gelu"
    known = {"QuickGELU": "quick_gelu", "ReLU": "relu", "SiLU": "silu"}
    if name not in known:
        raise VplError(f"the activation {name} is not supported", near_name(name, known))
    return known[name]
