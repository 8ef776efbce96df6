"""Fully connected CRF with Gaussian edges (Krähenbühl and Koltun 2011), by mean field.

Three backends give the same result: `numba` (one core of a CPU, see `crf_numba`), `torch` (any
device, several photos at a time) and `pydensecrf` (C++, one core). The first two filter one channel
fewer than there are labels: only differences to the first label count.

A photo of 12 megapixels costs minutes and gigabytes, and its CAMs have one value per 16×16 pixels.
So the CRF runs at a bounded size (`bounded_size`), with the same deviations in pixels.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import TypeAlias

from vpltool.core import crf_numba, segment
from vpltool.core.permutohedral import Lattice
from vpltool.lazy import F, Image, Tensor, np, npt, torch

Pixels: TypeAlias = "npt.NDArray[np.uint8]"
Field: TypeAlias = "npt.NDArray[np.float32]"

_MEAN_BGR = (104.008, 116.669, 122.675)
"""Caffe's mean of ImageNet, which CLIP-ES subtracts from the photo before the CRF."""

_SURE = 0.7
"""Score of a hard label."""


@dataclass(frozen=True)
class CrfKernels:
    """Kernels of the dense CRF, and the number of its mean-field iterations.

    `smooth` is the smoothness kernel, `bilateral` the appearance kernel; `sxy` is a standard
    deviation in pixels, `srgb` one in colour, 0 to 255.
    """

    smooth_sxy: float
    smooth_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_weight: float
    iterations: int = 10

    @classmethod
    def from_json(cls, values: object) -> CrfKernels:
        """Make settings of a JSON file's content.

        Raises a ValueError if it is no object, a name is unknown or missing, or a value is no
        number within its range; the message gives name and value.
        """
        if not isinstance(values, dict):
            raise ValueError("the settings of a CRF are an object, {\"smooth_sxy\": 1, …}")
        known = {field.name: field for field in fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"{name} is not a setting of a CRF: {', '.join(known)}")
        for name, field in known.items():
            if name in values:
                _check_number(name, values[name], whole=name == "iterations")
            elif field.default is MISSING:
                raise ValueError(f"{name} is missing")
        return cls(**values)


def _check_number(name: str, value: object, *, whole: bool) -> None:
    """Raise a ValueError unless a value is a number in its setting's range: deviations above 0."""
    kind = "whole number" if whole else "number"
    positive = name.endswith(("sxy", "srgb"))
    right = (isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
             and math.isfinite(value) and value >= 0 and (value > 0 or not positive))
    if not right:
        raise ValueError(f"{name} is {value!r}: expected a {kind} "
                         + ("above 0" if positive else "of 0 or more"))


KERNELS: dict[str, CrfKernels] = {
    # CLIP-ES (CVPR 2023), pseudo masks of VOC and COCO.
    "clip-es": CrfKernels(1, 3, 67, 3, 4),
    # WeCLIP (CVPR 2024), at test.
    "weclip": CrfKernels(3, 3, 64, 5, 4),
}


def wrap_image(photo: Pixels) -> Pixels:
    """Return RGB (H, W, 3) as CLIP-ES's CRF sees it: BGR minus its mean, truncated to bytes.

    The cast is modulo 256 (x86's; others may saturate): a channel below its mean comes out near
    255, so the appearance kernel takes dark for bright there, and separates what lies on both sides
    of the mean.
    """
    shifted = photo[..., ::-1] - np.array(_MEAN_BGR)
    return (np.trunc(shifted).astype(np.int64) % 256).astype(np.uint8)


def with_background(cams: Tensor, alpha: float = 1.0) -> Tensor:
    """Prepend CLIP-ES's background score (1 − max_c cam)^α to CAMs (K, H, W): (1 + K, H, W)."""
    strongest = cams.amax(dim=0, keepdim=True) if len(cams) else cams.new_zeros(1, *cams.shape[1:])
    return torch.cat([(1 - strongest).clamp_min(0) ** alpha, cams])


def scores_of_labels(labels: Pixels, among: int = 0) -> tuple[Tensor, Tensor]:
    """Return scores for a CRF on hard labels: 0.7 for the label, the rest shared by the others.

    Labels are (H, W), with 255 as background. Scores (L, H, W) are those of the L labels present;
    with their classes (L,). `among` is the number of labels that share the rest, for a part of a
    photo that of the whole; 0: L.
    """
    classes, index = np.unique(np.where(labels == 255, 0, labels), return_inverse=True)
    one_hot = torch.from_numpy(np.eye(len(classes), dtype=np.float32)[index.reshape(labels.shape)])
    rest = (1 - _SURE) / max((among or len(classes)) - 1, 1)
    scores = one_hot * (_SURE - rest) + rest
    return scores.permute(2, 0, 1).contiguous(), torch.from_numpy(classes.astype(np.int64))


