"""Pixel-adaptive refinement (PAR) of scores: each pixel averages similar pixels nearby.

From AFA (Ru et al., CVPR 2022), with the constants of WeCLIP (CVPR 2024). Neighbours are
done one after the other: the differences of colour to all of them are never held at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ParSettings:
    """Parameters of PAR.

    Args:
        iterations: how often each pixel takes on what its neighbours have.
        dilations: distances of the 8 neighbours, in pixels.
        w1: width of both kernels, in deviations.
        w2: weight of the kernel of positions beside that of colours.
    """

    iterations: int = 20
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    w1: float = 0.3
    w2: float = 0.01

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """(rows, columns) from a pixel to each of its neighbours."""
        return [(step * y, step * x) for step in self.dilations
                for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def refine_scores(photos: Tensor, scores: Tensor, settings: ParSettings) -> Tensor:
    """Refine the scores of photos of one size.

    A pixel beyond the border is as the nearest one inside.

    Args:
        photos: RGB (B, 3, H, W) uint8.
        scores: of the labels (B, L, H, W) float32.
        settings: neighbours and kernels.

    Returns:
        (B, L, H, W): each iteration is a weighted mean, so they stay in the range of the scores.
    """
    height, width = scores.shape[-2:]
    margin = max(settings.dilations)
    weights = neighbour_weights(photos, settings)
    for _ in range(settings.iterations):
        padded = F.pad(scores, (margin,) * 4, mode="replicate")
        scores = torch.zeros_like(scores)
        for number, (y, x) in enumerate(settings.offsets):
            scores.addcmul_(_shifted(padded, margin + y, margin + x, height, width),
                            weights[:, number, None])
    return scores


def neighbour_weights(photos: Tensor, settings: ParSettings) -> Tensor:
    """Return the weight of each neighbour of each pixel.

    w = softmax(−mean over channels of (|ΔI| / (w1·σ))²) + w2·softmax(−(d / (w1·σ_d))²), both over
    the neighbours. σ is the deviation of a channel among a pixel's neighbours, d their distances,
    σ_d the deviation of these. The weights are divided by their sum, 1 + w2, which changes no
    label: 20 iterations would else enlarge all scores alike.

    Args:
        photos: RGB (B, 3, H, W) uint8.
        settings: neighbours and kernels.

    Returns:
        (B, neighbours, H, W) float32, summing to 1 over the neighbours.
    """
    height, width = photos.shape[-2:]
    offsets, margin = settings.offsets, max(settings.dilations)
    colours = photos.int()
    padded = _replicated(colours, margin)
    # Whole numbers: the deviation among equal pixels is 0 to the bit.
    total, squares = torch.zeros_like(colours), torch.zeros_like(colours)
    for y, x in offsets:
        near = _shifted(padded, margin + y, margin + x, height, width)
        total += near
        squares.addcmul_(near, near)
    count = len(offsets)
    variance = (count * squares - total**2).float() / (count * (count - 1))
    # A channel without deviation tells no neighbour from another.
    scale = torch.where(variance > 0, 1 / (settings.w1**2 * variance), 0)
    energy = scale.new_empty((len(photos), count, height, width))
    for number, (y, x) in enumerate(offsets):
        difference = _shifted(padded, margin + y, margin + x, height, width) - colours
        torch.mean(difference.float().square_().mul_(scale), dim=1, out=energy[:, number])
    positions = _position_weights(settings).to(energy).view(1, -1, 1, 1)
    return energy.neg_().softmax(dim=1).add_(settings.w2 * positions).div_(1 + settings.w2)


def _position_weights(settings: ParSettings) -> Tensor:
    """Softmax of the distance term (neighbours,); it is the same everywhere."""
    distances = torch.tensor(settings.offsets, dtype=torch.float64).norm(dim=1)
    return (-(distances / (settings.w1 * distances.std())) ** 2).softmax(dim=0)


def _replicated(image: Tensor, margin: int) -> Tensor:
    """Pad (B, C, H, W) with its border, of any type."""
    rows, columns = (torch.arange(-margin, length + margin, device=image.device)
                     .clamp(0, length - 1) for length in image.shape[-2:])
    return image[..., rows[:, None], columns]


def _shifted(padded: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return padded[..., top : top + height, left : left + width]


def estimate_bytes(size: tuple[int, int], labels: int, neighbours: int) -> int:
    """Memory that PAR takes for a photo of (height, width), in bytes, beyond its inputs."""
    return size[0] * size[1] * 4 * (2 * neighbours + 3 * labels)


def parse_dilations(choice: str) -> tuple[int, ...]:
    """Read `1,2,4`: ascending, each once.

    Raises:
        ValueError: it is not a list of up to 20 whole numbers from 1 on. With more, sums of squared
            colours would not be exact.
    """
    steps = sorted({int(part) for part in choice.split(",")})
    if steps[0] < 1 or len(steps) > 20:
        raise ValueError(choice)
    return tuple(steps)
