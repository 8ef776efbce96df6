"""Proposals as run lengths: there and back, counted by runs as by pixels, and hostile files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vpltool.core.proposals import (
    Proposal,
    Proposals,
    areas,
    from_tensors,
    means_inside,
    to_tensors,
    votes,
    with_votes,
)

SIZE = (13, 17)


def random_proposals(count: int, seed: int = 0) -> tuple[Proposals, list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    masks = [draw.random(SIZE) < share for share in draw.random(count)]
    masks += [np.ones(SIZE, bool), np.eye(*SIZE, dtype=bool)]
    scores = draw.random(len(masks)).round(2)
    words = ["", "a dog", "chien", "ça", *[""] * len(masks)][: len(masks)]
    return Proposals.of(SIZE, (Proposal(mask, float(score), word) for mask, score, word in zip(
        masks, scores, words, strict=True))), masks


def test_masks_come_back_through_a_file() -> None:
    made, masks = random_proposals(9)
    read = from_tensors(to_tensors(made))
    assert len(read) == len(masks)
    assert all((one == two).all() for one, two in zip(read.masks(), masks, strict=True))
    assert list(read.words) == list(made.words)
    assert read.words[1:4] == ["a dog", "chien", "ça"]
    assert (read.scores == made.scores).all()


def test_no_proposals_are_a_file_too() -> None:
    read = from_tensors(to_tensors(Proposals.of(SIZE, [Proposal(np.zeros(SIZE, bool))])))
    assert len(read) == 0 and read.size == SIZE
    assert list(read.masks()) == []
    assert means_inside(read, np.ones((2, *SIZE), np.float32)).shape == (0, 2)
    assert not votes(read, np.zeros((0, 2))).any()
    assert len(read.resized((5, 5))) == 0


def test_runs_count_as_pixels_do() -> None:
    """The slow reference: every mask whole."""
    made, masks = random_proposals(9, seed=1)
    draw = np.random.default_rng(2)
    scores = draw.random((3, *SIZE)).astype(np.float32)
    weights = draw.random((len(masks), 3))
    assert areas(made).tolist() == [int(mask.sum()) for mask in masks]
    slow = np.stack([scores[:, mask].mean(axis=1) for mask in masks])
    assert np.allclose(means_inside(made, scores), slow, atol=1e-6)
    painted = sum(weight[:, None, None] * mask for weight, mask in zip(weights, masks, strict=True))
    assert np.allclose(votes(made, weights), painted, atol=1e-9)


def test_masks_are_scaled_by_nearest_neighbour() -> None:
    made, masks = random_proposals(3, seed=3)
    twice = made.resized((2 * SIZE[0], 2 * SIZE[1]))
    for mask, larger in zip(masks, twice.masks(), strict=True):
        assert (larger == mask.repeat(2, axis=0).repeat(2, axis=1)).all()


@pytest.mark.parametrize(("change", "said"), [
    ({"runs": torch.tensor([3, -1])}, "longer"),
    ({"runs": torch.tensor([1, 2**62])}, "longer"),
    ({"runs": torch.tensor([1, 2])}, "add up"),
    ({"counts": torch.tensor([3])}, "add up"),
    ({"counts": torch.tensor([0])}, "add up"),
    ({"size": torch.tensor([0, 5])}, "add up"),
    ({"scores": torch.tensor([1.5])}, "none"),
    ({"word": torch.tensor([7])}, "none"),
])
def test_damaged_files_are_refused(change: dict[str, torch.Tensor], said: str) -> None:
    inside = np.zeros(SIZE, bool)
    inside[3:] = True
    tensors = to_tensors(Proposals.of(SIZE, [Proposal(inside)]))
    assert tensors["runs"].tolist() == [3 * SIZE[1], 10 * SIZE[1]]
    with pytest.raises(ValueError, match=said):
        from_tensors(tensors | change)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="the photo has"):
        Proposals.of(SIZE, [Proposal(np.ones((2, 2), bool))])
    with pytest.raises(ValueError, match="not in"):
        Proposals.of(SIZE, [Proposal(np.ones(SIZE, bool), float("nan"))])


def test_a_vote_is_what_a_slow_reference_gives() -> None:
    """Object or background by more than half, weight by Youden's J, one mask at a time."""
    made, masks = random_proposals(7, seed=4)
    draw = np.random.default_rng(5)
    scores = draw.random((3, *SIZE)).astype(np.float32) + np.float32(0.01)
    scores[0] *= 2
    scores /= scores.sum(axis=0)
    shares = means_inside(made, scores)
    shares[1] = (0.1, 0.2, 0.7)
    sure = np.zeros(len(masks))
    sure[1] = 0.5
    total, weight, count = np.zeros((3, *SIZE)), np.zeros(SIZE), np.zeros(SIZE)
    for number, mask in enumerate(masks):
        if mask.sum() < 20:
            continue
        objects = shares[number, 0] < 0.5
        ground = [float(scores[0][part].mean()) if part.any() else 0.0 for part in (mask, ~mask)]
        agreement = max(0.0, ground[1] - ground[0] if objects else ground[0] - ground[1])
        vote = np.array([0, *(shares[number, 1:] / shares[number, 1:].sum())]) if objects else (
            np.array([1.0, 0, 0]))
        own = float(made.scores[number]) * (sure[number] + (1 - sure[number]) * agreement)
        total += own * vote[:, None, None] * mask
        weight += own * mask
        count += mask
    mean, share = total / np.maximum(weight, 1e-12), weight / np.maximum(count, 1)
    wanted = scores * ((1 - share) / 3 + share * mean)
    wanted /= wanted.sum(axis=0)
    assert np.allclose(with_votes(made, scores, shares, sure, 20), wanted, atol=1e-6)


def test_a_mask_that_separates_nothing_changes_little() -> None:
    """One object, left; a mask of it is filled, one across its border hardly counts."""
    scores = np.full((2, 20, 20), 0.5, np.float32)
    scores[1, :, :10] = 0.8
    scores[1, :, 10:] = 0.1
    scores[1, 5:8, 2:8] = 0.3
    scores[0] = 1 - scores[1]
    hole = scores.argmax(axis=0)[5:8, 2:8]
    assert not hole.any()
    left = np.zeros((20, 20), bool)
    left[:, :10] = True
    for mask, filled in ((left, True), (left.T, False)):
        made = Proposals.of((20, 20), [Proposal(mask)])
        found = with_votes(made, scores, means_inside(made, scores), np.zeros(1), 0).argmax(axis=0)
        assert bool(found[5:8, 2:8].all()) == filled
        assert found[:, 10:].any() == 0
