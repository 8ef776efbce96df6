"""Connected regions of the labels as instances, computed in an ONNX graph.

Programs that know instances only read these. Everything here is traced into a graph of fixed size,
so numbers of steps and regions are fixed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.segment import FINENESS, WholeSegmenter

REGIONS = 32
"""Regions at most, the largest ones."""

_STEEP = 8.0
"""Logit of a mask inside a region; outside it is the same with a minus."""


def number_regions(labels: Tensor, classes: int, steps: int) -> Tensor:
    """Number the connected regions (h, w) of labels (h, w) of classes 1 to `classes`; 0 elsewhere.

    A region's number is the largest place, counted from 1, of its pixels, neighbours over corners
    included. It walks a pixel a step; of a region that winds further than `steps`, parts may be
    taken for regions of their own.
    """
    height, width = labels.shape
    inside = torch.stack([labels == label for label in range(1, classes + 1)]).float()[None]
    numbers = inside * torch.arange(1, height * width + 1, dtype=torch.float32).view(height, width)
    for _ in range(steps):
        numbers = F.max_pool2d(numbers, 3, stride=1, padding=1) * inside
    return numbers.amax(dim=(0, 1))


class RegionSegmenter(nn.Module):
    """A segmenter that says its regions as YOLO26's instance head does, for a square photo.

    Source: Ultralytics, "YOLO26", end-to-end head: rows of box, score, class and mask coefficients,
    and the masks that these are coefficients of. Here each region has a mask of its own, and its
    box is the whole photo, since the mask says where it is.
    """

    def __init__(self, segmenter: WholeSegmenter, classes: int, side: int) -> None:
        """Add regions to a segmenter.

        Args:
            segmenter: says logits.
            classes: number of classes, the background left out.
            side: of the photo, in pixels.
        """
        super().__init__()
        self.segmenter = segmenter
        self.classes = classes
        self.side = side

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (1, 3, side, side) to rows (1, n, 6 + n) and masks (1, n, 4h, 4w).

        A row is x, y, x, y of the box, the region's mean probability, its class, counted from 0
        without the background, and n mask coefficients. Where there is no region, or one smaller
        than a patch, the probability is 0.
        """
        likely = self.segmenter(pixels)[0].softmax(dim=1)[0]
        best, labels = likely.max(dim=0)
        numbers = number_regions(labels, self.classes, sum(labels.shape)).long().flatten()
        count = min(REGIONS, numbers.numel())
        zeros = torch.zeros(numbers.numel() + 1)
        sizes = zeros.scatter_add(0, numbers, torch.ones(numbers.numel()))
        sums = zeros.scatter_add(0, numbers, best.flatten())
        # Number 0 is what belongs to no region.
        largest, largest_pixels = sizes[1:].topk(count)
        scores = sums[1:][largest_pixels] / largest.clamp(min=1) * (largest >= FINENESS**2)
        kinds = (labels.flatten()[largest_pixels] - 1).float()
        box = torch.tensor([0.0, 0.0, self.side, self.side]).expand(count, 4)
        rows = torch.cat([box, scores[:, None], kinds[:, None], torch.eye(count)], dim=1)
        masks = (numbers[None] == largest_pixels[:, None] + 1).float().view(1, count, *labels.shape)
        return rows[None], (2 * masks - 1) * _STEEP
