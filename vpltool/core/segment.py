"""From a trained segmenter to labels: several scales, mirrored copies, the photo's own size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.classes import label_type
from vpltool.core.segmenter import SegmenterNetwork
from vpltool.core.tower import Tower, cache_parts

FINENESS = 4
"""Probabilities are kept at 4×4 values a patch of the largest scale."""

REGIONS = 32
"""Regions that a `RegionSegmenter` gives at most, the largest ones."""

_STEEP = 8.0
"""Logit of its masks inside a region; outside it is the same with a minus."""


@torch.no_grad()
def logits_of(network: SegmenterNetwork, layers: Tensor | None, patches: Tensor | None,
              grid: tuple[int, int]) -> Tensor:
    """Return class logits (B, classes, 4h, 4w) of frozen layers and patches (`SegmenterNetwork`).

    Up to the embeddings it computes in their number format; the logits are float32.
    """
    frozen = patches if layers is None else layers
    assert frozen is not None, "a segmenter reads layers, patches, or both"
    with torch.autocast(frozen.device.type, frozen.dtype, enabled=frozen.dtype != torch.float32):
        embeddings = network.embeddings(layers, patches, grid)
    logits = network.logits(embeddings.float(), grid)
    size = (grid[0] * FINENESS, grid[1] * FINENESS)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def probabilities_of(network: SegmenterNetwork, layers: Tensor | None, patches: Tensor | None,
                     grid: tuple[int, int]) -> Tensor:
    """Return class probabilities, see `logits_of`."""
    return logits_of(network, layers, patches, grid).softmax(dim=1)


def photo_logits(vision: Tower, network: SegmenterNetwork, pixels: Tensor) -> Tensor:
    """Return class logits (B, classes, 4h, 4w) of normalised photos (B, 3, H, W), seen once."""
    encoded = vision(pixels, attention=False,
                     patches="block" if network.reads_patches else "none", layers=network.layers)
    grid = (pixels.shape[2] // vision.patch, pixels.shape[3] // vision.patch)
    return logits_of(network, encoded.layers, encoded.patches, grid)


class WholeSegmenter(nn.Module):
    """A frozen tower and a trained network as one module, for runtimes that take one graph.

    It sees one photo, of any size that is a multiple of the patch.
    """

    def __init__(self, vision: Tower, network: SegmenterNetwork,
                 affine: tuple[Tensor, Tensor] | None = None) -> None:
        """Join a frozen tower and a trained network, in evaluation mode.

        `affine` are factor and term (3, 1, 1) that turn the caller's pixels into normalised ones;
        None: they are normalised.
        """
        super().__init__()
        self.vision = vision
        self.network = network
        self.affine = affine

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (1, 3, H, W) to logits (1, classes, 4h, 4w) and labels (1, H, W) uint8.

        With more than 255 classes, labels are int32.
        """
        if self.affine is not None:
            pixels = pixels * self.affine[0] + self.affine[1]
        logits = photo_logits(self.vision, self.network, pixels)
        whole = F.interpolate(logits.softmax(dim=1), size=pixels.shape[2:], mode="bilinear",
                              align_corners=False)
        kept = torch.uint8 if logits.shape[1] <= 256 else torch.int32
        return logits, whole.argmax(dim=1).to(kept)


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

    For programs that know instances only: regions are the connected parts of its labels, computed
    within the graph, whose size is fixed; so numbers of steps and regions are fixed.

    Source: Ultralytics, "YOLO26", end-to-end head: rows of box, score, class and mask coefficients,
    and the masks that these are coefficients of. Here each region has a mask of its own, and its
    box is the whole photo, since the mask says where it is.

    Args:
        segmenter: says logits.
        classes: number of classes, the background left out.
        side: of the photo, in pixels.
    """

    def __init__(self, segmenter: WholeSegmenter, classes: int, side: int) -> None:
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


@torch.no_grad()
def segment(vision: Tower, network: SegmenterNetwork, pixels: Tensor,
            scales: Sequence[float] = (1.0,), *, flip: bool = False,
            average: str = "probabilities") -> Tensor:
    """Return photos' class probabilities, averaged over scales and mirrored copies.

    Of normalised photos (B, 3, H, W), at the largest scale: (B, classes, 4H/patch, 4W/patch).

    Args:
        vision: the frozen tower.
        network: the trained network.
        pixels: the photos.
        scales: factors on H and W; each side becomes the nearest multiple of the patch, and one
            patch at least.
        flip: whether to see them mirrored, too.
        average: what is averaged over them, `probabilities` or `logits` (WeCLIP).
    """
    parts = cache_parts(pixels, vision.patch)
    if len(parts) > 1:
        # The layers of many photos need not exist together.
        return torch.cat([segment(vision, network, part, scales, flip=flip, average=average)
                          for part in parts])
    height, width = pixels.shape[2] // vision.patch, pixels.shape[3] // vision.patch
    total: Tensor | None = None
    sides = (False, True) if flip else (False,)
    views = [(scale, mirrored) for scale in scales for mirrored in sides]
    for scale, mirrored in views:
        grid = (max(1, round(height * scale)), max(1, round(width * scale)))
        seen = pixels.flip(3) if mirrored else pixels
        if grid != (height, width):
            seen = F.interpolate(seen, size=(grid[0] * vision.patch, grid[1] * vision.patch),
                                 mode="bicubic", align_corners=False, antialias=True)
        part = photo_logits(vision, network, seen.to(vision.weight.dtype))
        part = part.softmax(dim=1) if average == "probabilities" else part
        part = F.interpolate(part, size=(height * FINENESS, width * FINENESS), mode="bilinear",
                             align_corners=False)
        part = part.flip(3) if mirrored else part
        total = part if total is None else total + part
    assert total is not None
    mean = total / len(views)
    return mean if average == "probabilities" else mean.softmax(dim=1)


def labels_of(probabilities: Tensor, size: tuple[int, ...], least: float = 0.0,
              classes: Sequence[int] = ()) -> npt.NDArray[np.uint8]:
    """Return the most likely class of each pixel at a photo's size (H, W), from (classes, h, w).

    Where it has a smaller probability than `least`, the label is 255. `classes` are the labels of
    the probabilities, if they are not 0, 1, ….
    """
    # Class by class: all of them at the size of a large photo would not fit into memory.
    best = torch.full(size, -1.0, device=probabilities.device)
    classes = classes or range(len(probabilities))
    kept = label_type(max(classes, default=0))
    # torch computes with few types of unsigned numbers.
    labels = torch.zeros(size, dtype=torch.uint8 if kept == np.uint8 else torch.int32,
                         device=probabilities.device)
    for label, field in zip(classes, probabilities.float(), strict=True):
        full = F.interpolate(field[None, None], size=size, mode="bilinear",
                             align_corners=False)[0, 0]
        labels[full > best] = label
        best = torch.maximum(best, full)
    if least:
        labels[best < least] = 255
    return labels.cpu().numpy().astype(kept, copy=False)


def labels_between(field: Tensor, first: int, ratio: float, rows: tuple[int, int], width: int,
                   least: float = 0.0) -> npt.NDArray[np.uint8]:
    """Return labels (rows, width) of some rows of a picture, as `labels_of` of a whole one.

    Args:
        field: probabilities (classes, n, w), rows of a larger field.
        first: number of their first row in that field.
        ratio: rows of the field for a row of the picture.
        rows: the first row of the picture, and the one after the last.
        width: of the picture.
        least: see `labels_of`.
    """
    between = rows_between(field, first, ratio, rows)
    return labels_of(between, (rows[1] - rows[0], width), least)


def rows_between(field: Tensor, first: int, ratio: float, rows: tuple[int, int]) -> Tensor:
    """Interpolate a field (C, n, w) to some rows of a picture (C, rows, w); see `labels_between`.

    They are those that bilinear enlargement of the whole field has.
    """
    places = (torch.arange(*rows, device=field.device) + 0.5) * ratio - 0.5 - first
    places = places.clamp(0, field.shape[1] - 1)
    upper = places.floor().long()
    lower = (upper + 1).clamp(max=field.shape[1] - 1)
    share = (places - upper)[None, :, None]
    return field[:, upper] * (1 - share) + field[:, lower] * share


def part_of(field: Tensor, size: tuple[int, int], corner: tuple[int, int], sides: tuple[int, int]
            ) -> Tensor:
    """Enlarge a field (C, h, w) to a picture's size (H, W), and return only a part (C, *sides).

    `corner` is the first row and column of the part.
    """
    for start, side, length in zip(corner, sides, size, strict=True):
        # Rows first; transposed, columns are rows.
        field = rows_between(field, 0, field.shape[1] / length, (start, start + side)
                             ).transpose(1, 2)
    return field.contiguous()


def only_classes(probabilities: Tensor, classes: Sequence[int]) -> Tensor:
    """Let only some classes and the background share the probability (classes, h, w)."""
    kept = torch.zeros_like(probabilities)
    kept[[0, *classes]] = probabilities[[0, *classes]]
    return kept / kept.sum(dim=0).clamp_min(1e-12)


def keep_likely(probabilities: Tensor, least: float = 0.05) -> tuple[Tensor, Tensor]:
    """Drop classes that are nowhere likely, but no background: scores (K, h, w), classes (K,)."""
    likely = likely_classes(probabilities[1:], least)
    classes = torch.cat([likely.new_zeros(1), 1 + likely])
    return probabilities[classes], classes.cpu()


def likely_classes(scores: Tensor, least: float = 0.05) -> Tensor:
    """Return the numbers (K,) of the maps (classes, h, w) that reach `least` somewhere."""
    return (scores.flatten(1).amax(dim=1) >= least).nonzero()[:, 0]
