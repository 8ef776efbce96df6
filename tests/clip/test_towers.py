"""Every model that open_clip lists: the same features as open_clip's own, or a reason why not."""

from __future__ import annotations

import copy
import functools
import sys
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from as_methods import gradcam_of as gradcam
from torch import Tensor, nn

from vpltool.clip.catalogue import import_open_clip
from vpltool.clip.models import BLOCK_SWITCHES, check_tower
from vpltool.clip.towers import tower_from_open_clip
from vpltool.core.vit import Head
from vpltool.errors import VplError

MODELS: list[str] = import_open_clip().list_models()
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
DIM = 48
"""Of the joint space: CoCa's pooler has 8 heads, and SigLIP's trunk as many channels as this."""


def shrunk(name: str) -> dict[str, Any]:
    """A model's configuration with two heads, three layers, a 3×3 grid and a small text tower.

    What sets towers apart is kept: head width, MLP ratio, patch, pooling, norms, layer scale.
    """
    config = copy.deepcopy(import_open_clip().get_model_config(name))
    vision = config["vision_cfg"]
    if "timm_model_name" not in vision:
        width = vision.get("head_width", 64)
        vision |= {"layers": 3, "width": 2 * width, "image_size": 3 * vision["patch_size"]}
    return {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": TEXT,
            "quick_gelu": config.get("quick_gelu", False)}


def build(name: str) -> Any:
    """A shrunk open_clip model, random, with biases, scales and norms away from 0 and 1."""
    open_clip = import_open_clip()
    timm = sys.modules["open_clip.timm_model"].timm  # type: ignore[attr-defined]
    config = shrunk(name)
    sizes: dict[str, Any] = {}
    if "timm_model_name" in config["vision_cfg"]:
        patch = timm.create_model(config["vision_cfg"]["timm_model_name"], depth=1, embed_dim=16,
                                  num_heads=2).patch_embed.patch_size[0]
        sizes = {"depth": 3, "embed_dim": DIM, "num_heads": 4, "img_size": 3 * patch}
        config["vision_cfg"]["image_size"] = 3 * patch
    torch.manual_seed(7)
    small = functools.partial(timm.create_model, **sizes)
    with mock.patch.object(timm, "create_model", small):
        model = open_clip.model.CustomTextCLIP(**config)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def pixels(visual: Any, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *visual.image_size, generator=torch.Generator().manual_seed(5))


def reason(name: str) -> str:
    """Why a model cannot be used, by its configuration; empty if it can."""
    config = import_open_clip().get_model_config(name)
    try:
        check_tower(name, {**config, "text_cfg": {}})
    except VplError as error:
        assert error.hint
        return error.message
    return ""


USED = [name for name in MODELS if not reason(name)]
REFUSED = [name for name in MODELS if reason(name)]


@pytest.mark.parametrize("name", USED)
def test_features_are_open_clips(name: str) -> None:
    """At the native size: what encode_image gives, from our tokens."""
    model = build(name)
    tower = tower_from_open_clip(model.visual)
    with torch.no_grad():
        image = pixels(model.visual)
        wanted = model.encode_image(image, normalize=True) if not name.startswith("coca") else (
            F.normalize(model.visual(image)[0], dim=-1))
        features = tower(image)
        last = tower.head.block(features.tokens)
        if getattr(model.visual, "attn_pool", None) is not None:
            # CoCa: our head has the pooler's value path alone, so its own pooler is asked.
            found = F.normalize(model.visual._pool(last)[0] @ model.visual.proj, dim=-1)
        elif hasattr(model.visual, "trunk") or model.visual.pool_type == "avg":
            found = tower.head.pooled(last)
        else:
            found = tower.head.patch_embeddings(last[:, 0])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    prefix = tower.head.prefix
    torch.testing.assert_close(features.patches, tower.head.patch_embeddings(last[:, prefix:]))


def test_the_families_are_where_they_belong() -> None:
    """Neither list is empty by mistake."""
    assert {"ViT-B-16", "ViT-B-16-quickgelu", "ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-bigG-14",
            "coca_ViT-L-14", "ViT-L-14-CLIPA", "ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP2",
            "nllb-clip-base-siglip", "roberta-ViT-B-32"} <= set(USED)
    assert {"RN50", "convnext_base", "EVA02-B-16", "MobileCLIP-S1", "MobileCLIP-B", "ViTamin-L",
            "PE-Core-B-16", "swin_base_patch4_window7_224"} <= set(REFUSED)
    assert len(USED) > 80


