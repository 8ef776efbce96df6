"""Assignment: the one-to-one matching of two sets of prototypes with the largest total similarity.

By shortest augmenting paths (the Hungarian method). It runs on the host in plain Python: sets of
prototypes are small, and scipy is no dependency.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def best_matching(similarity: Tensor) -> Tensor:
    """Return the column that is matched with each row, so that the sum of the matches is largest.

    Args:
        similarity: finite (n, n).

    Returns:
        a permutation (n,), on the device of the similarity.
    """
    cost = (-similarity.double()).tolist()
    row_price, column_price = [0.0] * len(cost), [0.0] * len(cost)
    owner = [-1] * len(cost)
    for row in range(len(cost)):
        _match_one_more(row, cost, row_price, column_price, owner)
    return torch.tensor(owner, dtype=torch.long, device=similarity.device).argsort()


def _match_one_more(start: int, cost: list[list[float]], row_price: list[float],
                    column_price: list[float], owner: list[int]) -> None:
    """Match row `start` along the shortest path to a column that has no owner yet.

    The length of a step is its cost less the prices of its row and its column; prices keep every
    length at 0 or above.
    """
    distance = [math.inf] * len(cost)
    before = [-1] * len(cost)
    free = set(range(len(cost)))
    row, reached, column = start, 0.0, -1
    while row >= 0:
        for other in free:
            length = reached + cost[row][other] - row_price[row] - column_price[other]
            if length < distance[other]:
                distance[other], before[other] = length, column
        column = min(free, key=distance.__getitem__)
        free.remove(column)
        row, reached = owner[column], distance[column]
    row_price[start] += reached
    for other in set(range(len(cost))) - free - {column}:
        row_price[owner[other]] += reached - distance[other]
        column_price[other] -= reached - distance[other]
    while column >= 0:
        previous = before[column]
        owner[column] = start if previous < 0 else owner[previous]
        column = previous
