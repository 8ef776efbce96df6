"""Tags from CLIP against the reference on open_clip's own tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXT, VISION
from reference import tagclip

from vpltool.clip.catalogue import import_open_clip
from vpltool.clip.towers import tower_from_open_clip
from vpltool.core.tagging import (
    SHARE,
    Vocabulary,
    candidates,
    claimed_box,
    tag_scores,
    voted_attention,
)
from vpltool.stages import tag

DIM = 16
USED = tag.tagging_of(tag.TagSettings())


@pytest.fixture(scope="module")
def visual() -> Any:
    """A tower of five blocks, with attention that differs from patch to patch."""
    torch.manual_seed(3)
    model = import_open_clip().CLIP(embed_dim=DIM, vision_cfg=VISION | {"layers": 5}, text_cfg=TEXT)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.visual.eval().requires_grad_(False)


def words(owners: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return F.normalize(torch.randn(len(owners), DIM), dim=1), torch.tensor(owners)


def some_photos(count: int, height: int, width: int) -> torch.Tensor:
    torch.manual_seed(9)
    return torch.randn(count, 3, height, width)


@pytest.mark.parametrize(("owners", "background"), [
    ([1, 2, 3, 0, 0], True), ([1, 1, 2, 2, 2, 3, 0], True), ([1, 2, 0], False), ([1, 0], True)])
@pytest.mark.parametrize("crop", [0, 32])
def test_scores_are_the_references(visual: Any, owners: list[int], background: bool, crop: int
                                   ) -> None:
    tower = tower_from_open_clip(visual)
    rows, index = words(owners)
    photos = some_photos(2, 32, 40)
    found = tag_scores(tower, photos, Vocabulary.of(rows, index, background=background),
                       replace(USED, crop=crop))
    used = rows if background else rows[index > 0]
    kept = owners if background else [owner for owner in owners if owner]
    for photo, made in zip(photos, found, strict=True):
        wanted = tagclip.scores(visual, photo[None], used, kept, crop)
        assert made.tolist() == pytest.approx(wanted, abs=2e-4)
    assert vars(USED) == {"tau": 1 / tagclip.SCALE, "blocks": tagclip.BLOCKS, "crop": tagclip.CROP,
                          "votes": tagclip.VOTES, "patches": "alone"}
    assert tagclip.SHARE == SHARE == tag.TagSettings().share


def test_a_photo_of_one_patch(visual: Any) -> None:
    rows, index = words([1, 2, 0])
    found = tag_scores(tower_from_open_clip(visual), some_photos(1, 8, 8),
                       Vocabulary.of(rows, index), replace(USED, crop=16))
    assert found.shape == (1, 2)
    assert bool(((found >= 0) & (found <= 1)).all())


def test_other_sources_of_patches(visual: Any) -> None:
    rows, index = words([1, 2, 0])
    tower, photos = tower_from_open_clip(visual), some_photos(1, 32, 32)
    found = [tag_scores(tower, photos, Vocabulary.of(rows, index), replace(USED, patches=name))
             for name in ("alone", "value", "block")]
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_a_photo_is_embedded_as_by_open_clip(pool: str) -> None:
    torch.manual_seed(1)
    model = import_open_clip().CLIP(embed_dim=DIM, vision_cfg=VISION | {"pool_type": pool},
                                    text_cfg=TEXT).eval()
    photos = some_photos(2, 32, 32)
    with torch.no_grad():
        wanted = F.normalize(model.visual(photos), dim=1)
    assert torch.allclose(tower_from_open_clip(model.visual).embed_photos(photos), wanted,
                          atol=1e-5)


def test_attention_that_nobody_agrees_on_is_none() -> None:
    even = torch.full((1, 12, 4, 4), 0.25)
    assert not voted_attention(even, 3, 4).any()
    even[:, :4, :, 0] += 0.1
    assert torch.allclose(voted_attention(even, 3, 4)[0, :, 0], torch.ones(4))
    assert not voted_attention(even, 3, 5).any()


def test_one_class_is_always_a_candidate() -> None:
    assert candidates(torch.tensor([[0.01], [0.9]]), 0.5).all()
    found = candidates(torch.tensor([[0.1, 0.5, 0.31], [0.2, 0.2, 0.2]]), 0.5)
    assert found.tolist() == [[False, True, True], [True, True, True]]


def test_the_box_of_a_flat_map_is_all_of_it() -> None:
    assert tuple(claimed_box(torch.zeros(3, 5))) == (0, 0, 3, 5)
    field = torch.zeros(4, 5)
    field[1, 2] = field[3, 3] = 1.0
    assert tuple(claimed_box(field)) == (1, 2, 4, 4)
