"""CLIP Surgery's similarity: maps without what all classes have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vpltool.core.gradcam import min_max


def surgery_scores(patches: Tensor, photo: Tensor, prototypes: Tensor, *, scale: float = 2.0
                   ) -> Tensor:
    """Return the score of each row at each patch, less the mean over the rows.

    With w = softmax(scale · photo·t) / its mean, channel c of patch x has the value x_c t_c w for
    row t, and the mean of all rows is what they share. Summed over the channels, that is x·t w less
    its mean over the rows: the channels need not be formed.

    Args:
        patches: (B, n, dim).
        photo: vector of each photo (B, dim).
        prototypes: rows of classes and background (rows, dim).
        scale: of the softmax.

    Returns:
        (B, n, rows).
    """
    weights = (scale * photo @ prototypes.T).softmax(dim=-1) * len(prototypes)
    scores = (patches @ prototypes.T) * weights[:, None]
    return scores - scores.mean(dim=-1, keepdim=True)


def by_channel(patches: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each channel by its norm over the photo's tokens, the photo's own vector included.

    Args:
        patches: (B, n, dim).
        photo: (B, dim).

    Returns:
        both, divided.
    """
    norm = torch.cat([photo[:, None], patches], dim=1).norm(dim=1).clamp_min(1e-12)
    return patches / norm[:, None], photo / norm


@torch.no_grad()
def surgery_cam(patches: Tensor, photo: Tensor, grid: tuple[int, int], prototypes: Tensor,
                class_index: Tensor, present: Sequence[Tensor], *, scale: float = 2.0,
                normalise: str = "patch") -> list[Tensor]:
    """Return the map of every present class: its best row's score, from 0 to 1 in the photo.

    Args:
        patches: L2-normed patch embeddings (B, h·w, dim).
        photo: L2-normed vector of each photo (B, dim).
        grid: (h, w).
        prototypes: L2-normed rows (rows, dim); all take part, whatever the photo shows.
        class_index: class of each row (rows,), 0 is the background.
        present: class indices of each photo, one tensor (K_i,) a photo.
        scale: see `surgery_scores`.
        normalise: `patch`, the embeddings as they are; `channel`, see `by_channel`.

    Returns:
        for each photo a map per class (K_i, h, w) in [0, 1], float32; a class without rows has
        zeros.
    """
    patches, photo = patches.float(), photo.float()
    if normalise == "channel":
        patches, photo = by_channel(patches, photo)
    scores = surgery_scores(patches, photo, prototypes.to(patches), scale=scale)
    rows_of: dict[int, list[int]] = {}
    for row, index in enumerate(class_index.tolist()):
        rows_of.setdefault(index, []).append(row)
    maps = []
    for own, classes in zip(scores, present, strict=True):
        best = own.new_zeros(len(classes), len(own))
        for number, index in enumerate(classes.tolist()):
            if index in rows_of:
                best[number] = own[:, rows_of[index]].amax(dim=-1)
        maps.append(min_max(best.view(-1, *grid)))
    return maps
