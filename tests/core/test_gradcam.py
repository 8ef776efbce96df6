"""GradCAM against autograd through the whole tower, one class at a time; the dense map by loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from as_methods import dense_cam
from as_methods import gradcam_of as gradcam
from reference import clip_es
from torch import Tensor

from vpltool.clip.load import import_open_clip, tower_from_open_clip
from vpltool.core.grids import min_max

VISION: dict[str, Any] = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16,
                          "patch_size": 8, "ls_init_value": 0.7}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
GRID = (4, 4)
CLASS_INDEX = torch.tensor([1, 2, 3, 0, 0, 2])
"""Class 2 has two rows, the background too."""

PRESENT = [torch.tensor([1, 3]), torch.tensor([2]), torch.tensor([], dtype=torch.long),
           torch.tensor([1, 2, 3])]


@pytest.fixture(scope="module", params=["layer scale", "average, ln after", "pooler"])
def model(request: pytest.FixtureRequest) -> Any:
    extra = {"layer scale": {}, "pooler": {"attentional_pool": True, "attn_pooler_queries": 1,
                                           "attn_pooler_heads": 2},
             "average, ln after": {"pool_type": "avg", "final_ln_after_pool": True}}
    torch.manual_seed(1)
    built = import_open_clip().CLIP(embed_dim=16, vision_cfg=VISION | extra[request.param],
                                    text_cfg=TEXT)
    with torch.no_grad():
        for parameter in built.visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    # Double precision: the reference and the short way must agree to more than float's noise.
    return built.double().eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()


@pytest.fixture(scope="module")
def vectors() -> Tensor:
    return F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(4)).double(),
                       dim=-1)


def slow_gradcam(model: Any, image: Tensor, vectors: Tensor, class_index: Tensor,
                 present: Tensor, wanted: int, tau: float) -> Tensor:
    """The reference, of the rows that the photo's tags leave."""
    rows = [row for row, index in enumerate(class_index.tolist())
            if index == 0 or index in present.tolist()]
    own = [place for place, row in enumerate(rows) if int(class_index[row]) == wanted]
    return clip_es.gradcam(model.visual, image[None], vectors[rows], own, scale=1 / tau)


@pytest.mark.parametrize("target", ["margin", "softmax"])
def test_gradcam_is_full_autograds(model: Any, pixels: Tensor, vectors: Tensor,
                                   target: str) -> None:
    tower = tower_from_open_clip(model.visual).double().eval().requires_grad_(False)
    found = gradcam(tower.head, tower(pixels).tokens, GRID, vectors, CLASS_INDEX, PRESENT,
                    tau=0.2, target=target)
    assert [len(maps) for maps in found] == [2, 1, 0, 3]
    for image, present, maps in zip(pixels, PRESENT, found, strict=True):
        for place, wanted in enumerate(present.tolist()):
            slow = slow_gradcam(model, image, vectors, CLASS_INDEX, present, wanted, 0.2)
            assert slow.max() > 0.9, "the reference is an empty map and would prove nothing"
            torch.testing.assert_close(maps[place].double(), slow, atol=1e-6, rtol=0)


def test_margin_and_softmax_give_one_map(model: Any, pixels: Tensor, vectors: Tensor) -> None:
    tower = tower_from_open_clip(model.visual).double().eval().requires_grad_(False)
    tokens = tower(pixels).tokens
    first, second = (gradcam(tower.head, tokens, GRID, vectors, CLASS_INDEX, PRESENT, tau=0.2,
                             target=target) for target in ("margin", "softmax"))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_margin_survives_where_softmax_underflows(model: Any, pixels: Tensor,
                                                  vectors: Tensor) -> None:
    """At τ = 1e-3 the probability of the strongest class is 1: its gradient is nothing."""
    tower = tower_from_open_clip(model.visual).eval().requires_grad_(False).float()
    tokens = tower(pixels.float()).tokens
    pooled = tower.head.pooled(tower.head.block(tokens))[0]
    near = F.normalize(pooled, dim=0)
    far = F.normalize(torch.randn(16, generator=torch.Generator().manual_seed(9)), dim=0)
    rows, index = torch.stack([near, far]), torch.tensor([1, 0])
    present = [torch.tensor([1])]
    margin, = gradcam(tower.head, tokens[:1], GRID, rows, index, present, tau=1e-3)
    softmax, = gradcam(tower.head, tokens[:1], GRID, rows, index, present, tau=1e-3,
                       target="softmax")
    assert float(softmax.max()) == 0
    assert float(margin.max()) > 0.99


def test_batched_is_one_by_one(model: Any, pixels: Tensor, vectors: Tensor) -> None:
    tower = tower_from_open_clip(model.visual).double().eval().requires_grad_(False)
    tokens = tower(pixels).tokens
    together = gradcam(tower.head, tokens, GRID, vectors, CLASS_INDEX, PRESENT)
    for photo, present in enumerate(PRESENT):
        alone, = gradcam(tower.head, tokens[photo : photo + 1], GRID, vectors, CLASS_INDEX,
                         [present])
        torch.testing.assert_close(together[photo], alone, atol=1e-6, rtol=0)


