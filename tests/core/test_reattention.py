"""Other attentions in the last blocks, against the loops of the formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from as_methods import (
    neighbour_embeddings,
    proxy_embeddings,
    self_attention_embeddings,
)
from reference import reattention as slow
from torch import Tensor

from vpltool.clip.load import import_open_clip
from vpltool.clip.towers import tower_from_open_clip
from vpltool.core.blocks import BlockShape
from vpltool.core.tower import Calibration
from vpltool.core.vit import Head, VisionTower

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
VISION: dict[str, Any] = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16,
                          "patch_size": 8}


def build(**options: Any) -> tuple[Any, VisionTower]:
    """A random open_clip tower whose parameters are away from 0 and 1, and our copy."""
    torch.manual_seed(7)
    visual = import_open_clip().CLIP(embed_dim=16, vision_cfg=VISION | options,
                                     text_cfg=TEXT).visual
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    visual.eval().requires_grad_(False)
    return visual, tower_from_open_clip(visual).eval()


def some_tokens(grid: tuple[int, int], seed: int = 0, prefix: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, prefix + grid[0] * grid[1], 32, generator=generator)


GRIDS = [(3, 4), (1, 5), (1, 1)]


@pytest.mark.parametrize("options", [{}, {"ls_init_value": 0.3}], ids=["plain", "layer scale"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("residual", [True, False])
def test_naclip_and_sclip_are_the_loops(options: dict[str, Any], grid: tuple[int, int],
                                        residual: bool) -> None:
    visual, tower = build(**options)
    tokens = some_tokens(grid)
    for sigma in (5.0, 0.7):
        found = neighbour_embeddings(tower.head, tokens, grid, sigma=sigma, residual=residual)
        wanted = torch.stack([slow.naclip(visual, photo, grid, sigma, residual=residual)
                              for photo in tokens])
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-4)
    found = self_attention_embeddings(tower.head, tokens, residual=residual)
    wanted = torch.stack([slow.sclip(visual, photo, residual=residual) for photo in tokens])
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("beta", "gamma"), [(1.2, 3.0), (0.0, 1.0)])
def test_proxyclip_is_the_loops(grid: tuple[int, int], beta: float, gamma: float) -> None:
    visual, tower = build(ls_init_value=0.3)
    tokens = some_tokens(grid)
    second = torch.randn(2, grid[0] * grid[1], 6, generator=torch.Generator().manual_seed(1)) + 0.3
    found = proxy_embeddings(tower.head, tokens, second, beta=beta, gamma=gamma)
    wanted = torch.stack([slow.proxyclip(visual, *photo, beta, gamma)
                          for photo in zip(tokens, second, strict=True)])
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-4)


def test_where_all_patches_look_alike_each_sees_itself() -> None:
    """The mean cosine is nearly 1, so that no logit is positive: no nan, but the value path."""
    _, tower = build()
    tokens = some_tokens((2, 3))
    second = torch.ones(2, 6, 4) + 0.01 * torch.randn(2, 6, 4)
    found = proxy_embeddings(tower.head, tokens, second)
    torch.testing.assert_close(found, tower.head.value_embeddings(tokens[:, 1:]), atol=2e-6,
                               rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"ls_init_value": 0.3}], ids=["plain", "layer scale"])
@pytest.mark.parametrize(("blocks", "heads"), [(2, "sum"), (3, "mean"), (1, "sum")])
def test_calibrated_patches_are_the_loops(options: dict[str, Any], blocks: int, heads: str
                                          ) -> None:
    visual, tower = build(**options)
    pixels = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = tower(pixels, patches="calibrated", calibration=Calibration(blocks, heads))
        wanted = torch.stack([slow.calibrated(visual, photo, blocks, heads)
                              for photo in tower.embed(pixels)])
    torch.testing.assert_close(found.patches, wanted, atol=5e-6, rtol=1e-4)


def test_calibration_leaves_clips_own_path_as_it_is() -> None:
    """Tokens, attention and layers; more blocks than there are: all of them."""
    _, tower = build()
    pixels = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(5))
    plain = tower(pixels, layers=(0, 2))
    found = tower(pixels, layers=(0, 2), patches="calibrated", calibration=Calibration(9, "sum"))
    for name in ("tokens", "attention", "layers"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), atol=1e-6, rtol=0)
    assert torch.equal(found.patches, tower(pixels, patches="calibrated",
                                            calibration=Calibration(3, "sum")).patches)
    assert (found.patches - plain.patches).abs().max() > 0.1


def test_calibration_in_a_tower_with_attention_pooling() -> None:
    """The pooler's value path follows, as for other patches."""
    _, tower = build(attentional_pool=True, attn_pooler_queries=1, attn_pooler_heads=2)
    found = tower(torch.randn(1, 3, 16, 24), patches="calibrated",
                  calibration=Calibration(5, "sum"))
    torch.testing.assert_close(found.patches.norm(dim=-1), torch.ones(1, 6))


def poolers() -> list[Head]:
    """Heads with attention pooling: CoCa's with a class token, SigLIP's without."""
    torch.manual_seed(2)
    shape = BlockShape(32, 64, 2, 1e-5, "gelu")
    coca = Head(shape, pool_width=24, dim=16, ln_after_pool=False, value_path=True, post_eps=1e-5)
    siglip = Head(shape, pool_width=32, dim=32, ln_after_pool=False, value_path=True,
                  post_eps=1e-6, pooler={"heads": 2, "hidden": 64, "eps": 1e-6,
                                         "activation": "gelu_tanh"})
    with torch.no_grad():
        for head in (coca, siglip):
            for parameter in head.parameters():
                parameter.normal_(std=0.3)
    return [head.eval() for head in (coca, siglip)]


@pytest.mark.parametrize("head", poolers(), ids=["coca", "siglip"])
def test_a_lone_patch_sees_itself_in_any_tower(head: Head) -> None:
    """With attention pooling, and without a class token: on one patch all equals the value path."""
    tokens = some_tokens((1, 1), prefix=head.prefix)
    wanted = head.value_embeddings(tokens[:, head.prefix :]).detach()
    second = torch.randn(2, 1, 5)
    torch.testing.assert_close(proxy_embeddings(head, tokens, second), wanted)
    found = neighbour_embeddings(head, tokens, (1, 1))
    assert found.shape == wanted.shape
    if not head.prefix:
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert self_attention_embeddings(head, tokens).isfinite().all()
