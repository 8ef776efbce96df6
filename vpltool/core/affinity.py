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

from vpltool.lazy import F, Tensor, np, scipy, torch

SINKHORN_ROUNDS = 3


def sinkhorn_scaling(attention: Tensor, rounds: int = SINKHORN_ROUNDS) -> tuple[Tensor, Tensor]:
    """Return vectors r and c (B, n) for which diag(r)·A·diag(c) is nearly doubly stochastic.

    A round divides A, non-negative (B, n, n), by the column sums, then by the row sums (CLIP-ES).
    """
    rows = torch.ones_like(attention[..., 0])
    columns = torch.ones_like(rows)
    for _ in range(rounds):
        columns = 1 / (rows[:, None] @ attention)[:, 0].clamp_min(1e-12)
        rows = 1 / (attention @ columns[..., None])[..., 0].clamp_min(1e-12)
    return rows, columns


def box_mask(cams: Tensor, threshold: float | Tensor, *, exclusive: bool = False) -> Tensor:
    """Return the union of the boxes around the bright regions of each CAM in [0, 1] (maps, h, w).

    As in CLIP-ES: the boxes of the 8-connected components of floor(255·cam) > floor(threshold·max).
    The threshold is λ, 0.4 for VOC and 0.7 for COCO, or one for each map (maps, 1, 1). `exclusive`
    leaves the map's last row and column out of every box, as in CLIP-ES.
    """
    # CLIP-ES normalises a map twice, so its maximum is 1 − 1e-7, which is level 254, and the
    # threshold is int(λ·254). In half precision the maximum would be 1.
    levels = (cams.clamp(max=1 - 1e-7) * 255).floor()
    bright = levels > (threshold * levels.amax(dim=(1, 2), keepdim=True)).floor()
    inside = np.zeros(bright.shape, bool)
    # On the host: on a GPU, components of so few pixels are hundreds of tiny operations.
    for area, map_ in zip(inside, bright.cpu().numpy(), strict=True):
        for box in scipy.ndimage.find_objects(scipy.ndimage.label(map_, np.ones((3, 3)))[0]):
            area[box] = True
    if exclusive:
        inside[:, -1] = inside[..., -1] = False
    return torch.from_numpy(inside).to(cams.device)


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
    # A photo of a single patch has the most salient one, too.
    last = max(height * width - 1, 1)
    ranks = torch.arange(last + 1, device=patches.device, dtype=torch.float32)[-height * width:]
    ranks = (ranks / last).expand(len(patches), -1)
    return torch.empty_like(ranks).scatter_(1, order, ranks)


def salient_means(patches: Tensor, grid: tuple[int, int], share: float) -> Tensor:
    """Return the mean (B, dim) of each photo's most salient share of patches, at least one patch.

    Patches are L2-normed (B, h·w, dim), float32, on a grid (h, w).
    """
    salient = (border_saliency(patches, grid) >= 1 - share).to(patches)
    return (salient[:, None] @ patches)[:, 0] / salient.sum(dim=1, keepdim=True)
