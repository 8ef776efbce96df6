"""Seeds: the pixels that CAMs are sure of; their regions, targets and weights.

One reading of VPL's Φ (and of m in eq. 9): pixels at which the CAM of a class reaches Φ belong to
it.
"""

from __future__ import annotations

from vpltool.core.classes import BACKGROUND
from vpltool.core.distributed import ALONE, Group
from vpltool.lazy import F, Tensor, torch

UNSURE = -1
"""Label of pixels that are seeds of neither a class nor the background."""


def seed_labels(cam: Tensor, classes: Tensor, phi: float, phi_background: float) -> Tensor:
    """Label the patches of a photo: the strongest class if its CAM ≥ Φ, background if all are low.

    Args:
        cam: maps in [0, 1] (K, h, w).
        classes: their class indices (K,).
        phi: Φ.
        phi_background: patches whose strongest CAM is lower are background.

    Returns:
        (h·w,): class index, 0 for the background, -1 for neither.
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
    """Weigh the patches of a photo for each of its regions: classes, then the background.

    Args:
        cam: maps in [0, 1] (K, h, w).
        classes: their class indices (K,).
        phi: a patch weighs for a class what its CAM is, where this is at least Φ.
        phi_background: it weighs 1 − max CAM for the background, where max CAM is at most this;
            None: the background is no region.

    Returns:
        weights (R, h·w), float32, 0 where a patch does not count; and the classes (R,).
    """
    own = cam.flatten(1).float()
    weights, labels = own.where(own >= phi, 0), classes
    if phi_background is not None:
        most = own.amax(dim=0, keepdim=True) if len(own) else own.new_zeros(1, own.shape[1])
        weights = torch.cat([weights, (1 - most).where(most <= phi_background, 0)])
        labels = torch.cat([classes, classes.new_zeros(1)])
    return weights, labels


def region_features(patches: Tensor, cam: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean feature of each class of a photo under its CAM; of the rest under 1 − max.

    Args:
        patches: L2-normed (h·w, dim).
        cam: (K, h, w).
        classes: (K,).

    Returns:
        L2-normed features (K + 1, dim) and their labels (K + 1,), the background last.
    """
    weights = cam.flatten(1).float()
    rest = 1 - weights.amax(dim=0, keepdim=True) if len(cam) else patches.new_ones(1, len(patches))
    weights = torch.cat([weights, rest])
    labels = torch.cat([classes, classes.new_zeros(1)])
    return F.normalize(weights @ patches.float(), dim=-1), labels


def seed_targets(pixels: Tensor, labels: Tensor, prototypes: Tensor, class_index: Tensor) -> Tensor:
    """Return one-hot targets: for each pixel, the nearest row among those of its class.

    Args:
        pixels: L2-normed (N, dim).
        labels: class of each pixel (N,), none of them unsure.
        prototypes: rows (rows, dim).
        class_index: class of each row (rows,).

    Returns:
        (N, rows).
    """
    nearest = torch.empty(len(pixels), dtype=torch.long, device=pixels.device)
    for index in labels.unique().tolist():
        rows = (class_index == index).nonzero()[:, 0]
        members = labels == index
        nearest[members] = rows[(pixels[members].float() @ prototypes[rows].T).argmax(dim=-1)]
    return F.one_hot(nearest, len(class_index)).float()


def balancing_weights(labels: Tensor, highest: int = 0, group: Group = ALONE) -> Tensor:
    """Return weights (N,), mean 1, that give every label the same total.

    Args:
        labels: of this process's pixels, from -1 on (N,).
        highest: the highest label that a pixel of any process may have; of one process 0 will do.
        group: processes whose pixels are weighed together.
    """
    counts = group.total(torch.bincount(labels + 1, minlength=highest + 2))
    return (int(counts.sum()) / (int((counts > 0).sum()) * counts.float()))[labels + 1]
