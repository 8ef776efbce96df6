"""The decoder's losses against Python loops over (photo, class) pairs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from reference import weclip
from torch import Tensor

from vpltool.core.training import affinity_loss, mask_loss, regional_contrast

CLASS_INDEX = torch.tensor([1, 2, 2, 3, 0, 0])
SCALE, SHIFT, HEAT = torch.tensor(6.0), torch.tensor(-1.0), torch.tensor(9.0)


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow_contrast(embeddings: Tensor, prototypes: Tensor, present: list[list[int]],
                  valid: Tensor | None) -> float:
    """Eqs. 12 and 13: pool each photo under each class's soft mask, then compare."""

    def likeness(vector: Tensor, wanted: int) -> float:
        return max(float(vector @ prototypes[row])
                   for row, index in enumerate(CLASS_INDEX.tolist()) if index == wanted)

    def score(photo: int, wanted: int) -> float:
        total, mass = torch.zeros(embeddings.shape[-1]), 0.0
        for place, vector in enumerate(embeddings[photo]):
            if valid is not None and not valid[photo, place]:
                continue
            weight = 1 / (1 + math.exp(-(6.0 * likeness(vector, wanted) - 1.0)))
            total += weight * vector
            mass += weight
        return 9.0 * likeness(F.normalize(total / mass, dim=0), wanted)

    used = sorted({index for labels in present for index in labels} - {0})
    rows, columns = [], []
    for photo, labels in enumerate(present):
        for wanted in labels:
            if wanted == 0:
                continue
            own = math.exp(score(photo, wanted))
            row = [math.exp(score(photo, other)) for other in used if other not in labels]
            column = [math.exp(score(other, wanted)) for other in range(len(present))
                      if wanted not in present[other]]
            rows.append(-math.log(own / (own + sum(row))))
            columns.append(-math.log(own / (own + sum(column))))
    return 0.5 * (sum(rows) / len(rows) + sum(columns) / len(columns))


@pytest.mark.parametrize("present", [
    [[1], [2], [3]], [[1, 2], [2], [3, 1]], [[1], [1], [2]], [[1, 2, 3], [2]], [[], [1], [2, 3]],
    [[0, 1], [0, 2]]])
@pytest.mark.parametrize("padded", [False, True])
def test_contrast_is_the_loops(present: list[list[int]], padded: bool) -> None:
    embeddings, prototypes = unit(len(present), 5, 8, seed=1), unit(6, 8, seed=2)
    valid = None
    if padded:
        valid = torch.ones(len(present), 5, dtype=torch.bool)
        valid[0, 2:], valid[-1, 0] = False, False
    found = regional_contrast(embeddings, prototypes, CLASS_INDEX,
                              [torch.tensor(labels, dtype=torch.long) for labels in present],
                              SCALE, SHIFT, HEAT, valid)
    assert float(found) == pytest.approx(slow_contrast(embeddings, prototypes, present, valid),
                                         rel=1e-4)


def test_padding_does_not_count() -> None:
    embeddings, prototypes = unit(2, 5, 8, seed=3), unit(6, 8, seed=2)
    valid = torch.tensor([[True, True, True, False, False]] * 2)
    present = [torch.tensor([1]), torch.tensor([2])]
    other = embeddings.clone()
    other[:, 3:] = unit(2, 2, 8, seed=4)
    first, second = (regional_contrast(field, prototypes, CLASS_INDEX, present, SCALE, SHIFT, HEAT,
                                       valid) for field in (embeddings, other))
    assert float(first) == pytest.approx(float(second))


@pytest.mark.parametrize("present", [[[1]], [[1, 2], [1, 2]], [[], []], [[0], [0]]])
def test_without_negatives_it_is_zero(present: list[list[int]]) -> None:
    embeddings = unit(len(present), 5, 8, seed=5).requires_grad_(True)
    loss = regional_contrast(embeddings, unit(6, 8, seed=2), CLASS_INDEX,
                             [torch.tensor(labels, dtype=torch.long) for labels in present],
                             SCALE, SHIFT, HEAT)
    assert loss.item() == pytest.approx(0)
    loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_gradient_is_finite_where_one_entry_has_negatives_and_another_has_none() -> None:
    """log-sum-exp over nothing is -inf; its gradient must not become NaN."""
    embeddings = unit(3, 5, 8, seed=6).requires_grad_(True)
    present = [torch.tensor([1, 2, 3]), torch.tensor([1]), torch.tensor([1, 2])]
    regional_contrast(embeddings, unit(6, 8, seed=2), CLASS_INDEX, present, SCALE, SHIFT,
                      HEAT).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert float(embeddings.grad.abs().max()) > 0