def mean_field(photo: Pixels, scores: Field, settings: CrfKernels, *, backend: str = "torch"
               ) -> Field:
    """Return the marginals Q (L, H, W) of the dense CRF, summing to 1 over the labels.

    Its unary is −log of the scores (L, H, W), clipped to [1e-5, 1]; they need not sum to 1. The
    photo is RGB (H, W, 3); the backend is `torch` (on the CPU), `numba` or `pydensecrf`.
    """
    return mean_fields([photo], [scores], settings, backend=backend)[0]


def mean_fields(photos: Sequence[Pixels], scores: Sequence[Field], settings: CrfKernels, *,
                backend: str = "torch", device: torch.device | None = None) -> list[Field]:
    """Return `mean_field` of photos of one size: by `torch` together, by the others one by one.

    The bits are the same each time, on a GPU too: sums have a fixed order.
    """
    if backend == "torch":
        return _by_torch(photos, scores, settings, device or torch.device("cpu"))
    solve = _by_numba if backend == "numba" else _by_pydensecrf
    return [solve(photo, -np.log(field.clip(1e-5, 1)), settings) if len(field) > 1
            else np.ones_like(field) for photo, field in zip(photos, scores, strict=True)]


def fastest_backend(device: torch.device) -> str:
    """Return the fastest installed backend for a device."""
    if device.type == "cuda":
        return "torch"
    return next((name for name in ("numba", "pydensecrf") if importlib.util.find_spec(name)),
                "torch")


def decided(scores: Field, confidence: float = 0.0) -> Field | None:
    """Return the labels' distribution (L, H, W) if one leads everywhere; None: the CRF must run.

    The CRF cannot change such labels: kernels and weights are not negative, so neighbours give most
    to the label that leads at all pixels, and it leads by more after each iteration. It must also
    reach the confidence everywhere, so that no pixel is below it, before or after the CRF.
    """
    shares = scores.clip(1e-5, 1)
    shares = shares / shares.sum(axis=0)
    first = shares[:, 0, 0].argmax()
    lead, others = shares[first], np.delete(shares, first, axis=0)
    leads = (lead > others).all() and (lead >= confidence).all()
    return shares if leads else None


def _by_pydensecrf(photo: Pixels, unary: Field, used: CrfKernels) -> Field:
    from pydensecrf import densecrf

    labels, height, width = unary.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1), dtype=np.float32))
    crf.addPairwiseGaussian(sxy=used.smooth_sxy, compat=used.smooth_weight)
    crf.addPairwiseBilateral(sxy=used.bilateral_sxy, srgb=used.bilateral_srgb,
                             rgbim=np.ascontiguousarray(photo), compat=used.bilateral_weight)
    return np.asarray(crf.inference(used.iterations), dtype=np.float32).reshape(unary.shape)


def _by_torch(photos: Sequence[Pixels], scores: Sequence[Field], settings: CrfKernels,
              device: torch.device) -> list[Field]:
    height, width = photos[0].shape[:2]
    labels = max(map(len, scores))
    if labels == 1:
        return [np.ones_like(field) for field in scores]
    # A label that a photo lacks has infinite energy there.
    energy = torch.full((len(photos), labels, height * width), torch.inf, device=device)
    for photo, field in enumerate(scores):
        costs = -torch.from_numpy(field).to(device).clamp(1e-5, 1).log()
        energy[photo, : len(field)] = costs.flatten(1)
    smooth = _smooth_lattice(height, width, settings.smooth_sxy, settings.smooth_weight, device)
    place = torch.from_numpy(_positions(height, width)).to(device) / settings.bilateral_sxy
    colour = torch.from_numpy(np.stack(photos)).to(device).view(-1, 3) / settings.bilateral_srgb
    appearance = _lattice(torch.cat([place.repeat(len(photos), 1), colour], dim=1),
                          settings.bilateral_weight, len(photos))
    # The smoothness kernel is the same for all photos: they are more columns to it.
    margins = unary = energy[:, :1] - energy[:, 1:]
    for _ in range(settings.iterations):
        q = _distribution(margins)
        over = q[:, 1:] - q[:, :1]
        # Potts: agreeing with similar pixels is rewarded.
        near = smooth.filter(over.flatten(0, 1).T).T.view_as(over)
        alike = appearance.filter(over.transpose(1, 2).flatten(0, 1))
        alike = alike.unflatten(0, (len(photos), -1)).transpose(1, 2)
        margins = near + alike + unary
    fields = _distribution(margins).view(len(photos), labels, height, width).cpu().numpy()
    return [fields[photo, : len(field)] for photo, field in enumerate(scores)]


