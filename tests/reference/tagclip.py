"""TagCLIP (AAAI 2024), one patch and one class at a time, on open_clip's own tower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reference import clip_es

SCALE = 100.0
BLOCKS, VOTES, VOTES_OF = 3, 4, 12
SHARE = 0.5
CROP = 224


def lone_patches(visual: Any, pixels: Tensor) -> Tensor:
    """Embedding of each patch, the last block's attention being the identity: (n, dim), unit."""
    blocks = list(visual.transformer.resblocks)
    with torch.no_grad():
        x = clip_es.embed(visual, pixels)
        for block in blocks[:-1]:
            x = block(x)
        last, found = blocks[-1], []
        width = x.shape[-1]
        for token in x[0, 1:]:
            normed = last.ln_1(token)
            weight, bias = last.attn.in_proj_weight, last.attn.in_proj_bias
            value = weight[2 * width :] @ normed + bias[2 * width :]
            token = token + last.ls_1(last.attn.out_proj(value))
            token = token + last.ls_2(last.mlp(last.ln_2(token)))
            found.append(F.normalize(visual.ln_post(token) @ visual.proj, dim=0))
    return torch.stack(found)


def classify(vector: Tensor, rows: Tensor, owners: Sequence[int]) -> list[float]:
    """Probability of each class 1, 2, …: a softmax over all rows, those of a class added up."""
    powers = [math.exp(SCALE * float(vector @ row) - SCALE) for row in rows]
    return [sum(power for power, owner in zip(powers, owners, strict=True) if owner == index)
            / sum(powers) for index in range(1, max(owners) + 1)]


def attention(maps: Sequence[Tensor]) -> list[list[float]]:
    """Weights between patches: the mean of some blocks where enough blocks agree, rows sum to 1."""
    patches = [field[1:, 1:].double() for field in maps]
    means = [float(field.mean()) for field in patches]
    needed = math.ceil(VOTES * len(maps) / VOTES_OF)
    chosen = patches[max(len(maps) - 1 - BLOCKS, 0) : -1]
    rows = []
    for i in range(len(patches[0])):
        row = []
        for j in range(len(patches[0])):
            votes = sum(float(field[i, j]) > mean for field, mean in zip(patches, means,
                                                                        strict=True))
            weight = sum(float(field[i, j]) for field in chosen) / len(chosen)
            row.append(weight if votes >= needed else 0.0)
        rows.append([weight / max(sum(row), 1e-12) for weight in row])
    return rows


def refined(coarse: list[list[float]], weights: list[list[float]], grid: tuple[int, int],
            column: int) -> Tensor:
    """Map of a class (h, w) after both passes."""
    def spread(inside: Sequence[float]) -> list[float]:
        return [sum(weight * score[column] * part
                    for weight, score, part in zip(row, coarse, inside, strict=True))
                for row in weights]

    first = clip_es.min_max(torch.tensor(spread([1.0] * len(coarse))).view(grid))
    boxes = clip_es.boxes(first, float(first.mean()), exclusive=False)
    return torch.tensor(spread(boxes.flatten().tolist())).view(grid)


def scores(visual: Any, pixels: Tensor, rows: Tensor, owners: Sequence[int], crop: int = CROP
           ) -> list[float]:
    """Score of each class in a photo (1, 3, H, W); `crop` 0 leaves the second look out."""
    patch = visual.conv1.kernel_size[0]
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    coarse = [classify(vector, rows, owners) for vector in lone_patches(visual, pixels)]
    weights = attention(clip_es.attention_maps(visual, pixels))
    maps = [refined(coarse, weights, grid, column) for column in range(len(coarse[0]))]
    found = [float(field.max()) for field in maps]
    if not crop:
        return found
    low, high = min(found), max(found)
    once = list(found)
    for column, score in enumerate(once):
        if score < low + SHARE * (high - low):
            continue
        claimed = [(y, x) for y in range(grid[0]) for x in range(grid[1])
                   if float(clip_es.min_max(maps[column])[y, x]) > 0.5]
        rows_, columns = [y for y, _ in claimed], [x for _, x in claimed]
        cut = pixels[:, :, min(rows_) * patch : (max(rows_) + 1) * patch,
                     min(columns) * patch : (max(columns) + 1) * patch]
        with torch.no_grad():
            x = clip_es.embed(visual, clip_es.to_size(cut, (crop, crop)))
            x = visual.transformer(x)
            whole = F.normalize(visual.ln_post(x[0, 0]) @ visual.proj, dim=0)
        found[column] = (score + classify(whole, rows, owners)[column]) / 2
    return found


def tags(found: Sequence[float]) -> list[int]:
    """Classes 1, 2, … that are tags."""
    low, high = min(found), max(found)
    return [index for index, score in enumerate(found, 1) if score >= low + SHARE * (high - low)]
