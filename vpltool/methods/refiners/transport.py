"""Optimal transport of a photo's patches to its classes, in a second encoder's features (DHR).

From DHR (ECCV 2024): the classes of a photo, and its background, are means of the second encoder's
patches under the maps. Sinkhorn with uniform marginals shares the patches out; the plan, from 0 to
1 for each class, is the result. Where two classes look alike to the second encoder, their cosines
are multiplied by the plan in CLIP's features; DHR takes its segmenter's features there, which do
not exist yet at this point. Uniform marginals give each class the same mass: expect small objects
to grow.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.core.grids import min_max
from vpltool.lazy import F, Tensor, no_grad, torch
from vpltool.methods.inputs import PhotoMaps
from vpltool.settings import setting

READS = ("patches", "second_patches")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the transport."""

    background: float = setting(0.4, "Background threshold: patches where all maps are below it "
                                     "are background.", low=0, high=1, source="vpltool")
    alike: float = setting(0.8, "Cosine above which two classes of a photo look alike.", low=-1,
                           high=1, source="DHR, official code")
    epsilon: float = setting(0.1, "Weight of the entropy.", low=0.01, source="DHR, official code")
    rounds: int = setting(100, "Maximum number of Sinkhorn iterations.", low=1,
                          source="DHR, official code")
    tolerance: float = setting(0.01, "Sinkhorn stops when the mean change of a scaling is below "
                                     "this.", low=0, source="DHR, official code")


@no_grad
def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Divide a photo's patches among its classes (K, h, w), in [0, 1], float32.

    If two of its classes look alike to the second encoder, their cosines are multiplied by the
    plan, from 0 to 1, in CLIP's features.
    """
    def plan(similarity: Tensor) -> Tensor:
        made = transport_plan(similarity, settings)
        return min_max(made.T[:, None])[:, 0].T

    if not len(photo.cams):
        return photo.cams.float()
    cams = photo.cams.float().flatten(1)
    second = photo.tensors["second_patches"]
    similarity, between = class_similarity(second, cams, settings.background)
    classes = between[1:, 1:].clone().fill_diagonal_(-1)
    confused = F.pad((classes > settings.alike).any(dim=1), (1, 0))
    if confused.any():
        told_apart = plan(class_similarity(photo.tensors["patches"], cams, settings.background)[0])
        similarity = torch.where(confused, similarity * told_apart, similarity)
    return plan(similarity)[:, 1:].T.view_as(photo.cams)


def transport_plan(similarity: Tensor, settings: Settings) -> Tensor:
    """Return the entropic plan (n, m) with equal mass for all n patches, and for all m classes.

    By Sinkhorn; the cost is 1 − similarity, a cosine (n, m). The plan sums to 1, each column to
    1 / m. Rounds end when the mean change of the patches' scaling is below the tolerance.
    """
    kernel = ((similarity.float() - 1) / settings.epsilon).exp()
    patches, classes = kernel.shape
    left, right = kernel.new_ones(patches), kernel.new_ones(classes)
    for _ in range(settings.rounds):
        before = left
        left = 1 / (patches * (kernel @ right))
        right = 1 / (classes * (kernel.T @ left))
        if float((left - before).abs().mean()) < settings.tolerance:
            break
    return left[:, None] * kernel * right


def class_similarity(patches: Tensor, cams: Tensor, background: float) -> tuple[Tensor, Tensor]:
    """Return the cosines of patches (n, dim) to the vectors of a photo's classes (n, 1 + K).

    The vector of a class is the mean of the patches where its map (K, n) is the strongest, or if
    there are none, weighted by its map; that of the background, which is first, of those where no
    map reaches the threshold `background`. Second come the cosines between these vectors (1 + K,
    1 + K).
    """
    unit = F.normalize(patches.float(), dim=-1)
    strongest, label = cams.max(dim=0)
    label = torch.where(strongest < background, 0, label + 1)
    scores = torch.cat([1 - strongest[None], cams])
    weights = F.one_hot(label, len(scores)).T.to(unit)
    weights = torch.where(weights.any(dim=1, keepdim=True), weights, scores)
    vectors = F.normalize(weights @ unit, dim=-1)
    return unit @ vectors.T, vectors @ vectors.T
