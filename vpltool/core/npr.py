"""Non-learnable prototypical regularisation, NPR (PGSeg, NeurIPS 2023).

Prototypes that no gradient reaches keep group tokens apart. EM estimates them in each photo, from
the tokens that a stage begins with:

    z = softmax_k(x μᵀ / τ),   μ ← L2(zᵀ x),   T times, from the moving average of all batches.

What they say of the tokens is added after the stage's blocks, as an MLP of ẑ μ, where ẑ sums to 1
over the tokens. Group tokens are matched with the photo's prototypes one to one; a contrastive loss
draws matched pairs together, except those whose cosine is among the photo's lowest.

Prototypes of text are estimated in the same way, from the vectors of a batch's captions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.em import best_matchings, em_prototypes

MAX_SCALE = 100.0
"""No learned scale of a contrastive loss exceeds it."""


class Prototypes(nn.Module):
    """The moving average of prototypes; a buffer, which only `update` changes.

    Args:
        count: number of prototypes K.
        dim: of each.
        tau: temperature of EM.
        rounds: rounds of EM, T.
        momentum: share that a batch leaves of what was before.
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
        """Move the average towards the mean of a batch's prototypes.

        Args:
            found: of each photo (B, K, dim), as `estimate` gives them.
            mean: averages a tensor over all processes.
        """
        batch = mean(found.mean(dim=0))
        self.average.copy_(F.normalize(
            self.momentum * self.average + (1 - self.momentum) * batch, dim=-1))


class Reconstruction(nn.Module):
    """Tokens as their prototypes have them: an MLP of ẑ μ, where ẑ sums to 1 over the tokens.

    Args:
        dim: of a token.
        hidden: of the MLP.
        tau: temperature of z.
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
        made: Tensor = self.mlp(rebuilt.flatten(0, 1))
        return made.view_as(rebuilt)


def batch_normed(before: int, hidden: int, after: int) -> nn.Sequential:
    """Two layers with BatchNorm and ReLU between them."""
    return nn.Sequential(nn.Linear(before, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, after))


def prototype_contrast(groups: Tensor, prototypes: Tensor, log_scale: Tensor, reject: float
                       ) -> Tensor:
    """Draw each group token to the prototype that it is matched with; a scalar.

    A cross-entropy over the prototypes for each group, and over the groups for each prototype.
    Pairs whose cosine, stretched to [0, 1] over all pairs of the photo, does not exceed `reject`
    do not count.

    Args:
        groups: group tokens (B, K, dim).
        prototypes: L2-normed, without gradient (B, K, dim), or of all photos (K, dim).
        log_scale: logarithm of the scale of the cosines.
        reject: least similarity of a pair, of the photo's range.
    """
    cosines = F.normalize(groups.float(), dim=-1) @ prototypes.mT
    match = best_matchings(cosines.detach())[..., None]
    matched = cosines.gather(2, match)
    low, high = (bound(cosines.detach().flatten(1), dim=1)[:, None, None]
                 for bound in (torch.amin, torch.amax))
    # A single group is all of its range, and is its own match.
    trusted = (matched.detach() - low > reject * (high - low)) | (high == low)
    logits = log_scale.exp().clamp_max(MAX_SCALE) * cosines
    own = logits.gather(2, match)
    of_groups = logits.logsumexp(dim=2, keepdim=True) - own
    of_prototypes = logits.logsumexp(dim=1)[..., None].gather(1, match) - own
    losses = (of_groups + of_prototypes) / 2
    return (losses * trusted).sum() / trusted.sum().clamp_min(1)
