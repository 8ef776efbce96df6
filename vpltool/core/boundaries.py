"""How well predicted boundaries lie on true ones: precision, recall and F, by counts."""

from __future__ import annotations

from typing import TypeAlias

from vpltool.lazy import np, npt

Labels: TypeAlias = "npt.NDArray[np.uint8]"
Mask: TypeAlias = "npt.NDArray[np.bool_]"
Counts: TypeAlias = "npt.NDArray[np.int64]"


def boundary_counts(truth: Labels, predicted: Labels, classes: int, tolerance: float,
                    ignore: int = 255) -> Counts:
    """Count the boundary pixels of each class, and those of them that have a partner.

    A pixel is on a class's boundary if it is of the class and one of its four neighbours is not.
    Its partner is a boundary pixel of the other labels within the tolerance (Csurka et al., BMVC
    2013). Predicted boundaries without partner where the truth says nothing are not counted.

    Args:
        truth: true labels (H, W).
        predicted: predicted labels (H, W); 255 counts as background.
        classes: number of classes, the background included.
        tolerance: as a share of the photo's diagonal.
        ignore: true label of pixels that are not scored.

    Returns:
        (classes, 4): predicted pixels with partner and all, true pixels with partner and all. The
        background, whose boundaries are those of the classes, has none.
    """
    reach = tolerance * float(np.hypot(*truth.shape))
    unknown = truth == ignore
    counts = np.zeros((classes, 4), np.int64)
    for label in np.union1d(np.unique(truth), np.unique(predicted)).tolist():
        if not 0 < label < classes or label == ignore:
            continue
        said, true = _boundary(predicted == label), _boundary(truth == label)
        found, met = said & _near(true, reach), true & _near(said, reach)
        counts[label] = (found.sum(), (found | (said & ~unknown)).sum(), met.sum(), true.sum())
    return counts


def boundary_f(counts: Counts) -> float:
    """Mean F over the classes that the truth shows: 2 · P · R / (P + R); NaN if there is none."""
    shown = counts[counts[:, 3] > 0].astype(np.float64)
    precision = shown[:, 0] / np.maximum(shown[:, 1], 1)
    recall = shown[:, 2] / shown[:, 3]
    both = precision + recall
    values = np.where(both > 0, 2 * precision * recall / np.maximum(both, 1e-12), 0.0)
    return float(values.mean()) if len(values) else float("nan")


def _boundary(inside: Mask) -> Mask:
    """Pixels of a mask (H, W) with a neighbour outside; the photo's border is none."""
    edge = np.zeros_like(inside)
    for axis in (0, 1):
        first, second = np.moveaxis(inside, axis, 0)[:-1], np.moveaxis(inside, axis, 0)[1:]
        along = np.moveaxis(edge, axis, 0)
        along[:-1] |= first & ~second
        along[1:] |= second & ~first
    return edge


def _near(edge: Mask, reach: float) -> Mask:
    """Pixels within a distance of an edge (H, W)."""
    from scipy import ndimage

    if not edge.any():
        return np.zeros_like(edge)
    return np.asarray(ndimage.distance_transform_edt(~edge) <= reach)
