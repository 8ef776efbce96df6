"""Our block forward against open_clip's own, for every kind of tower that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import clip_es
from torch import Tensor, nn

from vpltool.clip.load import import_open_clip, tower_from_open_clip
from vpltool.core import tower as tower_module
from vpltool.core import vit
from vpltool.core.vit import VisionTower
from vpltool.errors import VplError

PLAIN: dict[str, Any] = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16,
                         "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}

TOWERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.3},
    "no ln_pre": {"no_ln_pre": True},
    "average": {"pool_type": "avg"},
    "average, ln after": {"pool_type": "avg", "final_ln_after_pool": True},
    "class token, ln after": {"pool_type": "tok", "final_ln_after_pool": True},
    "deep, thin heads": {"layers": 10, "head_width": 8},
    "wide mlp, tanh": {"mlp_ratio": 3.0, "act_kwargs": {"approximate": "tanh"}},
    "sincos": {"pos_embed_type": "sin_cos_2d"},
    "eps": {"norm_kwargs": {"eps": 1e-2}},
    "pooler": {"attentional_pool": True, "attn_pooler_queries": 1, "attn_pooler_heads": 2},
}


def build(options: dict[str, Any], *, quick_gelu: bool = False) -> Any:
    """A random open_clip model whose biases, scales and norms are all away from 0 and 1."""
    torch.manual_seed(3)
    model = import_open_clip().CLIP(embed_dim=16, vision_cfg=PLAIN | options, text_cfg=TEXT,
                                    quick_gelu=quick_gelu)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def pixels(height: int = 32, width: int = 32, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def last_tokens(tower: VisionTower, image: Tensor, *, attention: bool) -> Tensor:
    return tower.head.block(tower(image, attention=attention).tokens)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize(("name", "quick_gelu"), [
    *((name, False) for name in TOWERS if name != "pooler"), ("plain", True),
    ("layer scale", True), ("average, ln after", True)])
def test_forward_is_open_clips(name: str, quick_gelu: bool, attention: bool) -> None:
    model = build(TOWERS[name], quick_gelu=quick_gelu)
    tower = tower_from_open_clip(model.visual).eval()
    with torch.no_grad():
        wanted = model.encode_image(pixels(), normalize=True)
        x = last_tokens(tower, pixels(), attention=attention)
        if TOWERS[name].get("pool_type") == "avg":
            found = tower.head.pooled(x)
        else:
            found = tower.head.patch_embeddings(x[:, 0])
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)


def test_quick_gelu_is_not_gelu() -> None:
    """Else the comparison above could not tell a wrong activation."""
    plain, quick = (build({}, quick_gelu=quick) for quick in (False, True))
    quick.load_state_dict(plain.state_dict())
    with torch.no_grad():
        first, second = (model.encode_image(pixels(), normalize=True) for model in (plain, quick))
    assert (first - second).abs().max() > 1e-4


def test_patch_embeddings_are_open_clips_tokens() -> None:
    model = build({"ls_init_value": 0.3, "output_tokens": True})
    tower = tower_from_open_clip(model.visual).eval()
    with torch.no_grad():
        _, tokens = model.visual(pixels())
        wanted = F.normalize(tokens @ model.visual.proj, dim=-1)
        found = tower(pixels()).patches
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 16))


@pytest.mark.parametrize("dim", [16, 32])
def test_value_path_is_the_pooler_at_one_key(dim: int) -> None:
    """dim 32 equals the width: nn.MultiheadAttention then keeps its weights in one matrix."""
    torch.manual_seed(3)
    vision = PLAIN | TOWERS["pooler"]
    model = import_open_clip().CLIP(embed_dim=dim, vision_cfg=vision, text_cfg=TEXT).eval()
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        tower = tower_from_open_clip(model.visual).eval()
        x = last_tokens(tower, pixels(), attention=False)[:, 1:]
        alone = torch.cat([model.visual.attn_pool(x[:, index : index + 1])
                           for index in range(x.shape[1])], dim=1)
        wanted = F.normalize(model.visual.ln_post(alone) @ model.visual.proj, dim=-1)
        found = tower(pixels(), attention=False).patches
        torch.testing.assert_close(tower.head.value_path(x), alone, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)


def test_attention_is_multihead_attentions() -> None:
    """The mean over the last 8 of 10 blocks, heads averaged, CLS row and column removed."""
    model = build({"layers": 10})
    tower = tower_from_open_clip(model.visual).eval()
    maps = [clip_es.attention_maps(model.visual, image[None]) for image in pixels()]
    with torch.no_grad():
        found = tower(pixels()).attention
    assert found is not None
    wanted, all_blocks = (torch.stack([torch.stack(own[first:]).mean(0)[1:, 1:] for own in maps])
                          for first in (2, 0))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert (found - all_blocks).abs().max() > 1e-5


@pytest.mark.parametrize("blocks", [2, 8])
@pytest.mark.parametrize("patches", ["block", "value"])
def test_the_attention_of_each_block(blocks: int, patches: str) -> None:
    tower = tower_from_open_clip(build({"layers": 4}).visual).eval()
    maps = [clip_es.attention_maps(build({"layers": 4}).visual, image[None]) for image in pixels()]
    with torch.no_grad():
        both = tower(pixels(), patches=patches, attentions=True, attention_blocks=blocks)
        mean = tower(pixels(), patches=patches, attention_blocks=blocks)
        each = tower(pixels(), patches=patches, attention=False, attentions=True,
                     attention_blocks=blocks)
    wanted = torch.stack([torch.stack(own[-blocks:])[:, 1:, 1:] for own in maps])
    assert both.attentions is not None and both.attention is not None
    assert mean.attention is not None and each.attentions is not None
    assert mean.attentions is None and each.attention is None
    assert each.attentions.shape[1] == min(blocks, 4)
    assert torch.equal(both.attentions, each.attentions)
    assert torch.equal(both.attention, mean.attention)
    torch.testing.assert_close(both.attentions.mean(dim=1), both.attention, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(each.attentions, wanted, atol=1e-6, rtol=1e-5)


def test_layers_and_tokens_are_the_blocks_outputs() -> None:
    model = build({"ls_init_value": 0.3})
    tower = tower_from_open_clip(model.visual).eval()
    outputs = []
    with torch.no_grad():
        x = tower.embed(pixels())
        for block in model.visual.transformer.resblocks:
            x = block(x)
            outputs.append(x)
        found = tower(pixels(), layers=[0, 2])
    assert found.layers is not None
    torch.testing.assert_close(found.layers[:, 0], outputs[0][:, 1:], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found.layers[:, 1], outputs[2][:, 1:], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found.tokens, outputs[1], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("grid", [(5, 3), (2, 7), (4, 5), (1, 1)])
def test_positions_are_interpolated_bilinearly(grid: tuple[int, int]) -> None:
    visual = build({}).visual
    wanted = clip_es.positions(visual, grid)
    found = tower_from_open_clip(visual).positions_for(grid).detach()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", [
    vit.Resampling(), vit.Resampling("bicubic"), vit.Resampling("bicubic", offset=0.1),
    vit.Resampling("bicubic", antialias=True)], ids=str)
@pytest.mark.parametrize("target", [(3, 4), (9, 6)])
def test_resampling_is_a_product(how: vit.Resampling, target: tuple[int, int]) -> None:
    """A GPU trains through the product, whose gradient has a fixed order of sums."""
    table = torch.randn(5 * 7, 8)
    torch.testing.assert_close(vit.resampling_weights((5, 7), target, how) @ table,
                               vit.resample_positions(table, (5, 7), target, how))


def test_any_size_runs() -> None:
    tower = tower_from_open_clip(build({"ls_init_value": 0.3}).visual).eval()
    found = tower(pixels(40, 24))
    assert found.attention is not None
    assert (found.tokens.shape, found.patches.shape, found.attention.shape) == (
        (2, 16, 32), (2, 15, 16), (2, 15, 15))


def test_a_resnet_is_refused() -> None:
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16,
              "patch_size": None}
    model = import_open_clip().CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT)
    with pytest.raises(VplError, match="ModifiedResNet") as caught:
        tower_from_open_clip(model.visual)
    assert "ViT" in caught.value.hint


def test_an_odd_activation_is_refused() -> None:
    model = build({})
    for block in model.visual.transformer.resblocks:
        block.mlp.gelu = nn.Mish()
    with pytest.raises(VplError, match="Mish"):
        tower_from_open_clip(model.visual)


@pytest.mark.parametrize("options", [
    {"attentional_pool": "parallel"}, {"block_type": "custom"}, {"scale_fc": True},
    {"qk_norm": True}])
def test_parts_that_are_not_copied_are_refused(options: dict[str, Any]) -> None:
    """A part that is silently left out would give other features than open_clip's."""
    with pytest.raises(VplError):
        tower_from_open_clip(build(TOWERS["pooler"] | options).visual)