def _distribution(margins: Tensor) -> Tensor:
    """Return probabilities (B, L, N) from the labels' margins over the first (B, L − 1, N)."""
    # Labels are not the last axis: there, a softmax over so few is many times slower on a CPU.
    return F.pad(margins, (0, 0, 1, 0)).softmax(dim=1)


@lru_cache(maxsize=2)  # each takes up to 0.7 GB of a GPU
def _smooth_lattice(height: int, width: int, sxy: float, weight: float, device: torch.device
                    ) -> Lattice:
    """Return the smoothness kernel, the same for all photos of a size."""
    return _lattice(torch.from_numpy(_positions(height, width)).to(device) / sxy, weight)


def _lattice(features: Tensor, weight: float, sets: int = 1) -> Lattice:
    """Return weight·N·K·N with the symmetric normalisation N = diag(1/√(K·1))."""
    lattice = Lattice(features, sets)
    total = lattice.filter(torch.ones(lattice.count, 1, device=features.device))[:, 0]
    norm = (total + 1e-20) ** -0.5
    lattice.rescale(norm, weight * norm)
    return lattice


def _by_numba(photo: Pixels, unary: Field, used: CrfKernels) -> Field:
    labels, height, width = unary.shape
    smooth = _smooth_kernel(height, width, used.smooth_sxy, used.smooth_weight)
    alike = crf_numba.build_kernel(np.concatenate(
        [_positions(height, width) / np.float32(used.bilateral_sxy),
         photo.reshape(-1, 3) / np.float32(used.bilateral_srgb)], axis=1), used.bilateral_weight)
    energy = unary.reshape(labels, -1)
    start = np.ascontiguousarray((energy[:1] - energy[1:]).T, dtype=np.float32)
    margins, over = start.copy(), np.empty_like(start)
    likely = np.empty((len(start), labels), np.float32)
    for _ in range(used.iterations):
        crf_numba.shift(margins, likely)
        crf_numba.compare(np.exp(likely, out=likely), over)
        # Potts: agreeing with similar pixels is rewarded.
        margins[:] = start
        crf_numba.add_filtered(smooth, over, margins)
        crf_numba.add_filtered(alike, over, margins)
    crf_numba.shift(margins, likely)
    np.exp(likely, out=likely)
    likely /= likely.sum(axis=1, keepdims=True)
    return np.ascontiguousarray(likely.T).reshape(labels, height, width)


@lru_cache(maxsize=8)
def _smooth_kernel(height: int, width: int, sxy: float, weight: float) -> crf_numba.Kernel:
    """Return the smoothness kernel, the same for all photos of a size."""
    return crf_numba.build_kernel(_positions(height, width) / np.float32(sxy), weight)


def _positions(height: int, width: int) -> Field:
    """Return (x, y) of each pixel (H·W, 2)."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def bounded_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Return the (height, width) at which the CRF runs: no side longer than `max_side`; 0: any.

    `shrink` scales photo or labels to this size, `labels_at` the marginals back to the photo's.
    """
    if not max_side or max(size) <= max_side:
        return size
    height, width = (max(1, round(side * max_side / max(size))) for side in size)
    return height, width


def shrink(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Scale RGB (H, W, 3) down to `size`, bilinearly; labels (H, W) by nearest neighbour.

    Photos are scaled before `wrap_image`, since wrapped colours have no mean.
    """
    if image.shape[:2] == size:
        return image
    method = Image.Resampling.BILINEAR if image.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), method)).copy()


def labels_at(marginals: Field, classes: npt.NDArray[np.int64],
              size: tuple[int, int] | None = None, confidence: float = 0.0) -> Pixels:
    """Return the most likely class of each pixel (H, W), of marginals (L, h, w) and classes (L,).

    Marginals are scaled bilinearly to `size`; None: their own. Pixels below the confidence become
    255, which training ignores: CLIP-ES's confidence-guided loss.
    """
    return segment.labels_of(torch.from_numpy(marginals), size or marginals.shape[-2:], confidence,
                             classes.tolist())


def estimate_bytes(size: tuple[int, int], labels: int, backend: str) -> int:
    """Return the bytes that the CRF takes for a photo of (height, width), beyond its inputs.

    Measured with CLIP-ES's kernels on photos of ordinary grain; a smooth photo takes a third less,
    a noisy one a third more. `numba` and `pydensecrf` take them for each process, `torch` for each
    photo of a batch.
    """
    # The peak is either the making of the lattice or the filtering of the labels.
    least, fixed, each = {"pydensecrf": (0, 350, 60), "numba": (470, 200, 55),
                          "torch": (1300, 300, 90)}[backend]
    return size[0] * size[1] * max(least, fixed + each * labels)
