"""Validation of tensors' values: finite, of a photo's own grid, and of known classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vpltool.errors import VplError
from vpltool.formats.kinds import FEATURE_TENSORS, IGNORE, KINDS, MOST_CLASSES
from vpltool.lazy import np, npt, torch

_NEVER_ZERO = {"features": FEATURE_TENSORS, "prototypes": ("prototypes",)}
"""Tensors of a kind that hold something else than zeros, unless a disk has lost them."""

_CLASSES = ("classes", "class_index")

_PATCHES = {"tokens": (0, 16), "patches": (0, 0), "attention": (0, 0), "attentions": (1, 0),
            "layers": (1, 0)}
"""Tensors of features: which of their axes is that of patches, and how many others may be there."""


class BadValues(VplError):
    """Numbers that a file of its kind cannot hold: where they are, and what is wrong with them."""

    # With the message alone, as from another process, it is an error, too.
    def __init__(self, where: str, reason: str = "", hint: str = "") -> None:
        super().__init__(": ".join(filter(None, (where, reason))), hint)
        self.reason = reason or where


def check_values(kind: str, tensors: Mapping[str, torch.Tensor], where: str, hint: str = "",
                 labels: int = MOST_CLASSES + 1) -> None:
    """Check tensors, some or all of a file of a kind, that are written or were read.

    Classes are below `labels`, the number of labels with the background. `where` is the file.

    Raises:
        BadValues: they are not finite, or no such classes, or all zero where that cannot be.
    """
    for name, tensor in tensors.items():
        try:
            reason = _fault(kind, name, tensor, labels)
        except RuntimeError:
            # Some of torch's types can only be stored.
            reason = f"has the type {tensor.dtype}, which vpltool does not write"
        if reason:
            raise BadValues(where, f"`{name}` {reason}", hint)
    if kind == "features" and "grid" in tensors:
        height, width = tensors["grid"].tolist()
        for name, (axis, more) in _PATCHES.items():
            if name in tensors and (
                    min(height, width) < 1
                    or not 0 <= tensors[name].shape[axis] - height * width <= more):
                raise BadValues(where, f"`{name}` is not of a grid of {height}×{width} patches",
                                hint)


def form_of(shapes: Mapping[str, Sequence[int]], patches: int) -> dict[str, tuple[int, ...]]:
    """Return what the features of all photos of a folder have in common, by tensor.

    These are the lengths of all axes but that of patches; of tokens, how many are not patches.
    Where the number of the photo's patches is not known, 0, tokens are left out.
    """
    specs = KINDS["features"].tensors
    return {name: tuple(length - patches if axis == "tokens" else length
                        for axis, length in zip(specs[name].axes, shape, strict=True)
                        if axis != "patches")
            for name, shape in shapes.items()
            if name in _PATCHES and (patches or name != "tokens")}


def check_form(tensors: Mapping[str, torch.Tensor], usual: Mapping[str, tuple[int, ...]],
               where: str, hint: str) -> None:
    """Check that a photo's features are of the form of the others; see `form_of`.

    Raises:
        BadValues: they are not.
    """
    patches = int(tensors["grid"].prod()) if "grid" in tensors else 0
    found = form_of({name: tensor.shape for name, tensor in tensors.items()}, patches)
    for name, form in found.items():
        if usual.get(name, form) != form:
            sizes = "×".join(map(str, tensors[name].shape))
            raise BadValues(where, f"`{name}` has the size {sizes}, "
                            f"{f'with {patches} patches, ' if patches else ''}which does not fit "
                            "the other photos", hint)


def _fault(kind: str, name: str, tensor: torch.Tensor, labels: int) -> str:
    """What is wrong with a tensor; empty if nothing is."""
    if not tensor.numel() or tensor.dtype == torch.bool or tensor.is_complex():
        return ""
    if not tensor.is_floating_point():
        if name in _CLASSES and not 0 <= int(tensor.min()) <= int(tensor.max()) < labels:
            return f"names a class that is not among the {labels - 1}"
        return ""
    # One pass, and NaN comes out of it; `isfinite` takes ten times as long.
    low, high = (float(end) for end in torch.aminmax(tensor.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "holds NaN or infinity"
    return ("holds nothing but zeros" if low == high == 0 and name in _NEVER_ZERO.get(kind, ())
            else "")


def check_labels(labels: npt.NDArray[np.uint8], count: int) -> None:
    """Check that labels are below `count`, the background included, or 255; 0: any will do.

    Raises:
        BadValues: one is not.
    """
    if count and bool(((labels >= count) & (labels != IGNORE)).any()):
        raise BadValues("", f"a pixel is of a class that is not among the {count - 1}")
