"""Seeds, the confident pixels of CAMs: their regions, targets and weights; nearest neighbours.

One reading of VPL's Φ (and of m in eq. 9): pixels at which the CAM of a class reaches Φ belong to
it. A bank of neighbours holds a row for each region or patch of many photos, with its class and its
photo. A photo is compared with rows of other photos only: it would find itself first.
"""

from __future__ import annotations

from vpltool.core.classes import BACKGROUND
from vpltool.core.distributed import ALONE, Group
from vpltool.lazy import F, Tensor, torch

UNSURE = -1
"""Label of pixels that are seeds of neither a class nor the background."""

_ENTRIES = 1 << 22
"""Cosines that are held at a time: a bank may have millions of rows."""


def seed_labels(cam: Tensor, classes: Tensor, phi: float, phi_background: float) -> Tensor:
    """Label the patches of a photo (h·w,): the strongest class if its CAM ≥ Φ; -1 if unsure.

    Patches whose strongest CAM is below `phi_background` are background, 0. CAMs are in [0, 1]
    (K, h, w), of classes (K,).
    """
    if not len(cam):
        return torch.zeros(cam.shape[1] * cam.shape[2], dtype=torch.long)
    strongest, index = cam.flatten(1).float().max(dim=0)
    labels = classes[index].clone()
    labels[strongest < phi] = UNSURE
    labels[strongest < phi_background] = BACKGROUND
    return labels


def region_weights(cam: Tensor, classes: Tensor, phi: float, phi_background: float | None
                   ) -> tuple[Tensor, Tensor]:
    """Return patch weights (R, h·w), float32, for each region of a photo, and their classes (R,).

    The regions are those of the classes, then the background. A patch's weight is its CAM in [0, 1]
    (K, h, w) if this is at least Φ, else 0; for the background it is 1 − max CAM if max CAM is at
    most `phi_background` (None: the background is no region).
    """
    own = cam.flatten(1).float()
    weights, labels = own.where(own >= phi, 0), classes
    if phi_background is not None:
        most = own.amax(dim=0, keepdim=True) if len(own) else own.new_zeros(1, own.shape[1])
        weights = torch.cat([weights, (1 - most).where(most <= phi_background, 0)])
        labels = torch.cat([classes, classes.new_zeros(1)])
    return weights, labels


def region_features(patches: Tensor, cam: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return each class's mean feature under its CAM, and the background's under 1 − max CAM.

    Patches are L2-normed (h·w, dim), CAMs (K, h, w), classes (K,). Features are L2-normed (K + 1,
    dim), the background last; with their labels (K + 1,).
    """
    weights, labels = region_weights(cam, classes, -torch.inf, torch.inf)
    return F.normalize(weights @ patches.float(), dim=-1), labels


def seed_targets(pixels: Tensor, labels: Tensor, prototypes: Tensor, class_index: Tensor) -> Tensor:
    """Return one-hot targets (N, rows): for each pixel, the nearest row among those of its class.

    Pixels are L2-normed (N, dim), with labels (N,), none of them unsure; prototypes (rows, dim)
    have classes (rows,).
    """
    nearest = torch.empty(len(pixels), dtype=torch.long, device=pixels.device)
    for index in labels.unique().tolist():
        rows = (class_index == index).nonzero()[:, 0]
        members = labels == index
        nearest[members] = rows[(pixels[members].float() @ prototypes[rows].T).argmax(dim=-1)]
    return F.one_hot(nearest, len(class_index)).float()


def balancing_weights(labels: Tensor, highest: int = 0, group: Group = ALONE) -> Tensor:
    """Return weights (N,), mean 1, that give every label the same total over a group's pixels.

    Labels (N,) are those of this process, from -1 on; `highest` is the highest label in any process
    (of one alone, 0 will do).
    """
    counts = group.total(torch.bincount(labels + 1, minlength=highest + 2))
    return (int(counts.sum()) / (int((counts > 0).sum()) * counts.float()))[labels + 1]


def rows_of_others(class_index: Tensor, photo_of: Tensor, tags: Tensor, own: int) -> Tensor:
    """Mark the rows (rows,) of a photo's tags (K,) and the background that are of other photos.

    Rows have classes (rows,) and numbers of photos (rows,), below 0 for none: these are never
    marked. `own` is the number of the photo itself, -1 if the bank does not know it.
    """
    tagged = torch.isin(class_index, tags.to(class_index)) | (class_index == BACKGROUND)
    return tagged & (photo_of >= 0) & (photo_of != own)


def nearest_rows(queries: Tensor, bank: Tensor, allowed: Tensor, count: int
                 ) -> tuple[Tensor, Tensor]:
    """Return the k largest cosines (n, k), descending, float32, and the indices of their rows.

    Queries (n, dim) and rows (rows, dim) are L2-normed; `allowed` are indices of the rows that may
    be found, and if there are fewer than k, so are the results. The bank is read part by part, so
    memory does not grow with it.
    """
    queries = queries.float()
    best, rows = queries.new_empty(len(queries), 0), allowed.new_empty(len(queries), 0)
    for part in allowed.split(max(1, _ENTRIES // max(*queries.shape, 1))):
        cosines = queries @ bank[part].float().T
        near, index = cosines.topk(min(count, len(part)), dim=-1)
        best, rows = torch.cat([best, near], dim=-1), torch.cat([rows, part[index]], dim=-1)
        best, index = best.topk(min(count, best.shape[1]), dim=-1)
        rows = rows.gather(1, index)
    return best, rows
