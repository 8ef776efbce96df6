"""The kernels of the dense CRF, and the values that papers take for them."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields


@dataclass(frozen=True)
class CrfKernels:
    """Kernels of the dense CRF, and the number of its iterations.

    Args:
        smooth_sxy: deviation of the smoothness kernel, in pixels.
        smooth_weight: its weight.
        bilateral_sxy: deviation of the appearance kernel in pixels.
        bilateral_srgb: and in colour, 0 to 255.
        bilateral_weight: its weight.
        iterations: mean-field iterations.
    """

    smooth_sxy: float
    smooth_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_weight: float
    iterations: int = 10

    @classmethod
    def from_json(cls, values: object) -> CrfKernels:
        """Check what a JSON file holds, and make settings of it; numbers stay as they are.

        Raises:
            ValueError: not an object, a name too many or too few, or a value that is no number of
                its range; the message names both.
        """
        if not isinstance(values, dict):
            raise ValueError("the settings of a CRF are an object, {\"smooth_sxy\": 1, …}")
        known = {field.name: field for field in fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"{name} is not a setting of a CRF: {', '.join(known)}")
        for name, field in known.items():
            if name in values:
                _check_number(name, values[name], whole=name == "iterations")
            elif field.default is MISSING:
                raise ValueError(f"{name} is missing")
        return cls(**values)


def _check_number(name: str, value: object, *, whole: bool) -> None:
    """Refuse what is no number in the range of a CRF's setting: a deviation is above 0."""
    kind = "whole number" if whole else "number"
    positive = name.endswith(("sxy", "srgb"))
    right = (isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
             and math.isfinite(value) and value >= 0 and (value > 0 or not positive))
    if not right:
        raise ValueError(f"{name} is {value!r}: expected a {kind} "
                         + ("above 0" if positive else "of 0 or more"))


KERNELS: dict[str, CrfKernels] = {
    # CLIP-ES (CVPR 2023), pseudo masks of VOC and COCO.
    "clip-es": CrfKernels(1, 3, 67, 3, 4),
    # WeCLIP (CVPR 2024), at test.
    "weclip": CrfKernels(3, 3, 64, 5, 4),
}
