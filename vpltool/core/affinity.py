"""Walks between the patches of a photo: along attention, or between those that look alike.

CLIP-ES's class-aware attention affinity (CAA) spreads CAMs along attention, within boxes. Its
matrix T = D² is never formed: (T ∘ mask) c = D(D(mask ∘ c)), and D is the attention scaled by two
vectors: a few matrix products for all classes at once.

Border saliency finds objects of any class, as patches that do not look like the photo's border
(Zhu et al., CVPR 2014: background touches the border). Here patches from which a random walk
reaches the border are background. With a small encoder, scores of a text prototype ranked the
patches of an object no better than chance.
"""

from __future__ import annotations

from collections.abc import Sequence

from vpltool.lazy import F, Tensor, torch

SINKHORN_ROUNDS = 3

_UNSEEN_ROUNDS = 8
"""On a GPU, rounds in which components grow between two checks whether they still do."""


def sinkhorn_scaling(attention: Tensor, rounds: int = SINKHORN_ROUNDS) -> tuple[Tensor, Tensor]:
    """Return vectors r and c (B, n) for which diag(r)·A·diag(c) is nearly doubly stochastic.

    A round divides A, non-negative (B, n, n), by the column sums, then by the row sums (CLIP-ES).
    """
    rows = torch.ones_like(attention[..., 0])
    columns = torch.ones_like(rows)
    for _ in range(rounds):
        columns = 1 / torch.einsum("bij,bi->bj", attention, rows).clamp_min(1e-12)
        rows = 1 / torch.einsum("bij,bj->bi", attention, columns).clamp_min(1e-12)
    return rows, columns


def box_mask(cams: Tensor, threshold: float | Tensor, *, exclusive: bool = False) -> Tensor:
    """Return the union of the boxes around the bright regions of each CAM in [0, 1] (maps, h, w).

    As in CLIP-ES: the boxes of the 8-connected components of floor(255·cam) > floor(threshold·max).
    The threshold is λ, 0.4 for VOC and 0.7 for COCO, or one for each map (maps, 1, 1). `exclusive`
    leaves the map's last row and column out of every box, as in CLIP-ES.
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
    """Take two steps along the weighted mean of doubly stochastic attentions (n, n), from maps.

    Maps and result are (n, K), float32; attentions without a share are not read. Each is made
    doubly stochastic by itself: without class token and registers, rows of different encoders sum
    to different numbers, which would change the shares. The mean matrix is never formed.
    """
    used = [(share, attention.float()) for share, attention in zip(shares, attentions, strict=True)
            if share]
    scaled = [(share, attention, *sinkhorn_scaling(attention[None])) for share, attention in used]
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


def patch_walk(patches: Tensor, tau: float) -> Tensor:
    """Return the transitions (B, n, n) of a random walk between L2-normed patches (B, n, dim).

    It steps from i to j with probability softmax_j(cos(x_i − m, x_j − m) / τ), where m is the mean
    of the photo's patches.
    """
    centred = F.normalize(patches - patches.mean(dim=1, keepdim=True), dim=-1)
    return (centred @ centred.transpose(1, 2) / tau).softmax(dim=-1)


def border_saliency(patches: Tensor, grid: tuple[int, int], *, tau: float = 0.1,
                    steps: int = 2) -> Tensor:
    """Rank patches (B, h·w), from 0 to 1, by how seldom a random walk from them ends on the border.

    Patches are L2-normed (B, h·w, dim), on a grid (h, w); for `tau` see `patch_walk`. The most
    salient patch of a photo has rank 1.
    """
    height, width = grid
    walk = patch_walk(patches, tau)
    border = torch.zeros(grid, device=patches.device)
    border[[0, -1]] = 1
    border[:, [0, -1]] = 1
    mass = border.flatten()[None, :, None].expand(len(patches), -1, 1)
    for _ in range(steps):
        mass = walk @ mass
    order = mass[..., 0].argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(height * width, device=patches.device, dtype=torch.float32)
    ranks = (ranks / max(height * width - 1, 1)).expand(len(patches), -1)
    return torch.empty_like(ranks).scatter_(1, order, ranks)


def salient_means(patches: Tensor, grid: tuple[int, int], share: float) -> Tensor:
    """Return the mean (B, dim) of each photo's most salient share of patches, at least one patch.

    Patches are L2-normed (B, h·w, dim), float32, on a grid (h, w).
    """
    salient = (border_saliency(patches, grid) >= 1 - share).to(patches)
    return (salient[:, None] @ patches)[:, 0] / salient.sum(dim=1, keepdim=True)