def test_value_embeddings_are_the_last_attention_at_one_token() -> None:
    """MaskCLIP: what attention returns where a patch sees itself alone; no residual, no MLP."""
    model = build({})
    tower = tower_from_open_clip(model.visual).eval()
    with torch.no_grad():
        features = tower(pixels(24, 40), patches="value")
        block = model.visual.transformer.resblocks[-1]
        alone = block.ln_1(features.tokens[:, 1:]).flatten(0, 1)[:, None]
        seen = block.attn(alone, alone, alone, need_weights=False)[0].view(2, 15, 32)
        wanted = F.normalize(model.visual.ln_post(seen) @ model.visual.proj, dim=-1)
        plain = tower(pixels(24, 40))
    torch.testing.assert_close(features.patches, wanted, atol=2e-6, rtol=1e-5)
    assert not torch.allclose(plain.patches, wanted, atol=1e-2)
    assert torch.equal(plain.tokens, features.tokens)
    assert plain.attention is not None
    assert features.attention is not None
    assert torch.equal(plain.attention, features.attention)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("layers", [(), (0, 2)])
def test_what_is_not_asked_for_changes_nothing_else(attention: bool, layers: Sequence[int]) -> None:
    """Without patch embeddings the last block is cut short, or not run at all."""
    tower = tower_from_open_clip(build({}).visual).eval()
    whole = tower(pixels(24, 40), layers=(0, 2))
    part = tower(pixels(24, 40), patches="none", attention=attention, layers=layers)
    assert part.patches is None
    torch.testing.assert_close(part.tokens, whole.tokens, atol=1e-5, rtol=1e-5)
    if attention:
        torch.testing.assert_close(part.attention, whole.attention, atol=1e-6, rtol=0)
    else:
        assert part.attention is None
    if layers:
        torch.testing.assert_close(part.layers, whole.layers, atol=1e-5, rtol=1e-5)
    else:
        assert part.layers is None


