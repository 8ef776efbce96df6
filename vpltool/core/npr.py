"""Non-learnable prototypical regularisation, NPR, with its EM (PGSeg, NeurIPS 2023).

Prototypes without gradient keep group tokens apart. EM estimates them in each photo from the input
tokens of a stage:

    z = softmax_k(x μᵀ / τ),   μ ← L2(zᵀ x),   T times, from the moving average of all batches.

The tokens' reconstruction from them, an MLP of ẑ μ with ẑ summing to 1 over the tokens, is added
after the stage's blocks. Group tokens are matched with the photo's prototypes one to one; a
contrastive loss draws matched pairs together, except those whose cosine is among the photo's
lowest. Prototypes of text are estimated in the same way from the vectors of a batch's captions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.lazy import scipy

MAX_SCALE = 100.0
"""No learned scale of a contrastive loss exceeds it."""


def em_prototypes(pixels: Tensor, start: Tensor, *, tau: float, rounds: int) -> Tensor:
    """Return prototypes by T rounds of z = softmax(x μᵀ / τ) over the prototypes, μ = L2(zᵀ x).

    Pixels x are (..., n, dim), each set of n on its own; the start is the first μ, L2-normed (K,
    dim), or of each set (..., K, dim). The result is L2-normed (..., K, dim), float32.
    """
    pixels, prototypes = pixels.float(), start.float()
    for _ in range(rounds):
        share = (pixels @ prototypes.mT / tau).softmax(dim=-1)
        # PGSeg divides z by its sum over the pixels: that changes the length of zᵀ x only.
        prototypes = F.normalize(share.mT @ pixels, dim=-1)
    return prototypes


@torch.no_grad()
def best_matchings(similarity: Tensor) -> Tensor:
    """Return the column matched with each row (B, n), so that matched similarities sum to the most.

    Similarities are finite (B, n, n).
    """
    columns = [torch.from_numpy(scipy.optimize.linear_sum_assignment(problem, maximize=True)[1])
               for problem in similarity.cpu().double().numpy()]
    return torch.stack(columns).to(similarity.device)


class Prototypes(nn.Module):
    """The moving average of K prototypes, a buffer that only `update` changes.

    `tau` and `rounds` are those of EM; `momentum` is the share of the average that a batch keeps.
    """

    average: Tensor

    def __init__(self, count: int, dim: int, *, tau: float, rounds: int, momentum: float) -> None:
        super().__init__()
        self.tau, self.rounds, self.momentum = tau, rounds, momentum
        self.register_buffer("average", F.normalize(torch.randn(count, dim), dim=-1))

    @torch.no_grad()
    def estimate(self, tokens: Tensor) -> Tensor:
        """Estimate prototypes of tokens (..., n, dim), photo by photo: L2-normed (..., K, dim)."""
        with torch.autocast(tokens.device.type, enabled=False):
            return em_prototypes(tokens.detach(), self.average, tau=self.tau, rounds=self.rounds)

    @torch.no_grad()
    def update(self, found: Tensor, mean: Callable[[Tensor], Tensor] = lambda own: own) -> None:
        """Move the average towards the mean of a batch's prototypes (B, K, dim), from `estimate`.

        `mean` averages a tensor over all processes.
        """
        batch = mean(found.mean(dim=0))
        self.average.copy_(F.normalize(
            self.momentum * self.average + (1 - self.momentum) * batch, dim=-1))


class Reconstruction(nn.Module):
    """Tokens rebuilt from their prototypes: an MLP of ẑ μ, where ẑ sums to 1 over the tokens.

    `hidden` is the width of the MLP, `tau` the temperature of z.
    """

    def __init__(self, dim: int, hidden: int, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.mlp = batch_normed(dim, hidden, dim)

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """Rebuild tokens (B, N, dim) from prototypes (B, K, dim): (B, N, dim)."""
        with torch.autocast(tokens.device.type, enabled=False):
            share = (tokens.float() @ prototypes.mT / self.tau).softmax(dim=-1)
            rebuilt = share / share.sum(dim=1, keepdim=True).clamp_min(1e-12) @ prototypes
        return self.mlp(rebuilt.flatten(0, 1)).view_as(rebuilt)


def batch_normed(before: int, hidden: int, after: int) -> nn.Sequential:
    """Return two layers with BatchNorm and ReLU between them."""
    return nn.Sequential(nn.Linear(before, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, after))


def prototype_contrast(groups: Tensor, prototypes: Tensor, log_scale: Tensor, reject: float
                       ) -> Tensor:
    """Return the contrast that draws each group token to its matched prototype; a scalar.

    It is a cross-entropy over the prototypes for each group, and over the groups for each
    prototype. Pairs whose cosine, stretched to [0, 1] over all pairs of the photo, does not exceed
    `reject` do not count. Group tokens are (B, K, dim); prototypes, L2-normed without gradient,
    (B, K, dim), or of all photos (K, dim); `log_scale` is the logarithm of the cosines' scale.
    """
    cosines = F.normalize(groups.float(), dim=-1) @ prototypes.mT
    match = best_matchings(cosines.detach())[..., None]
    matched = cosines.gather(2, match)
    low, high = (bound(cosines.detach().flatten(1), dim=1)[:, None, None]
                 for bound in (torch.amin, torch.amax))
    # A single group has no range, and is its own match.
    trusted = (matched.detach() - low > reject * (high - low)) | (high == low)
    logits = log_scale.exp().clamp_max(MAX_SCALE) * cosines
    own = logits.gather(2, match)
    of_groups = logits.logsumexp(dim=2, keepdim=True) - own
    of_prototypes = logits.logsumexp(dim=1)[..., None].gather(1, match) - own
    losses = (of_groups + of_prototypes) / 2
    return (losses * trusted).sum() / trusted.sum().clamp_min(1)
