"""Small regions dropped or merged, by the rule written out: each is flooded pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np

Place = tuple[int, int]

SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))
AROUND = (*SIDES, (-1, -1), (-1, 1), (1, -1), (1, 1))


def flood(labels: Any, start: Place) -> set[Place]:
    """Pixels of one label that are connected: by corners too, but the background by sides alone."""
    region, queue = {start}, [start]
    while queue:
        row, column = queue.pop()
        for down, right in AROUND if labels[start] else SIDES:
            place = (row + down, column + right)
            if (place not in region and is_inside(labels, place)
                    and labels[place] == labels[start]):
                region.add(place)
                queue.append(place)
    return region


def is_inside(labels: Any, place: Place) -> bool:
    return 0 <= place[0] < labels.shape[0] and 0 <= place[1] < labels.shape[1]


def small_regions(labels: Any, least: int, *, merge: bool) -> list[set[Place]]:
    """Those of fewer pixels, the smallest first, those of a lower label first among equals."""
    found, seen = [], set[Place]()
    for start in sorted(np.ndindex(labels.shape), key=lambda place: int(labels[place])):
        if start not in seen:
            region = flood(labels, start)
            seen |= region
            if len(region) < least and labels[start] != 255 and (labels[start] or merge):
                found.append(region)
    return sorted(found, key=len)


def without_small_regions(labels: Any, least: int, *, merge: bool) -> Any:
    made = labels.copy()
    for region in small_regions(labels, least, merge=merge):
        ring = {(row + down, column + right) for row, column in region for down, right in AROUND}
        votes = sorted(int(made[place]) for place in ring - region
                       if is_inside(labels, place) and made[place] != 255)
        own = int(made[next(iter(region))])
        chosen = (max(sorted(set(votes)), key=votes.count) if votes else own) if merge else 0
        for place in region:
            made[place] = chosen
    return made