def test_bfloat16_is_near_float32() -> None:
    """Rounding to 8 bits, and the plain products that stand in for fused attention there."""
    tower = tower_from_open_clip(build({}).visual).eval()
    exact = tower(pixels(24, 40), layers=(0,))
    rough = tower.to(torch.bfloat16)(pixels(24, 40).bfloat16(), layers=(0,))
    for name in ("tokens", "patches", "attention", "layers"):
        one, other = getattr(exact, name).float(), getattr(rough, name).float()
        assert float((one - other).norm() / one.norm()) < 0.03, name


@pytest.mark.parametrize("together", [1, 30, 45])
def test_parts_of_a_batch_are_joined(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of 15 patches, so many patches together: one, two or three of them."""
    tower = tower_from_open_clip(build({}).visual).eval()
    photos = torch.cat([pixels(24, 40), pixels(24, 40).flip(0).flip(3)])
    whole = tower(photos, layers=(0, 2))
    sizes = []
    embed = tower.embed
    monkeypatch.setattr(tower, "embed", lambda part: (sizes.append(len(part)), embed(part))[1])
    monkeypatch.setattr(tower_module, "CPU_PATCHES", together)
    found = tower(photos, layers=(0, 2))
    assert sizes == {1: [1, 1, 1, 1], 30: [2, 2], 45: [3, 1]}[together]
    for name in ("tokens", "patches", "attention", "layers"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), atol=1e-5, rtol=1e-4)
    assert tower(photos, patches="none", attention=False).attention is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_in_place_has_the_same_bits(dtype: torch.dtype) -> None:
    x = torch.linspace(-8, 8, 1001).to(dtype)
    kept = x.clone()
    gelu = vit.ACTIVATIONS["quick_gelu"]
    with torch.no_grad():
        found = gelu(x)
    assert torch.equal(x, kept), "its input is another's"
    assert torch.equal(found, gelu(x.requires_grad_(True)))
    torch.testing.assert_close(found.float(), kept.float() * torch.sigmoid(1.702 * kept.float()),
                               atol=1e-2 if dtype == torch.bfloat16 else 1e-6, rtol=1e-2)