def test_descent_brings_regions_to_their_prototypes() -> None:
    free = unit(2, 5, 8, seed=7).requires_grad_(True)
    prototypes = unit(6, 8, seed=2)
    present = [torch.tensor([1]), torch.tensor([3])]
    first = regional_contrast(F.normalize(free, dim=-1), prototypes, CLASS_INDEX, present, SCALE,
                              SHIFT, HEAT)
    first.backward()
    assert free.grad is not None
    with torch.no_grad():
        free -= free.grad
    second = regional_contrast(F.normalize(free, dim=-1), prototypes, CLASS_INDEX, present, SCALE,
                               SHIFT, HEAT)
    assert second.item() < first.item()


def pixel_losses(logits: Tensor, labels: Tensor) -> dict[int, list[float]]:
    """Cross-entropy of each labelled pixel, by its label."""
    each: dict[int, list[float]] = {}
    for photo, y, x in (labels != 255).nonzero().tolist():
        exps = [math.exp(value) for value in logits[photo, :, y, x].tolist()]
        label = int(labels[photo, y, x])
        each.setdefault(label, []).append(-math.log(exps[label] / sum(exps)))
    return each


@pytest.fixture
def some_logits() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(8))


@pytest.fixture
def some_labels() -> Tensor:
    """More of the classes than of the background, so that both means differ."""
    labels = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(9))
    labels[0, :2], labels[1, 0] = 255, 1
    return labels.to(torch.uint8)


def test_plain_mask_loss_is_the_mean_over_labelled_pixels(some_logits: Tensor,
                                                          some_labels: Tensor) -> None:
    each = [value for part in pixel_losses(some_logits, some_labels).values() for value in part]
    found = mask_loss(some_logits, some_labels, balanced=False)
    assert float(found) == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_balanced_mask_loss_is_half_background(some_logits: Tensor, some_labels: Tensor) -> None:
    each = pixel_losses(some_logits, some_labels)
    behind, front = each[0], each[1] + each[2]
    wanted = 0.5 * sum(behind) / len(behind) + 0.5 * sum(front) / len(front)
    found = mask_loss(some_logits, some_labels, balanced=True)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    assert len(behind) != len(front), "else it would be the plain mean"


@pytest.mark.parametrize("only", [0, 2])
def test_balanced_mask_loss_of_one_side_alone(only: int, some_logits: Tensor) -> None:
    labels = torch.full((2, 4, 4), only, dtype=torch.uint8)
    each = pixel_losses(some_logits, labels)[only]
    found = mask_loss(some_logits, labels, balanced=True)
    assert float(found) == pytest.approx(sum(each) / len(each) / 2)


@pytest.mark.parametrize("balanced", [True, False])
def test_mask_loss_takes_logits_to_the_labels_size(balanced: bool) -> None:
    logits = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 2, (1, 12, 12), generator=torch.Generator().manual_seed(2))
    full = F.interpolate(logits, size=(12, 12), mode="bilinear", align_corners=False)
    each = pixel_losses(full, labels)
    wanted = float(F.cross_entropy(full, labels))
    if balanced:
        wanted = sum(sum(part) / len(part) for part in each.values()) / 2
    assert float(mask_loss(logits, labels, balanced=balanced)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("balanced", [True, False])
def test_mask_loss_of_ignored_labels_alone_is_zero(balanced: bool) -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = mask_loss(logits, torch.full((1, 12, 12), 255, dtype=torch.uint8), balanced=balanced)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0


@pytest.mark.parametrize(("grid", "radius"), [((3, 4), 8), ((3, 12), 8), ((5, 5), 1), ((1, 1), 8)])
def test_affinity_loss_is_weclips(grid: tuple[int, int], radius: int) -> None:
    chance = torch.Generator().manual_seed(4)
    fused = torch.randn(2, grid[0] * grid[1], 6, generator=chance)
    labels = torch.tensor([0, 1, 3, 255])[torch.randint(0, 4, (2, *grid), generator=chance)].byte()
    found = affinity_loss(fused, labels, grid, radius=radius)
    assert float(found) == pytest.approx(weclip.affinity_loss(fused, labels, radius), abs=1e-6)


def test_affinity_loss_falls_with_features_that_agree_with_the_labels() -> None:
    labels = torch.tensor([[[0, 0, 1, 1]]])
    right = torch.tensor([[[2.0, -2], [2, -2], [-2, 2], [-2, 2]]])
    loss = affinity_loss(right, labels, (1, 4))
    assert float(loss) < 0.02 < 0.3 < float(affinity_loss(right[:, [0, 2, 1, 3]], labels, (1, 4)))
    ignored = affinity_loss(right, torch.full_like(labels, 255), (1, 4))
    assert float(ignored) == 0
