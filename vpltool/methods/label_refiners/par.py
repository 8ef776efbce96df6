"""Pixel-adaptive refinement: scores spread to nearby pixels of similar colour (AFA, WeCLIP).

From AFA (Ru et al., CVPR 2022), with the constants of WeCLIP's code (Zhang et al., CVPR 2024). A
pixel's new scores are a weighted mean over 8 neighbours at each of six distances; beyond the border
the nearest pixel inside is repeated. WeCLIP's weights sum to 1.01; here they sum to 1, which
changes no label. What comes out is no marginal of a CRF: `confidence` is compared with a label's
share of a pixel's scores, and is 0 unless given, as WeCLIP ignores no pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vpltool import settings
from vpltool.errors import VplError
from vpltool.lazy import F, Tensor, np, npt, torch
from vpltool.methods.inputs import ScoredPhoto
from vpltool.settings import setting

READS = ("photo",)

CONFIDENCE = 0.0
"""The stage's `confidence` unless it is given; source: WeCLIP, official code."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of PAR."""

    iterations: int = setting(20, "Number of iterations.", low=0, source="WeCLIP, official code")
    dilations: str = setting("1,2,4,8,12,24", "Distances of the 8 neighbours, in pixels "
                                              "(dilations).", metavar="LIST",
                             source="WeCLIP, official code")
    w1: float = setting(0.3, "Width of both kernels, in standard deviations of the neighbours; "
                             "smaller: only very similar pixels count.", low=1e-3,
                        source="WeCLIP, official code")
    w2: float = setting(0.01, "Weight of the position kernel relative to the colour kernel.", low=0,
                        source="WeCLIP, official code")


def runs_on(settings: Settings, device: torch.device) -> torch.device:
    """Return the given device; raise a VplError unless there are 1 to 20 dilations, each ≥ 1.

    With more, sums of squared colours would not be exact.
    """
    try:
        fits = min(_dilations(settings)) >= 1 and len(_dilations(settings)) <= 20
    except ValueError:
        fits = False
    if not fits:
        raise VplError(f"`dilations={settings.dilations!r}` is not a list of at most 20 distances, "
                       "each a whole number of 1 or more", "`dilations='1,2,4,8,12,24'`")
    return device


def refine_labels(photos: Sequence[ScoredPhoto], settings: Settings, device: torch.device
                  ) -> list[npt.NDArray[np.float32]]:
    """Return refined scores (L, H, W), summing to 1, of photos of one size and number of labels."""
    pixels = torch.stack([torch.from_numpy(photo.photo) for photo in photos]).to(device)
    scores = torch.stack([torch.from_numpy(photo.scores) for photo in photos]).to(device)
    refined = refine_scores(pixels.permute(0, 3, 1, 2), scores, settings)
    return list((refined / refined.sum(dim=1, keepdim=True).clamp_min(1e-12)).cpu().numpy())


def memory_of(settings: Settings, device: torch.device, size: tuple[int, int], labels: int) -> int:
    """Estimate the memory that a photo of (height, width) takes, in bytes, beyond its inputs."""
    return size[0] * size[1] * 4 * (2 * len(offsets_of(settings)) + 3 * labels)


def _dilations(settings: Settings) -> list[int]:
    """Return the distinct distances, ascending."""
    return sorted({int(part) for part in settings.dilations.split(",")})


def offsets_of(settings: Settings) -> list[tuple[int, int]]:
    """Return (rows, columns) from a pixel to each of its neighbours."""
    return [(step * y, step * x) for step in _dilations(settings)
            for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def refine_scores(photos: Tensor, scores: Tensor, settings: Settings) -> Tensor:
    """Refine scores (B, L, H, W), float32, of photos of one size, RGB (B, 3, H, W), uint8.

    Each iteration is a weighted mean. A pixel beyond the border equals the nearest one inside.
    """
    height, width = scores.shape[-2:]
    offsets, margin = offsets_of(settings), max(_dilations(settings))
    weights = neighbour_weights(photos, settings)
    for _ in range(settings.iterations):
        padded = F.pad(scores, (margin,) * 4, mode="replicate")
        scores = torch.zeros_like(scores)
        for number, (y, x) in enumerate(offsets):
            scores.addcmul_(_shifted(padded, margin + y, margin + x, height, width),
                            weights[:, number, None])
    return scores


def neighbour_weights(photos: Tensor, settings: Settings) -> Tensor:
    """Return the weight of each neighbour of each pixel (B, neighbours, H, W), float32.

    w = softmax(−mean over channels of (|ΔI| / (w1·σ))²) + w2·softmax(−(d / (w1·σ_d))²), both over
    the neighbours. σ is the deviation of a channel among a pixel's neighbours, d their distances,
    σ_d the deviation of these. The weights are divided by their sum, 1 + w2, which changes no
    label. Photos are RGB (B, 3, H, W), uint8.
    """
    height, width = photos.shape[-2:]
    offsets, margin = offsets_of(settings), max(_dilations(settings))
    colours = photos.int()
    # torch repeats the border of floats only; colours are exact in them.
    padded = F.pad(photos.float(), (margin,) * 4, mode="replicate").int()
    # Integers: the deviation among equal pixels is exactly 0.
    total, squares = torch.zeros_like(colours), torch.zeros_like(colours)
    for y, x in offsets:
        near = _shifted(padded, margin + y, margin + x, height, width)
        total += near
        squares.addcmul_(near, near)
    count = len(offsets)
    variance = (count * squares - total**2).float() / (count * (count - 1))
    # A channel without deviation distinguishes no neighbours.
    scale = torch.where(variance > 0, 1 / (settings.w1**2 * variance), 0)
    energy = scale.new_empty((len(photos), count, height, width))
    for number, (y, x) in enumerate(offsets):
        difference = _shifted(padded, margin + y, margin + x, height, width) - colours
        torch.mean(difference.float().square_().mul_(scale), dim=1, out=energy[:, number])
    distances = torch.tensor(offsets, dtype=torch.float64).norm(dim=1)
    positions = (-(distances / (settings.w1 * distances.std())) ** 2).softmax(dim=0)
    positions = positions.to(energy).view(1, -1, 1, 1)
    return energy.neg_().softmax(dim=1).add_(settings.w2 * positions).div_(1 + settings.w2)


def _shifted(padded: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return padded[..., top : top + height, left : left + width]
