"""The CRF on large photos: at a bounded size, and what memory it takes.

A photo of 12 megapixels costs minutes and gigabytes, and its CAMs have a value for 16×16 pixels.
The deviations stay what they are in pixels: the CRF does what it does to a photo of the smaller
size.
"""

from __future__ import annotations

from typing import TypeAlias

from vpltool.core.classes import label_type
from vpltool.core.crf import Field, to_labels
from vpltool.lazy import F, Image, np, npt, torch

Pixels: TypeAlias = "npt.NDArray[np.uint8]"


def bounded_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Size (height, width) at which the CRF runs: no side longer than `max_side`; 0: any.

    The scores are brought to this size, the photo by `shrink_photo`, labels by `shrink_labels`;
    `labels_at` takes the marginals back to the photo's own.
    """
    if not max_side or max(size) <= max_side:
        return size
    height, width = (max(1, round(side * max_side / max(size))) for side in size)
    return height, width


def shrink_photo(photo: Pixels, size: tuple[int, int]) -> Pixels:
    """Scale RGB (H, W, 3) down to `size`, each pixel a mean; as it is if it has that size.

    Before `wrap_image`: wrapped colours have no mean.
    """
    return _resize(photo, size, Image.Resampling.BILINEAR)


def shrink_labels(labels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize labels (H, W) to `size` by nearest neighbour."""
    return _resize(labels, size, Image.Resampling.NEAREST)


def _resize(image: Pixels, size: tuple[int, int], method: Image.Resampling) -> Pixels:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), method)).copy()


def labels_at(marginals: Field, classes: npt.NDArray[np.int64], size: tuple[int, int],
              confidence: float = 0.0) -> Pixels:
    """Labels of marginals that are scaled up, bilinear; `to_labels` if they have that size.

    Args:
        marginals: (L, h, w).
        classes: class index of each label (L,).
        size: the photo's (H, W).
        confidence: pixels less sure than this become 255; 0 keeps every pixel.

    Returns:
        (H, W).
    """
    if marginals.shape[1:] == size:
        return to_labels(marginals, classes, confidence)
    # Class by class: all of them at the size of a large photo take gigabytes.
    best = np.full(size, -1, np.float32)
    labels = np.zeros(size, label_type(int(classes.max(initial=0))))
    for field, label in zip(torch.from_numpy(marginals), classes.tolist(), strict=True):
        full = F.interpolate(field[None, None], size=size, mode="bilinear",
                             align_corners=False)[0, 0].numpy()
        np.putmask(labels, full > best, label)
        best = np.maximum(best, full)
    if confidence:
        labels[best < confidence] = 255
    return labels


def estimate_bytes(size: tuple[int, int], labels: int, backend: str) -> int:
    """Memory that the CRF takes for a photo of ordinary grain, in bytes, beyond its inputs.

    Measured with CLIP-ES's kernels. The lattice grows with the number of colours: a smooth photo
    takes a third less, a noisy one a third more.

    Args:
        size: (height, width).
        labels: number of labels.
        backend: `numba` or `pydensecrf`, for each process; `torch`, for each photo of a batch.
    """
    # The peak is either the making of the lattice or the filtering of the labels.
    least, fixed, each = {"pydensecrf": (0, 350, 60), "numba": (470, 200, 55),
                          "torch": (1300, 300, 90)}[backend]
    return size[0] * size[1] * max(least, fixed + each * labels)
