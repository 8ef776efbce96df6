"""PGSeg (NeurIPS 2023), its non-learnable prototypes: EM, moving average, matching, rejection.

In loops over pixels and prototypes. Where the released code departs from the paper, this is the
paper: the average runs, and the rejection reads the matched pair.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from reference.vectors import Array, dot, unit

T = 10
MOMENTUM = 0.9
REJECT = 0.1


def em(pixels: Array, start: Array, tau: float, rounds: int = T) -> Array:
    """μ after the last round (K, D); pixels are unit rows (n, D)."""
    mu = [row.copy() for row in start]
    for _ in range(rounds):
        z = np.zeros((len(pixels), len(mu)))
        for i, x in enumerate(pixels):
            heat = [math.exp(dot(x, row) / tau) for row in mu]
            z[i] = [value / sum(heat) for value in heat]
        for k in range(len(mu)):
            # Columns sum to 1 over the pixels.
            column = z[:, k] / z[:, k].sum()
            mu[k] = unit(sum(column[i] * x for i, x in enumerate(pixels)))
    return np.stack(mu)


def matching(similarity: Array) -> tuple[int, ...]:
    """The column of each row: the permutation of the largest sum, by trying all."""
    count = len(similarity)
    return max(itertools.permutations(range(count)),
               key=lambda order: sum(similarity[i, j] for i, j in enumerate(order)))


def update(old: Array, new: Array, momentum: float = MOMENTUM, reject: float = REJECT) -> Array:
    """One step of the moving average, each prototype with its match, unless that is rejected."""
    similarity = np.array([[dot(a, b) for b in new] for a in old])
    low, high = similarity.min(), similarity.max()
    moved = []
    for k, other in enumerate(matching(similarity)):
        own = math.inf if high == low else (similarity[k, other] - low) / (high - low)
        moved.append(unit(momentum * old[k] + (1 - momentum) * new[other]) if own > reject
                     else old[k])
    return np.stack(moved)


def prototypes(pixels: Array, photo_of: list[int], start: Array, tau: float, batch: int,
               passes: int, rounds: int = T) -> Array:
    """All photos in their order, `batch` at a time (K, D)."""
    mu = start
    photos = sorted(set(photo_of))
    for _ in range(passes):
        for begin in range(0, len(photos), batch):
            chosen = photos[begin : begin + batch]
            part = np.stack([pixels[i] for photo in chosen for i in range(len(pixels))
                             if photo_of[i] == photo])
            mu = update(mu, em(part, mu, tau, rounds))
    return mu


def hungarian(similarity: Array) -> list[int]:
    """The column of each row of the largest sum, for larger sets than `matching` can try.

    Augmenting paths by Bellman and Ford: each row in turn takes the column that raises the sum
    most, over all chains of rows that would have to move.
    """
    count = len(similarity)
    owner = [-1] * count
    for start in range(count):
        gain = [similarity[start, j] for j in range(count)]
        before: list[int | None] = [None] * count
        for _ in range(count):
            for j in range(count):
                if owner[j] < 0:
                    continue
                for k in range(count):
                    moved = gain[j] - similarity[owner[j], j] + similarity[owner[j], k]
                    if moved > gain[k] + 1e-12:
                        gain[k], before[k] = moved, j
        column = max((j for j in range(count) if owner[j] < 0), key=lambda j: gain[j])
        while (last := before[column]) is not None:
            owner[column] = owner[last]
            column = last
        owner[column] = start
    return [owner.index(row) for row in range(count)]


def contrast_with_prototypes(groups: Array, mu: Array, scale: float, reject: float = REJECT
                             ) -> float:
    """The contrast of groups with the prototypes that they are matched with.

    Args:
        groups: group tokens of each photo (B, K, D).
        mu: unit prototypes of each photo (B, K, D).
        scale: of the cosines.
        reject: least similarity of a pair, of the range in its photo.
    """
    losses = []
    for tokens, prototypes in zip(groups, mu, strict=True):
        count = len(tokens)
        cos = np.array([[dot(unit(g), p) for p in prototypes] for g in tokens])
        low, high = cos.min(), cos.max()
        for g, p in enumerate(hungarian(cos)):
            if high > low and (cos[g, p] - low) / (high - low) <= reject:
                continue
            own = math.exp(scale * cos[g, p])
            of_group = sum(math.exp(scale * cos[g, k]) for k in range(count))
            of_prototype = sum(math.exp(scale * cos[k, p]) for k in range(count))
            losses.append((-math.log(own / of_group) - math.log(own / of_prototype)) / 2)
    return sum(losses) / max(len(losses), 1)


def rebuilt(tokens: Array, mu: Array, tau: float) -> Array:
    """What prototypes say of the tokens of a photo (N, D), before the MLP."""
    heat = np.array([[math.exp(dot(x, row) / tau) for row in mu] for x in tokens])
    z = np.array([row / row.sum() for row in heat])
    z = z / z.sum(axis=0)
    return np.array([sum(z[i, k] * mu[k] for k in range(len(mu))) for i in range(len(tokens))])


def pair_contrast(photos: Array, captions: Array, scale: float) -> float:
    """CLIP's symmetric cross-entropy over unit rows (B, D), pair by pair."""
    count, total = len(photos), 0.0
    for i in range(count):
        own = scale * dot(photos[i], captions[i])
        total += math.log(sum(math.exp(scale * dot(photos[i], captions[j]))
                              for j in range(count))) - own
        total += math.log(sum(math.exp(scale * dot(photos[j], captions[i]))
                              for j in range(count))) - own
    return total / (2 * count)


def merged(groups: Array, patches: Array, logits: Array, values: Array) -> Array:
    """Groups with the sum of the values of their patches, over 1 more than their number (G, D)."""
    out = groups.copy()
    owner = [max(range(len(groups)), key=lambda g: logits[g, n]) for n in range(len(patches))]
    for g in range(len(groups)):
        mine = [values[n] for n in range(len(patches)) if owner[n] == g]
        if mine:
            out[g] = groups[g] + sum(mine) / (len(mine) + 1)
    return out


def group_names(groups: Array, photo: Array, texts: Array, scale: float, top: int) -> Array:
    """How likely each group is each class (G, C)."""
    order = sorted(range(len(texts)), key=lambda c: -dot(photo, texts[c]))[:top]
    out = np.zeros((len(groups), len(texts)))
    for g, group in enumerate(groups):
        heat = [math.exp(scale * dot(group, text)) for text in texts]
        for c in order:
            out[g, c] = heat[c] / sum(heat[k] for k in order) * heat[c] / sum(heat)
    return out