def test_bfloat16_is_near_float32(model: Any, pixels: Tensor, vectors: Tensor) -> None:
    tower = tower_from_open_clip(model.visual).float().eval().requires_grad_(False)
    tokens, rows = tower(pixels.float()).tokens, vectors.float()
    exact = gradcam(tower.head, tokens, GRID, rows, CLASS_INDEX, PRESENT, tau=0.2)
    rough = gradcam(tower.head.bfloat16(), tokens.bfloat16(), GRID, rows, CLASS_INDEX, PRESENT,
                    tau=0.2)
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == torch.float32
        assert float((one - other).abs().max() if len(one) else 0) < 0.1


def test_a_class_absent_is_no_rival(model: Any, pixels: Tensor, vectors: Tensor) -> None:
    """The rows of a class that the photo does not show change nothing."""
    tower = tower_from_open_clip(model.visual).double().eval().requires_grad_(False)
    tokens = tower(pixels[:1]).tokens
    other = vectors.clone()
    other[1], other[5] = -vectors[1], vectors[0]
    assert CLASS_INDEX[1] == CLASS_INDEX[5] == 2
    for method in ("margin", "softmax"):
        first, second = (gradcam(tower.head, tokens, GRID, rows, CLASS_INDEX, [PRESENT[0]],
                                 target=method)[0] for rows in (vectors, other))
        assert torch.equal(first, second)


def test_no_rivals(model: Any, pixels: Tensor, vectors: Tensor) -> None:
    """One class and no background: the class's own logit is followed, and no NaN comes out."""
    tower = tower_from_open_clip(model.visual).double().eval().requires_grad_(False)
    tokens = tower(pixels[:1]).tokens
    found, = gradcam(tower.head, tokens, GRID, vectors[:1], torch.tensor([1]), [torch.tensor([1])])
    assert found.isfinite().all()
    assert float(found.max()) > 0.99
    normed = tower.head.block.ln_1(tokens).requires_grad_(True)
    block = tower.head.block
    output = block.after_attention(tokens, block.attend(*block.heads(normed)))
    (tower.head.pooled(output)[0] @ vectors[0]).backward()
    weight = normed.grad[0, 1:].mean(dim=0)  # type: ignore[index]
    slow = (normed.detach()[0, 1:] @ weight).relu().view(GRID)
    torch.testing.assert_close(found[0].double(), min_max(slow[None])[0], atol=1e-4, rtol=0)


def test_all_photos_without_tags(model: Any, pixels: Tensor, vectors: Tensor) -> None:
    tower = tower_from_open_clip(model.visual).double().eval().requires_grad_(False)
    none = torch.tensor([], dtype=torch.long)
    found = gradcam(tower.head, tower(pixels[:2]).tokens, GRID, vectors, CLASS_INDEX, [none, none])
    assert [tuple(maps.shape) for maps in found] == [(0, 4, 4), (0, 4, 4)]


@pytest.fixture(scope="module")
def patches() -> Tensor:
    return F.normalize(torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(6)), dim=-1)


def test_dense_cam_is_a_loop_of_softmaxes(patches: Tensor, vectors: Tensor) -> None:
    rows = vectors.float()
    found = dense_cam(patches, (2, 3), rows, CLASS_INDEX, PRESENT, tau=0.05)
    for photo, present in enumerate(PRESENT):
        assert tuple(found[photo].shape) == (len(present), 2, 3)
        for place in range(6):
            exps = {row: math.exp(float(patches[photo, place] @ rows[row]) / 0.05)
                    for row, index in enumerate(CLASS_INDEX.tolist())
                    if index == 0 or index in present.tolist()}
            for number, wanted in enumerate(present.tolist()):
                own = sum(value for row, value in exps.items() if int(CLASS_INDEX[row]) == wanted)
                assert float(found[photo][number, place // 3, place % 3]) == pytest.approx(
                    own / sum(exps.values()), rel=1e-4)


def test_dense_cam_without_background_sums_to_one(patches: Tensor, vectors: Tensor) -> None:
    found, = dense_cam(patches[:1], (2, 3), vectors[:3].float(), torch.tensor([1, 2, 3]),
                       [torch.tensor([1, 3])])
    torch.testing.assert_close(found.sum(dim=0), torch.ones(2, 3))


def test_dense_cam_does_not_count_rows_twice(patches: Tensor, vectors: Tensor) -> None:
    """By the mean of a class's rows, a row that is there three times changes nothing."""
    rows, index = vectors.float(), CLASS_INDEX
    tripled = torch.cat([rows, rows[index == 0], rows[index == 0]])
    owners = torch.cat([index, index.new_zeros(2 * int((index == 0).sum()))])
    once = dense_cam(patches, (2, 3), rows, index, PRESENT, join="mean")
    thrice = dense_cam(patches, (2, 3), tripled, owners, PRESENT, join="mean")
    summed = dense_cam(patches, (2, 3), tripled, owners, PRESENT)
    for one, three, total in zip(once, thrice, summed, strict=True):
        torch.testing.assert_close(one, three)
        assert not len(one) or (total < one).any()


def test_min_max() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[4.0, 4.0], [4.0, 4.0]]])
    found = min_max(maps)
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 0.5], [0.25, 1.0]]), atol=1e-6, rtol=0)
    assert torch.equal(found[1], torch.zeros(2, 2))