@pytest.mark.parametrize("name", REFUSED)
def test_a_reason_is_given(name: str) -> None:
    message = reason(name)
    assert message.startswith(f"{name} cannot be used: its ")
    assert len(message) < 160


@pytest.mark.parametrize("vision", [
    *({name: True} for name in BLOCK_SWITCHES), {"block_type": "custom"},
    {"attentional_pool": "parallel"}, {"attentional_pool": "cascade"}, {"pool_type": "none"}])
def test_settings_that_no_published_model_has(vision: dict[str, Any]) -> None:
    """Refused by the configuration, and, for those who skip that, by the module."""
    plain = {"image_size": 24, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    with pytest.raises(VplError):
        check_tower("odd", {"vision_cfg": plain | vision, "text_cfg": {}})
    model = import_open_clip().CLIP(embed_dim=16, vision_cfg=plain | vision, text_cfg=TEXT)
    with pytest.raises(VplError):
        tower_from_open_clip(model.visual)


@pytest.mark.parametrize("vision", [
    {"patch_dropout": 0.5}, {"output_tokens": True}, {"pos_embed_type": "sin_cos_2d"},
    {"attentional_pool": True, "norm_kwargs": {"eps": 1e-2}, "attn_pooler_heads": 2}])
def test_settings_that_change_nothing_or_are_followed(vision: dict[str, Any]) -> None:
    plain = {"image_size": 24, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    check_tower("odd", {"vision_cfg": plain | vision, "text_cfg": {}})
    torch.manual_seed(1)
    model = import_open_clip().CLIP(embed_dim=16, vision_cfg=plain | vision, text_cfg=TEXT).eval()
    tower = tower_from_open_clip(model.visual)
    with torch.no_grad():
        image = pixels(model.visual)
        last = tower.head.block(tower(image, attention=False).tokens)
        pooled = model.visual(image)
        wanted = pooled[0] if isinstance(pooled, tuple) else pooled
        found = model.visual._pool(last)[0] @ model.visual.proj
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        if model.visual.attn_pool is not None:
            # eps differs between the pooler's norm and the blocks'.
            alone = model.visual.attn_pool(last[:, 1:2])[:, :1]
            torch.testing.assert_close(tower.head.value_path(last[:, 1:2]), alone, atol=1e-5,
                                       rtol=1e-5)


class _Twice(nn.Module):
    """A block with something added, under the name of one that is known."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["_modules"] = block._modules
        self.block = [block]

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.block[0](x, **options) + 0.1 * x


def test_a_part_that_is_not_known_is_found_by_comparing() -> None:
    """As in a later open_clip, whose block of the same name does more than today's."""
    model = build("ViT-B-16")
    blocks = model.visual.transformer.resblocks
    _Twice.__name__ = "ResidualAttentionBlock"
    blocks[1] = _Twice(blocks[1])
    with pytest.raises(VplError, match="block 1"):
        tower_from_open_clip(model.visual)
    other = build("ViT-B-16")
    other.visual.ln_pre.register_forward_hook(lambda _module, _inputs, output: output * 1.1)
    # The copy of a module takes its hooks along.
    tower_from_open_clip(other.visual)
    other.visual.ln_post.register_forward_hook(lambda _module, _inputs, output: output + 1)
    with pytest.raises(VplError, match="pooling"):
        tower_from_open_clip(other.visual)


@pytest.mark.parametrize("name", ["convnext_tiny", "EVA02-B-16", "PE-Core-T-16-384",
                                  "vit_medium_patch16_gap_256"])
def test_towers_of_timm_are_refused_by_the_module_too(name: str) -> None:
    timm = sys.modules["open_clip.timm_model"].timm  # type: ignore[attr-defined]
    vision = import_open_clip().get_model_config(name)["vision_cfg"]
    small = ({"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)} if name.startswith("convnext")
             else {"depth": 1})
    with mock.patch.object(timm, "create_model", functools.partial(timm.create_model, **small)):
        visual = import_open_clip().model._build_vision_tower(16, vision)
    with pytest.raises(VplError, match="timm's"):
        tower_from_open_clip(visual)


@pytest.fixture(scope="module")
def siglip() -> Any:
    return build("ViT-B-16-SigLIP").double()


def test_siglips_patches_are_its_poolers_answer_to_one_patch(siglip: Any) -> None:
    trunk = siglip.visual.trunk
    tower = tower_from_open_clip(siglip.visual).double()
    with torch.no_grad():
        image = pixels(siglip.visual).double()
        x = trunk.forward_features(image)
        wanted = torch.stack([F.normalize(trunk.attn_pool(x[:, index : index + 1]), dim=-1)
                              for index in range(x.shape[1])], dim=1)
        found = tower(image)
    assert found.tokens.shape == (2, 9, DIM)
    torch.testing.assert_close(found.patches, wanted, atol=1e-6, rtol=1e-5)
    assert found.attention is not None
    torch.testing.assert_close(found.attention.sum(-1), torch.ones(2, 9), atol=1e-5, rtol=0)


def test_last_tokens_are_those_before_pooling(siglip: Any) -> None:
    """What a second encoder's patches are: SigLIP's trunk, and a CLIP's behind its ln_post."""
    tower = tower_from_open_clip(siglip.visual).double()
    with torch.no_grad():
        image = pixels(siglip.visual).double()
        wanted = F.normalize(siglip.visual.trunk.forward_features(image), dim=-1)
    torch.testing.assert_close(tower(image, patches="last").patches, wanted, atol=1e-6, rtol=0)
    model = build("ViT-B-16")
    visual = model.visual
    visual.output_tokens, visual.proj = True, None
    with torch.no_grad():
        image = pixels(visual)
        wanted = F.normalize(visual(image)[1], dim=-1)
    tower = tower_from_open_clip(build("ViT-B-16").visual)
    torch.testing.assert_close(tower(image, patches="last").patches, wanted, atol=1e-5, rtol=0)


def test_siglips_gradcam_is_full_autograds(siglip: Any) -> None:
    """A hook at norm1 of the last block, through the model's own pooler."""
    trunk = siglip.visual.trunk
    tower = tower_from_open_clip(siglip.visual).double()
    image = pixels(siglip.visual).double()
    chance = torch.Generator().manual_seed(3)
    vectors = F.normalize(torch.randn(4, DIM, generator=chance).double(), dim=-1)
    index = torch.tensor([1, 2, 3, 0])
    present = [torch.tensor([1, 3]), torch.tensor([2])]
    head: Head = tower.head
    maps = gradcam(head, tower(image).tokens, (3, 3), vectors, index, present, tau=0.1)
    for photo, classes in enumerate(present):
        for place, wanted in enumerate(classes.tolist()):
            kept: list[Tensor] = []

            def keep(_module: Any, _inputs: Any, output: Tensor, kept: Any = kept) -> None:
                output.requires_grad_(True).retain_grad()
                kept.append(output)

            hook = trunk.blocks[-1].norm1.register_forward_hook(keep)
            pooled = F.normalize(siglip.visual(image[photo : photo + 1]), dim=-1)
            hook.remove()
            rows = [row for row, owner in enumerate(index.tolist())
                    if owner == 0 or owner in classes.tolist()]
            logits = (pooled @ vectors[rows].T)[0] / 0.1
            own = torch.tensor([index[row] == wanted for row in rows])
            (logits[own].logsumexp(0) - logits[~own].logsumexp(0)).backward()
            gradient = kept[0].grad
            assert gradient is not None
            scores = (kept[0][0] @ gradient[0].mean(0)).relu().view(3, 3).detach().float()
            scores = (scores - scores.min()) / ((scores - scores.min()).max() + 1e-7)
            torch.testing.assert_close(maps[photo][place], scores, atol=1e-4, rtol=0)


def test_a_siglip_head_is_rebuilt_from_its_configuration(siglip: Any) -> None:
    head = tower_from_open_clip(siglip.visual).head
    again = Head.from_config(head.config)
    again.load_state_dict(head.state_dict())
    tokens = torch.randn(2, 9, DIM, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.pooled(tokens), head.pooled(tokens))
    assert torch.equal(again.patch_embeddings(tokens), head.patch_embeddings(tokens))


@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu", "ViT-B-16-SigLIP", "coca_ViT-B-32",
                                  "ViT-H-14", "ViT-B-16-SigLIP2"])
def test_a_tower_is_rebuilt_from_what_a_bundle_says(name: str) -> None:
    """Its configuration goes through JSON; then the same bits, also at another size."""
    import json

    from vpltool.clip.stored_towers import tower_config, tower_from_config

    tower = tower_from_open_clip(build(name).visual)
    again = tower_from_config(json.loads(json.dumps(tower_config(tower))), tower.state_dict())
    for grid in (tower.grid, (2, 5)):
        photo = torch.randn(1, 3, grid[0] * tower.patch, grid[1] * tower.patch)
        first, second = (part(photo, layers=(0, 2)) for part in (tower, again))
        for field, value in vars(first).items():
            assert value is None or torch.equal(value, getattr(second, field)), field
        assert torch.equal(tower.embed_photos(photo), again.embed_photos(photo))
    with pytest.raises(ValueError):
        tower_from_config(tower_config(tower), {})
