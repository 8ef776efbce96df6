"""Class activation maps from a frozen CLIP and any prototypes: GradCAM, and the dense softmax.

GradCAM as in CLIP-ES (CVPR 2023, eqs. 2 to 4): the target activation is the output of the last
block's ln_1, the score is that of the pooled photo, gradients are averaged over the patches. Only
the last block is run, on stored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.classes import allowed_rows, class_scores
from vpltool.core.last_block import mean_patch_gradient, trace
from vpltool.core.vit import Head


def min_max(maps: Tensor) -> Tensor:
    """Scale each map (..., h, w) to [0, 1] as in CLIP-ES: (x − min) / (1e-7 + max(x − min))."""
    shifted = maps - maps.amin(dim=(-2, -1), keepdim=True)
    return shifted / (shifted.amax(dim=(-2, -1), keepdim=True) + 1e-7)


def gradcam(
    head: Head, tokens: Tensor, grid: tuple[int, int], prototypes: Tensor, class_index: Tensor,
    present: Sequence[Tensor], *, tau: float = 0.01, target: str = "margin",
) -> list[Tensor]:
    """Return GradCAM of every present class of every photo, from one batched backward pass.

    Each photo runs forward through the last block once; each (photo, class) pair is an entry of
    the batch of the backward pass (`last_block`). The logits are z·p / τ over the photo's present
    classes and the background rows. The score is the class's probability (`softmax`), or its logit
    minus the log-sum-exp of the others (`margin`). Both give the same map after min-max, but the
    margin has no factor y(1−y), which underflows if CLIP is certain.

    Args:
        head: the end of CLIP.
        tokens: input of the last block (B, 1+h·w, width), or (B, h·w, width) if there is no class
            token, in the head's number format.
        grid: (h, w).
        prototypes: L2-normed rows (rows, dim).
        class_index: class of each row (rows,), 0 is the background.
        present: class indices of each photo, one tensor (K_i,) a photo.
        tau: temperature τ_T.
        target: `margin` or `softmax`.

    Returns:
        for each photo a map per class (K_i, h, w) in [0, 1], float32.
    """
    pairs = [(photo, int(index)) for photo, classes in enumerate(present) for index in classes]
    if not pairs:
        return [tokens.new_zeros((0, *grid), dtype=torch.float32) for _ in present]
    photo_of = torch.tensor([photo for photo, _ in pairs], device=tokens.device)
    class_of = torch.tensor([index for _, index in pairs], device=tokens.device)
    counts = [len(classes) for classes in present]
    kept = trace(head.block, tokens)
    allowed = allowed_rows(class_index, present)[photo_of]
    with torch.enable_grad():
        output = kept.output[photo_of].requires_grad_(True)
        pooled = head.pooled(output)
        logits = (pooled @ prototypes.to(pooled).T).float() / tau
        score = _score(logits.masked_fill(~allowed, float("-inf")),
                       class_index == class_of[:, None], target)
        (gradient,) = torch.autograd.grad(score.sum(), output)
    # The weight of a channel is its mean gradient over the patches, CLS excluded.
    weights = mean_patch_gradient(head.block, kept, photo_of, counts, gradient,
                                  head.prefix).float()
    maps = torch.cat([own @ normed[head.prefix :].float().T for own, normed in zip(
        weights.split(counts), kept.normed, strict=True)]).relu()
    # Twice, as in CLIP-ES: once for the layer, once for the mean over layers. If gradients are
    # small, 1e-7 lowers the maximum of the first result, and the second restores it.
    maps = min_max(min_max(maps.view(-1, *grid)))
    return list(maps.split(counts))


def _score(logits: Tensor, own: Tensor, target: str) -> Tensor:
    """Return the score of each pair (P,) from its logits (P, rows) and the rows of its class."""
    score = logits.masked_fill(~own, float("-inf")).logsumexp(dim=-1)
    others = logits.masked_fill(own, float("-inf"))
    rivals = others.isfinite().any(dim=-1)
    # Without other rows there is no margin; the score is the class's own logit.
    others = torch.where(rivals[:, None], others, torch.zeros_like(others))
    margin = score - torch.where(rivals, others.logsumexp(dim=-1), score.new_zeros(()))
    # y = σ(margin). Through the logarithm, the gradient's factor 1 − y keeps its digits if y is
    # nearly 1; through a softmax it is only rounding noise below 1 − y = 1e-6.
    return F.logsigmoid(margin).exp() if target == "softmax" else margin


@torch.no_grad()
def dense_cam(
    patches: Tensor, grid: tuple[int, int], prototypes: Tensor, class_index: Tensor,
    present: Sequence[Tensor], *, tau: float = 0.05, join: str = "sum",
    bias: Tensor | None = None,
) -> list[Tensor]:
    """Return the class probabilities of each patch: a softmax over present and background rows.

    Args:
        patches: L2-normed patch embeddings (B, h·w, dim).
        grid: (h, w).
        prototypes: L2-normed rows (rows, dim).
        class_index: class of each row (rows,), 0 is the background.
        present: class indices of each photo, one tensor (K_i,) a photo.
        tau: temperature.
        join: `sum` of the probabilities of a class's rows; or `mean`, so that a class or the
            background is not likelier because it has more rows.
        bias: of each row (rows,), added to its logit; None: 0.

    Returns:
        for each photo a map per class (K_i, h, w): the classes' probabilities, float32. The rest
        to 1 is the background.
    """
    logits = (patches @ prototypes.to(patches).T).float() / tau
    if bias is not None:
        logits += bias
    if join == "mean":
        _, number, counts = class_index.unique(return_inverse=True, return_counts=True)
        logits -= counts[number].log()
    logits = logits.masked_fill(~allowed_rows(class_index, present)[:, None], float("-inf"))
    total = logits.logsumexp(dim=-1, keepdim=True)
    maps = []
    for photo, classes in enumerate(present):
        scores = class_scores(logits[photo], class_index, classes)
        maps.append((scores - total[photo]).exp().T.reshape(len(classes), *grid))
    return maps
