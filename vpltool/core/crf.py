"""Fully connected CRF with Gaussian edges (Krähenbühl and Koltun 2011), by mean field.

Two backends with the same result: `pydensecrf` (C++, one core) and `torch` (any device).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vpltool.core.permutohedral import Lattice

Image = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CrfSettings:
    """Parameters of the CRF.

    Args:
        smooth_sxy: deviation of the smoothness kernel, in pixels.
        smooth_weight: its weight.
        bilateral_sxy: deviation of the appearance kernel in pixels.
        bilateral_srgb: and in colour, 0 to 255.
        bilateral_weight: its weight.
        iterations: mean-field iterations.
    """

    smooth_sxy: float
    smooth_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_weight: float
    iterations: int = 10


PRESETS: dict[str, CrfSettings] = {
    # CLIP-ES (CVPR 2023), pseudo masks of VOC and COCO.
    "clip-es": CrfSettings(1, 3, 67, 3, 4),
    # WeCLIP (CVPR 2024), at test.
    "weclip": CrfSettings(3, 3, 64, 5, 4),
}


_MEAN_BGR = (104.008, 116.669, 122.675)
"""Caffe's mean of ImageNet, which CLIP-ES takes from the photo before the CRF."""


def wrap_image(photo: Image) -> Image:
    """What CLIP-ES's CRF sees: BGR less its mean, cut to a byte, so that dark colours wrap.

    A channel below its mean comes out near 255, beside the brightest: the appearance kernel takes
    dark and bright for alike there, and parts what is on both sides of the mean.

    Args:
        photo: RGB (H, W, 3).

    Returns:
        (H, W, 3), modulo 256 (x86's cast; others may saturate).
    """
    shifted = photo[..., ::-1] - np.array(_MEAN_BGR)
    return (np.trunc(shifted).astype(np.int64) % 256).astype(np.uint8)


def with_background(cams: Tensor, alpha: float = 1.0) -> Tensor:
    """Put a background score (1 − max_c cam)^α before CAMs (K, H, W): (1 + K, H, W), CLIP-ES."""
    strongest = cams.amax(dim=0, keepdim=True) if len(cams) else cams.new_zeros(1, *cams.shape[1:])
    return torch.cat([(1 - strongest).clamp_min(0) ** alpha, cams])


def scores_of_labels(labels: Image, sure: float = 0.7) -> tuple[Tensor, Tensor]:
    """Scores for a CRF on hard labels: `sure` for the label, the rest shared by the others.

    Args:
        labels: (H, W); 255 counts as background.
        sure: how far the labels are trusted.

    Returns:
        scores (L, H, W) of the L labels present, and their classes (L,).
    """
    classes, index = np.unique(np.where(labels == 255, 0, labels), return_inverse=True)
    one_hot = torch.from_numpy(np.eye(len(classes), dtype=np.float32)[index.reshape(labels.shape)])
    rest = (1 - sure) / max(len(classes) - 1, 1)
    scores = one_hot * (sure - rest) + rest
    return scores.permute(2, 0, 1).contiguous(), torch.from_numpy(classes.astype(np.int64))


def mean_field(photo: Image, scores: Field, settings: CrfSettings, *, backend: str = "torch",
               device: torch.device | None = None) -> Field:
    """Marginals of the dense CRF whose unary is −log of the scores, clipped to [1e-5, 1].

    Args:
        photo: RGB (H, W, 3).
        scores: score of each label at each pixel (L, H, W); they need not sum to 1.
        settings: kernels and iterations.
        backend: `torch` or `pydensecrf`.
        device: for `torch`; default: CPU.

    Returns:
        Q (L, H, W), summing to 1 over the labels.
    """
    if len(scores) == 1:
        return np.ones_like(scores)
    unary = -np.log(scores.clip(1e-5, 1))
    if backend == "pydensecrf":
        return _by_pydensecrf(photo, unary, settings)
    return _by_torch(photo, unary, settings, device or torch.device("cpu"))


def _by_pydensecrf(photo: Image, unary: Field, used: CrfSettings) -> Field:
    from pydensecrf import densecrf

    labels, height, width = unary.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1), dtype=np.float32))
    crf.addPairwiseGaussian(sxy=used.smooth_sxy, compat=used.smooth_weight)
    crf.addPairwiseBilateral(sxy=used.bilateral_sxy, srgb=used.bilateral_srgb,
                             rgbim=np.ascontiguousarray(photo), compat=used.bilateral_weight)
    return np.asarray(crf.inference(used.iterations), dtype=np.float32).reshape(unary.shape)


def _by_torch(photo: Image, unary: Field, used: CrfSettings, device: torch.device) -> Field:
    labels, height, width = unary.shape
    y, x = torch.meshgrid(torch.arange(height, dtype=torch.float32, device=device),
                          torch.arange(width, dtype=torch.float32, device=device), indexing="ij")
    place = torch.stack([x.flatten(), y.flatten()], dim=1)
    colour = torch.from_numpy(photo.copy()).to(device).view(-1, 3).float()
    appearance = Lattice(torch.cat([place / used.bilateral_sxy, colour / used.bilateral_srgb], 1))
    kernels = [
        (used.smooth_weight, *_smooth_kernel(height, width, used.smooth_sxy, device)),
        (used.bilateral_weight, appearance, _normaliser(appearance, device)),
    ]
    energy = torch.from_numpy(unary.reshape(labels, -1)).to(device).T.contiguous()
    q = (-energy).softmax(dim=1)
    for _ in range(used.iterations):
        logits = -energy
        for weight, lattice, norm in kernels:
            # Potts: agreeing with similar pixels is rewarded.
            logits = logits + weight * norm * lattice.filter(norm * q)
        q = logits.softmax(dim=1)
    result: Field = q.T.reshape(labels, height, width).cpu().numpy()
    return result


@lru_cache(maxsize=8)
def _smooth_kernel(
    height: int, width: int, sxy: float, device: torch.device
) -> tuple[Lattice, Tensor]:
    """Lattice and normaliser of the smoothness kernel: the same for all photos of a size."""
    y, x = torch.meshgrid(torch.arange(height, dtype=torch.float32, device=device),
                          torch.arange(width, dtype=torch.float32, device=device), indexing="ij")
    lattice = Lattice(torch.stack([x.flatten(), y.flatten()], dim=1) / sxy)
    return lattice, _normaliser(lattice, device)


def _normaliser(lattice: Lattice, device: torch.device) -> Tensor:
    """Symmetric normalisation: 1/√(K·1) at each pixel (N, 1)."""
    return (lattice.filter(torch.ones(lattice.count, 1, device=device)) + 1e-20) ** -0.5


def to_labels(
    marginals: Field, classes: npt.NDArray[np.int64], confidence: float = 0.0
) -> npt.NDArray[np.uint8]:
    """Most likely class of each pixel; 255 where its probability is below `confidence`.

    CLIP-ES's confidence-guided loss is just this: 255 is ignored in training.

    Args:
        marginals: (L, H, W).
        classes: class index of each label (L,).
        confidence: 0 keeps every pixel.
    """
    labels: npt.NDArray[np.uint8] = classes.astype(np.uint8)[marginals.argmax(axis=0)]
    if confidence:
        labels[marginals.max(axis=0) < confidence] = 255
    return labels
