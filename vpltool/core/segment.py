"""Inference of segmenters: multi-scale and mirrored averaging, labels at a photo's own size."""

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
"""Probabilities have 4×4 values per patch of the largest scale."""

REGIONS = 32
"""Most regions that a `RegionSegmenter` returns; it keeps the largest."""

_STEEP = 8.0
"""Mask logit of a `RegionSegmenter` inside a region; outside it is the negative."""


@torch.no_grad()
def logits_of(network: SegmenterNetwork, layers: Tensor | None, patches: Tensor | None,
              grid: tuple[int, int]) -> Tensor:
    """Return class logits (B, classes, 4h, 4w) of frozen layers and patches (`SegmenterNetwork`).

    Embeddings are computed in the features' precision, the logits in float32.
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
    """Return class logits (B, classes, 4h, 4w) of normalised photos (B, 3, H, W) at one scale."""
    encoded = vision(pixels, attention=False,
                     patches="block" if network.reads_patches else "none", layers=network.layers)
    grid = (pixels.shape[2] // vision.patch, pixels.shape[3] // vision.patch)
    return logits_of(network, encoded.layers, encoded.patches, grid)


class WholeSegmenter(nn.Module):
    """A frozen tower and a trained network as one module, for export as a single graph.

    Its input is one photo of any size that is a multiple of the patch. `affine` is the scale and
    shift (3, 1, 1) that normalise its pixels; None: they are normalised already.
    """

    def __init__(self, vision: Tower, network: SegmenterNetwork,
                 affine: tuple[Tensor, Tensor] | None = None) -> None:
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
    """Number the 8-connected regions of labels (h, w) of classes 1 to `classes`; 0 elsewhere.

    A region's number is the largest flat index, counted from 1, of its pixels. It spreads by one
    pixel per step, so a region whose paths are longer than `steps` may be split.
    """
    height, width = labels.shape
    inside = torch.stack([labels == label for label in range(1, classes + 1)]).float()[None]
    numbers = inside * torch.arange(1, height * width + 1, dtype=torch.float32).view(height, width)
    for _ in range(steps):
        numbers = F.max_pool2d(numbers, 3, stride=1, padding=1) * inside
    return numbers.amax(dim=(0, 1))


class RegionSegmenter(nn.Module):
    """A segmenter whose output has the format of YOLO26's instance head, for square photos.

    For programs that support only instances. Regions are the connected components of the labels,
    computed within the graph; its size is fixed, and so are the numbers of steps and regions.

    Source: Ultralytics, "YOLO26", end-to-end head: rows of box, score, class and mask coefficients,
    and the prototype masks. Here each region has its own mask, and its box is the whole photo.
    `classes` is their number without the background, `side` that of the photo in pixels.
    """

    def __init__(self, segmenter: WholeSegmenter, classes: int, side: int) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.classes = classes
        self.side = side

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (1, 3, side, side) to rows (1, n, 6 + n) and masks (1, n, 4h, 4w).

        A row is the box (x, y, x, y), the region's mean probability, its class (from 0, without the
        background) and n mask coefficients. Rows of no region, or of one smaller than a patch, have
        probability 0.
        """
        likely = self.segmenter(pixels)[0].softmax(dim=1)[0]
        best, labels = likely.max(dim=0)
        numbers = number_regions(labels, self.classes, sum(labels.shape)).long().flatten()
        count = min(REGIONS, numbers.numel())
        zeros = torch.zeros(numbers.numel() + 1)
        sizes = zeros.scatter_add(0, numbers, torch.ones(numbers.numel()))
        sums = zeros.scatter_add(0, numbers, best.flatten())
        # Number 0 belongs to no region.
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
    """Return class probabilities of photos (B, classes, 4H/patch, 4W/patch).

    Normalised photos (B, 3, H, W) are averaged over scales and, with `flip`, mirrored copies.
    Scales are factors on H and W; each side is rounded to a multiple of the patch, at least one.
    `average` is the quantity that is averaged, `probabilities` or `logits` (WeCLIP).
    """
    parts = cache_parts(pixels, vision.patch)
    if len(parts) > 1:
        # Bounds the memory: the layers of all photos need not exist at once.
        return torch.cat([segment(vision, network, part, scales, flip=flip, average=average)
                          for part in parts])
    height, width = pixels.shape[2] // vision.patch, pixels.shape[3] // vision.patch
    total: Tensor | None = None
    sides = (False, True) if flip else (False,)
    views = [(scale, mirrored) for scale in scales for mirrored in sides]
    for scale, mirrored in views:
        grid = (max(1, round(height * scale)), max(1, round(width * scale)))
        view = pixels.flip(3) if mirrored else pixels
        if grid != (height, width):
            view = F.interpolate(view, size=(grid[0] * vision.patch, grid[1] * vision.patch),
                                 mode="bicubic", align_corners=False, antialias=True)
        part = photo_logits(vision, network, view.to(vision.weight.dtype))
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

    Where its probability is below `least`, the label is 255. `classes` are the labels of the maps,
    if not 0, 1, ….
    """
    # Class by class: all maps at the size of a large photo would not fit into memory.
    best = torch.full(size, -1.0, device=probabilities.device)
    classes = classes or range(len(probabilities))
    kept = label_type(max(classes, default=0))
    # torch supports few operations on unsigned types other than uint8.
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
    """Return labels (rows, width) of some rows of a picture, equal to those by `labels_of`.

    The picture has a `width`; for the other arguments see `rows_between`.
    """
    between = rows_between(field, first, ratio, rows)
    return labels_of(between, (rows[1] - rows[0], width), least)


def rows_between(field: Tensor, first: int, ratio: float, rows: tuple[int, int]) -> Tensor:
    """Interpolate rows of a larger field (C, n, w) to some rows of a picture (C, rows, w).

    The result equals those rows of the whole field after bilinear upsampling. `first` is the index
    of the first row in the larger field, `ratio` the number of its rows per row of the picture;
    `rows` are the picture's first row and the one after the last.
    """
    places = (torch.arange(*rows, device=field.device) + 0.5) * ratio - 0.5 - first
    places = places.clamp(0, field.shape[1] - 1)
    upper = places.floor().long()
    lower = (upper + 1).clamp(max=field.shape[1] - 1)
    share = (places - upper)[None, :, None]
    return field[:, upper] * (1 - share) + field[:, lower] * share


def part_of(field: Tensor, size: tuple[int, int], corner: tuple[int, int], sides: tuple[int, int]
            ) -> Tensor:
    """Upsample a field (C, h, w) to a picture's size (H, W), but only a part of it (C, *sides).

    `corner` is the first row and column of the part.
    """
    for start, side, length in zip(corner, sides, size, strict=True):
        # Rows first, then columns, by transposing.
        field = rows_between(field, 0, field.shape[1] / length, (start, start + side)
                             ).transpose(1, 2)
    return field.contiguous()


def only_classes(probabilities: Tensor, classes: Sequence[int]) -> Tensor:
    """Renormalise probabilities (classes, h, w) over the background and the given classes."""
    kept = torch.zeros_like(probabilities)
    kept[[0, *classes]] = probabilities[[0, *classes]]
    return kept / kept.sum(dim=0).clamp_min(1e-12)


def keep_likely(probabilities: Tensor, least: float = 0.05) -> tuple[Tensor, Tensor]:
    """Drop foreground classes below `least` everywhere; return scores (K, h, w), classes (K,)."""
    likely = likely_classes(probabilities[1:], least)
    classes = torch.cat([likely.new_zeros(1), 1 + likely])
    return probabilities[classes], classes.cpu()


def likely_classes(scores: Tensor, least: float = 0.05) -> Tensor:
    """Return the indices (K,) of the maps (classes, h, w) that reach `least` at any pixel."""
    return (scores.flatten(1).amax(dim=1) >= least).nonzero()[:, 0]
