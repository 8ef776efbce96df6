"""The linear segmenter equals a reference without tensors, and its file is all that it needs."""

from __future__ import annotations

import math

import pytest
import torch
from reference import linear
from torch import Tensor
from trainings import training_with

from vpltool.core.segment import logits_of
from vpltool.core.segmenter import LinearSegmenter
from vpltool.core.training import CropBatch, step_losses

CLASS_INDEX = torch.tensor([1, 1, 2, 3, 0, 0])


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def segmenter(layers: tuple[int, ...], *, trained: bool = True, walk: float = 0.1
              ) -> LinearSegmenter:
    network = LinearSegmenter(layers, 5, some(6, 8), CLASS_INDEX, walk)
    if trained:
        with torch.no_grad():
            network.classifier.weight.copy_(some(4, 5 * len(layers), seed=1))
            network.classifier.bias.copy_(some(4, seed=2))
    return network


@pytest.mark.parametrize("layers", [(2,), (0, 2, 5)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3)])
@pytest.mark.parametrize(("walk", "training"), [(0.3, False), (0.0, False), (0.3, True)])
def test_scores_equal_the_reference(walk: float, training: bool, layers: tuple[int, ...],
                                    grid: tuple[int, int]) -> None:
    """The walk is for use alone; a photo's scores do not depend on its neighbour in the batch."""
    network = segmenter(layers, walk=walk).train(training)
    stored = 3 + 20 * some(2, len(layers), grid[0] * grid[1], 5, seed=3)
    stored[0, 0, 0] = 0.0
    found = network.logits(network.embeddings(stored, None, grid), grid)
    assert found.shape == (2, 4, *grid)
    for photo in range(2):
        wanted = linear.scores(stored[photo].tolist(), network.classifier.weight.tolist(),
                               network.classifier.bias.tolist())
        if walk and not training:
            wanted = linear.walked(stored[photo, -1].tolist(), wanted, walk)
        torch.testing.assert_close(found[photo].flatten(1).T, torch.tensor(wanted), atol=1e-4,
                                   rtol=1e-4)


def test_half_precision_is_normalised_in_single() -> None:
    """As stored layers on a GPU: a ViT's largest channels would overflow when they are squared."""
    stored = 500 * some(1, 2, 6, 5).half()
    network = segmenter((1, 4))
    assert torch.equal(network.embeddings(stored, None, (2, 3)),
                       network.embeddings(stored.float(), None, (2, 3)))


def test_the_gradient_of_a_step_equals_the_reference() -> None:
    """Three patches in a column; some labels are left out."""
    settings = training_with(iters=1, batch_size=1, crop=3, lambda_rsc=0)
    network = segmenter((0, 2), trained=False)
    column = some(2, 3, 5, seed=4)
    labels = torch.randint(0, 4, (12, 4), generator=torch.Generator().manual_seed(5))
    labels[2:5, 1] = 255
    # Every column of the crop shows the same, so that enlarging along rows changes nothing.
    layers = column[None, :, :, None].expand(-1, -1, -1, 3, -1).flatten(2, 3)
    batch = CropBatch(layers, None, labels.repeat(1, 3)[None].to(torch.uint8),
                      torch.ones(1, 9, dtype=torch.bool), [torch.tensor([1, 2, 3])])
    loss, contrast = step_losses(network, batch, settings)
    assert loss.item() == pytest.approx(math.log(4))
    assert contrast.item() == 0
    loss.backward()
    weight, bias = linear.gradients(column.tolist(), labels.tolist(), 4)
    torch.testing.assert_close(network.classifier.weight.grad, torch.tensor(weight), atol=1e-6,
                               rtol=1e-4)
    torch.testing.assert_close(network.classifier.bias.grad, torch.tensor(bias), atol=1e-6,
                               rtol=1e-4)


def test_it_is_rebuilt_from_its_config() -> None:
    network = segmenter((0, 3), walk=0.7).eval()
    again = LinearSegmenter.from_config(network.config).eval()
    again.load_state_dict(network.state_dict())
    assert again.layers == (0, 3)
    assert again.walk == 0.7
    assert again.reads == ("layers",)
    stored = some(1, 2, 6, 5, seed=6)
    assert torch.equal(logits_of(again, stored, None, (2, 3)),
                       logits_of(network, stored, None, (2, 3)))
