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


@torch.no_grad()
def logits_of(network: SegmenterNetwork, layers: Tensor | None, patches: Tensor | None,
              grid: tuple[int, int]) -> Tensor:
    """Class logits (B, classes, 4h, 4w) of frozen layers and patches, see `SegmenterNetwork`.

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
    """Class probabilities, see `logits_of`."""
    return logits_of(network, layers, patches, grid).softmax(dim=1)


def photo_logits(vision: Tower, network: SegmenterNetwork, pixels: Tensor) -> Tensor:
    """Class logits (B, classes, 4h, 4w) of normalised photos (B, 3, H, W), seen once."""
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
        """Join the two.

        Args:
            vision: the frozen tower.
            network: the trained network, in evaluation mode.
            affine: factor and term (3, 1, 1) that turn the caller's pixels into normalised ones;
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


@torch.no_grad()
def segment(vision: Tower, network: SegmenterNetwork, pixels: Tensor,
            scales: Sequence[float] = (1.0,), *, flip: bool = False,
            average: str = "probabilities") -> Tensor:
    """Class probabilities of photos, averaged over scales and mirrored copies.

    Args:
        vision: the frozen tower.
        network: the trained network.
        pixels: normalised photos (B, 3, H, W), at the largest scale.
        scales: factors on H and W; each side becomes the nearest multiple of the patch, and one
            patch at least.
        flip: whether to see them mirrored, too.
        average: what is averaged over them, `probabilities` or `logits` (WeCLIP).

    Returns:
        (B, classes, 4H/patch, 4W/patch).
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


def labels_of(probabilities: Tensor, size: tuple[int, int], least: float = 0.0
              ) -> npt.NDArray[np.uint8]:
    """Most likely class of each pixel at a photo's size (H, W), from (classes, h, w).

    Where it has a smaller probability than `least`, the label is 255.
    """
    # Class by class: all of them at the size of a large photo would not fit into memory.
    best = torch.full(size, -1.0, device=probabilities.device)
    kept = label_type(len(probabilities) - 1)
    # torch computes with few types of unsigned numbers.
    labels = torch.zeros(size, dtype=torch.uint8 if kept == np.uint8 else torch.int32,
                         device=probabilities.device)
    for index, field in enumerate(probabilities.float()):
        full = F.interpolate(field[None, None], size=size, mode="bilinear",
                             align_corners=False)[0, 0]
        labels[full > best] = index
        best = torch.maximum(best, full)
    if least:
        labels[best < least] = 255
    result: npt.NDArray[np.uint8] = labels.cpu().numpy().astype(kept, copy=False)
    return result


def labels_between(field: Tensor, first: int, ratio: float, rows: tuple[int, int], width: int,
                   least: float = 0.0) -> npt.NDArray[np.uint8]:
    """Labels of some rows of a picture, as `labels_of` has them of a whole one.

    Args:
        field: probabilities (classes, n, w), rows of a larger field.
        first: number of their first row in that field.
        ratio: rows of the field for a row of the picture.
        rows: the first row of the picture, and the one after the last.
        width: of the picture.
        least: see `labels_of`.

    Returns:
        (rows, width).
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
    """Enlarge a field (C, h, w) to a picture's size, and return only a part of it (C, *sides).

    Args:
        field: its values.
        size: (height, width) of the picture.
        corner: first row and column of the part.
        sides: (height, width) of the part.
    """
    for start, side, length in zip(corner, sides, size, strict=True):
        # Rows first; transposed, columns are rows.
        field = rows_between(field, 0, field.shape[1] / length, (start, start + side)
                             ).transpose(1, 2)
    return field.contiguous()


def only_classes(probabilities: Tensor, classes: Sequence[int]) -> Tensor:
    """Let only some classes and the background share the probability (classes, h, w)."""
    kept = torch.zeros_like(probabilities)
    chosen = [0, *classes]
    kept[chosen] = probabilities[chosen]
    return kept / kept.sum(dim=0).clamp_min(1e-12)


def keep_likely(probabilities: Tensor, least: float = 0.05) -> tuple[Tensor, Tensor]:
    """Drop classes that are nowhere likely: scores (K, h, w) and their class indices (K,).

    The background stays in any case.
    """
    likely = likely_classes(probabilities[1:], least)
    classes = torch.cat([likely.new_zeros(1), 1 + likely])
    return probabilities[classes], classes.cpu()


def likely_classes(scores: Tensor, least: float = 0.05) -> Tensor:
    """Which maps (classes, h, w) reach `least` somewhere: their numbers (K,)."""
    return (scores.flatten(1).amax(dim=1) >= least).nonzero()[:, 0]
