"""Assignment: the one-to-one matching of two sets of prototypes with the largest total similarity.

By shortest augmenting paths (the Hungarian method). On a GPU all problems take their steps
together, without a way over the host; on a CPU scipy, where it is installed, does one after the
other sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def best_matching(similarity: Tensor) -> Tensor:
    """Return the column that is matched with each row, so that the sum of the matches is largest.

    Args:
        similarity: finite (n, n).

    Returns:
        a permutation (n,), on the device of the similarity.
    """
    return best_matchings(similarity[None])[0]


@torch.no_grad()
def best_matchings(similarity: Tensor) -> Tensor:
    """Return `best_matching` of each of many problems (B, n, n): (B, n)."""
    solve = _scipy_solver() if similarity.device.type == "cpu" else None
    if solve is None:
        return _by_augmenting_paths(-similarity.double())
    return torch.stack([torch.from_numpy(solve(problem, maximize=True)[1])
                        for problem in similarity.double().numpy()])


def _scipy_solver() -> Any:
    """scipy's solver of one problem; None where scipy is not installed."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        return None
    return linear_sum_assignment


@dataclass
class _Matching:
    """Prices, which keep every cost less its two prices at 0 or above, and the pairs so far.

    Args:
        row_price: (B, n).
        column_price: (B, n).
        column_of: column of each row, -1: none (B, n).
        row_of: row of each column, -1: none (B, n).
    """

    row_price: Tensor
    column_price: Tensor
    column_of: Tensor
    row_of: Tensor


def _by_augmenting_paths(cost: Tensor) -> Tensor:
    matching = _first_matching(cost)
    while bool((matching.column_of < 0).any()):
        _match_next_row(cost, matching)
    return matching.column_of


def _first_matching(cost: Tensor) -> _Matching:
    """Lower each row and column to 0, and match rows whose nearest column no earlier row wants."""
    count = cost.shape[1]
    column_price = cost.amin(dim=1)
    row_price, wanted = (cost - column_price[:, None]).min(dim=2)
    rows = torch.arange(count, device=cost.device).expand_as(wanted)
    row_of = torch.full_like(wanted, count).scatter_reduce(1, wanted, rows, "amin")
    first = row_of.gather(1, wanted) == rows
    return _Matching(row_price, column_price, torch.where(first, wanted, -1),
                     torch.where(row_of < count, row_of, -1))


def _match_next_row(cost: Tensor, matching: _Matching) -> None:
    """Match one more row of each unsolved problem, along the shortest augmenting path.

    The length of a step is its cost less both prices. A problem that is solved, or whose path is
    found, is done: it waits for the others.
    """
    batch, count = cost.shape[:2]
    every = torch.arange(batch, device=cost.device)
    start = (matching.column_of < 0).int().argmax(dim=1)
    done = (matching.column_of >= 0).all(dim=1)
    solved = done.clone()
    distance = cost.new_full((batch, count), torch.inf)
    before = torch.zeros_like(matching.row_of)
    seen = torch.zeros_like(before, dtype=torch.bool)
    row, reached = start.clone(), cost.new_zeros(batch)
    column = torch.zeros_like(row)
    while not bool(done.all()):
        length = (reached - matching.row_price[every, row])[:, None] + cost[every, row]
        length -= matching.column_price
        nearer = (length < distance) & ~seen & ~done[:, None]
        distance = torch.where(nearer, length, distance)
        before = torch.where(nearer, row[:, None], before)
        least, nearest = distance.masked_fill(seen, torch.inf).min(dim=1)
        column = torch.where(done, column, nearest)
        reached = torch.where(done, reached, least)
        owner = matching.row_of[every, column]
        # The last column of a path is not seen: its price stays.
        done = done | (owner < 0)
        seen[every, column] |= ~done
        row = torch.where(done, row, owner)
    _raise_prices(matching, start, seen, (reached[:, None] - distance), reached, solved)
    _augment(matching, start, column, before, solved)


def _raise_prices(matching: _Matching, start: Tensor, seen: Tensor, gain: Tensor, reached: Tensor,
                  solved: Tensor) -> None:
    """Change the prices so that the new path costs nothing, and nothing else costs less than 0."""
    gain = torch.where(seen & ~solved[:, None], gain, 0.0)
    matching.column_price -= gain
    owners = matching.row_of.clamp_min(0)
    matching.row_price.scatter_add_(1, owners, gain)
    matching.row_price.scatter_add_(1, start[:, None],
                                    torch.where(solved, 0.0, reached)[:, None])


def _augment(matching: _Matching, start: Tensor, column: Tensor, before: Tensor, solved: Tensor
               ) -> None:
    """Match each row of the path with the column after it."""
    every = torch.arange(len(start), device=start.device)
    going = ~solved
    while bool(going.any()):
        row = before[every, column]
        free = matching.column_of[every, row]
        # Problems that are through write what is there already.
        matching.column_of[every, row] = torch.where(going, column, free)
        held = matching.row_of[every, column]
        matching.row_of[every, column] = torch.where(going, row, held)
        going = going & (row != start)
        column = torch.where(going, free, column)
