"""Border saliency: objects of any class, as patches that do not look like the photo's border.

A text prototype tells which class a photo shows, but often not where: with a small encoder, its
scores ranked the patches of an object no better than chance. The border prior is older than CLIP
(Zhu et al., CVPR 2014: background touches the border). Here it is a random walk between similar
patches: those from which it reaches the border are background.
"""

from __future__ import annotations

from vpltool.lazy import F, Tensor, torch


def patch_walk(patches: Tensor, tau: float) -> Tensor:
    """Return the transition matrix of a random walk between similar patches of a photo.

    It steps from i to j with probability softmax_j(cos(x_i − m, x_j − m) / τ), where m is the mean
    of the photo's patches.

    Args:
        patches: L2-normed patch embeddings (B, n, dim).
        tau: temperature.

    Returns:
        (B, n, n), rows summing to 1.
    """
    centred = F.normalize(patches - patches.mean(dim=1, keepdim=True), dim=-1)
    return (centred @ centred.transpose(1, 2) / tau).softmax(dim=-1)


def border_saliency(patches: Tensor, grid: tuple[int, int], *, tau: float = 0.1,
                    steps: int = 2) -> Tensor:
    """Rank each patch by how seldom a random walk from it ends on the border.

    Args:
        patches: L2-normed patch embeddings (B, h·w, dim).
        grid: (h, w).
        tau: temperature of the walk, see `patch_walk`.
        steps: number of its steps.

    Returns:
        rank in the photo (B, h·w), 0 for the least and 1 for the most salient patch.
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
    """Return the mean of each photo's most salient patches (B, dim).

    Args:
        patches: L2-normed patch embeddings (B, h·w, dim), float32.
        grid: (h, w).
        share: of the patches that count, at least one.
    """
    salient = (border_saliency(patches, grid) >= 1 - share).to(patches)
    return (salient[:, None] @ patches)[:, 0] / salient.sum(dim=1, keepdim=True)
