"""Expectation-maximisation of prototypes, and their one-to-one matching (PGSeg, NeurIPS 2023)."""

from __future__ import annotations

from vpltool.lazy import F, Tensor, no_grad, scipy, torch


def em_prototypes(pixels: Tensor, start: Tensor, *, tau: float, rounds: int) -> Tensor:
    """Estimate prototypes of pixels: z = softmax(x μᵀ / τ) over the prototypes, μ = L2(zᵀ x).

    Args:
        pixels: x (..., n, dim); each set of n on its own.
        start: μ before the first round, L2-normed (K, dim), or of each set (..., K, dim).
        tau: τ.
        rounds: T.

    Returns:
        L2-normed (..., K, dim), float32.
    """
    pixels, prototypes = pixels.float(), start.float()
    for _ in range(rounds):
        share = (pixels @ prototypes.mT / tau).softmax(dim=-1)
        # PGSeg divides z by its sum over the pixels: that changes the length of zᵀ x only.
        prototypes = F.normalize(share.mT @ pixels, dim=-1)
    return prototypes


@no_grad
def best_matchings(similarity: Tensor) -> Tensor:
    """Return the column matched with each row, so that the matches of a problem sum to the most.

    Args:
        similarity: finite (B, n, n).

    Returns:
        permutations (B, n), on the device of the similarity.
    """
    columns = [torch.from_numpy(scipy.optimize.linear_sum_assignment(problem, maximize=True)[1])
               for problem in similarity.cpu().double().numpy()]
    return torch.stack(columns).to(similarity.device)
