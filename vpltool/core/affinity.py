"""Class-aware attention affinity (CAA) of CLIP-ES: CAMs are spread along attention, within boxes.

The affinity matrix T = D² is never formed: (T ∘ mask) c = D(D(mask ∘ c)), and D is the attention
scaled by two vectors. The cost is a few matrix products for all classes at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from vpltool.lazy import F, Tensor, torch

SINKHORN_ROUNDS = 3

_UNSEEN_ROUNDS = 8
"""On a GPU, rounds of growing components between two checks of whether they still grow."""


def sinkhorn_scaling(attention: Tensor, rounds: int = SINKHORN_ROUNDS) -> tuple[Tensor, Tensor]:
    """Return vectors r, c for which diag(r)·A·diag(c) is nearly doubly stochastic.

    One round divides by the column sums, then by the row sums, as in CLIP-ES.

    Args:
        attention: A, non-negative (B, n, n).
        rounds: number of rounds.

    Returns:
        r (B, n) and c (B, n).
    """
    rows = torch.ones_like(attention[..., 0])
    columns = torch.ones_like(rows)
    for _ in range(rounds):
        columns = 1 / torch.einsum("bij,bi->bj", attention, rows).clamp_min(1e-12)
        rows = 1 / torch.einsum("bij,bj->bi", attention, columns).clamp_min(1e-12)
    return rows, columns


def box_mask(cams: Tensor, threshold: float | Tensor, *, exclusive: bool = False) -> Tensor:
    """Return the union of the bounding boxes around the bright regions of each CAM.

    As in CLIP-ES: the boxes of the 8-connected components of floor(255·cam) > floor(threshold·max).

    Args:
        cams: maps in [0, 1] (maps, h, w).
        threshold: λ, 0.4 for VOC and 0.7 for COCO; or one for each map (maps, 1, 1).
        exclusive: leave the map's last row and column out of every box, as in CLIP-ES.

    Returns:
        bool (maps, h, w).
    """
    count, height, width = cams.shape
    # CLIP-ES normalises a map twice, so its maximum is 1 − 1e-7, which is level 254, and the
    # threshold is int(λ·254). In half precision the maximum would be 1.
    levels = (cams.clamp(max=1 - 1e-7) * 255).floor()
    bright = levels > (threshold * levels.amax(dim=(1, 2), keepdim=True)).floor()
    component = _components(bright, _UNSEEN_ROUNDS if bright.is_cuda else 1)
    y, x = torch.meshgrid(torch.arange(height, device=cams.device),
                          torch.arange(width, device=cams.device), indexing="ij")
    size = height * width
    slot = component.flatten(1)
    corners = []
    for coordinate, reduce in ((y, "amin"), (y, "amax"), (x, "amin"), (x, "amax")):
        start = slot.new_full((count, size + 1), size if reduce == "amin" else -1)
        values = coordinate.reshape(1, -1).expand(count, -1)
        corners.append(start.scatter_reduce(1, slot, values, reduce)[:, 1:])
    # Each box is +1 and -1 at its corners; cumulative sums along both axes fill it.
    fill = cams.new_zeros(count, height + 1, width + 1, dtype=torch.long)
    photo, box = (corners[1] >= 0).nonzero(as_tuple=True)
    top, bottom, left, right = (corner[photo, box] for corner in corners)
    below, beyond = bottom + 1, right + 1
    if exclusive:
        below, beyond = below.clamp(max=height - 1), beyond.clamp(max=width - 1)
    for row, column, sign in ((top, left, 1), (below, left, -1), (top, beyond, -1),
                              (below, beyond, 1)):
        fill.index_put_((photo, row, column), torch.full_like(row, sign), accumulate=True)
    return fill.cumsum(1).cumsum(2)[:, :height, :width] > 0


def _components(bright: Tensor, rounds: int) -> Tensor:
    """Label 8-connected components with their largest pixel number, from 1; dark pixels get 0.

    Each round grows the labels by one pixel until nothing changes. Further rounds change nothing
    either, so the check, which waits for a GPU, is made only every `rounds` rounds.
    """
    count, height, width = bright.shape
    numbers = torch.arange(1, height * width + 1, device=bright.device, dtype=torch.float32)
    labels = numbers.view(1, height, width) * bright
    while True:
        grown = labels
        for _ in range(rounds):
            grown = F.max_pool2d(grown[:, None], 3, stride=1, padding=1)[:, 0] * bright
        if torch.equal(grown, labels):
            return labels.long()
        labels = grown


def attention_walk(attentions: Sequence[Tensor], shares: Sequence[float], maps: Tensor) -> Tensor:
    """Take two steps along the weighted mean of doubly stochastic attentions.

    Each is made doubly stochastic by itself: without the class token and the registers, rows of
    different encoders sum to different numbers, and the shares would not be those asked for. A mean
    of doubly stochastic matrices is one; none is formed.

    Args:
        attentions: of each encoder (n, n).
        shares: of each; an encoder without one is not looked at.
        maps: (n, K), float32.

    Returns:
        maps (n, K), float32.
    """
    steps = [(share, attention.float()) for share, attention in zip(shares, attentions, strict=True)
             if share]
    scaled = [(share, attention, *sinkhorn_scaling(attention[None]))
              for share, attention in steps]
    for _ in range(2):
        parts = [symmetric_product(attention, rows[0], columns[0], maps) * share
                 for share, attention, rows, columns in scaled]
        maps = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
    return maps


def symmetric_product(attention: Tensor, rows: Tensor, columns: Tensor, maps: Tensor) -> Tensor:
    """Multiply D = (S + Sᵀ)/2, S = diag(rows)·A·diag(columns), with maps (n, K)."""
    forward = rows[:, None] * (attention @ (columns[:, None] * maps))
    backward = columns[:, None] * (attention.T @ (rows[:, None] * maps))
    return (forward + backward) / 2
