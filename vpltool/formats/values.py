"""Validation of tensor values: finite, consistent with the photo's grid, and of known classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vpltool.errors import VplError
from vpltool.formats.kinds import FEATURE_TENSORS, IGNORE, KINDS, MOST_CLASSES
from vpltool.lazy import np, npt, torch

_NEVER_ZERO = {"features": FEATURE_TENSORS, "prototypes": ("prototypes",)}
"""Tensors by kind that are never all zero, unless the disk lost their content."""

_CLASSES = ("classes", "class_index")

_PATCHES = {"tokens": (0, 16), "patches": (0, 0), "attention": (0, 0), "attentions": (1, 0),
            "layers": (1, 0)}
"""Patch axis of each feature tensor, and the maximum number of further tokens along it."""


class BadValues(VplError):
    """Invalid values in a file: where they are, and what is wrong."""

    # The single argument form is needed to unpickle it from another process.
    def __init__(self, where: str, reason: str = "", hint: str = "") -> None:
        super().__init__(": ".join(filter(None, (where, reason))), hint)
        self.reason = reason or where


def check_values(kind: str, tensors: Mapping[str, torch.Tensor], where: str, hint: str = "",
                 labels: int = MOST_CLASSES + 1) -> None:
    """Check the values of some or all tensors of a file, before writing or after reading.

    Classes must be below `labels`, the number of labels with background. `where` names the file.

    Raises:
        BadValues: values are not finite, not valid classes, or all zero where that cannot be.
    """
    for name, tensor in tensors.items():
        try:
            reason = _fault(kind, name, tensor, labels)
        except RuntimeError:
            # Some dtypes can only be stored.
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
    """Return the shapes that features of all photos of a folder have in common, by tensor.

    They omit the patch axis; for tokens, the number of tokens that are not patches is given. If
    `patches` is 0, unknown, tokens are left out.
    """
    specs = KINDS["features"].tensors
    return {name: tuple(length - patches if axis == "tokens" else length
                        for axis, length in zip(specs[name].axes, shape, strict=True)
                        if axis != "patches")
            for name, shape in shapes.items()
            if name in _PATCHES and (patches or name != "tokens")}


def check_form(tensors: Mapping[str, torch.Tensor], usual: Mapping[str, tuple[int, ...]],
               where: str, hint: str) -> None:
    """Check that a photo's features have the same form as the others; see `form_of`.

    Raises:
        BadValues: they differ.
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
    """Return what is wrong with a tensor; empty if it is valid."""
    if not tensor.numel() or tensor.dtype == torch.bool or tensor.is_complex():
        return ""
    if not tensor.is_floating_point():
        if name in _CLASSES and not 0 <= int(tensor.min()) <= int(tensor.max()) < labels:
            return f"names a class that is not among the {labels - 1}"
        return ""
    # One pass, which propagates NaN; `isfinite` takes ten times as long.
    low, high = (float(end) for end in torch.aminmax(tensor.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "holds NaN or infinity"
    return ("holds nothing but zeros" if low == high == 0 and name in _NEVER_ZERO.get(kind, ())
            else "")


def check_labels(labels: npt.NDArray[np.uint8], count: int) -> None:
    """Check that labels are below `count`, background included, or 255; with 0, accept any.

    Raises:
        BadValues: a label is not.
    """
    if count and bool(((labels >= count) & (labels != IGNORE)).any()):
        raise BadValues("", f"a pixel is of a class that is not among the {count - 1}")
